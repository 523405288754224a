"""Post-training: a base model comes in, an assistant goes out, by demonstration, preference or reward.

    datasets    conversations and preferences from files: the families `INSTRUCTIONS` and `PREFERENCES`
    packing     conversations -> batches of rows, with a mask of what shall be learned
    lora        few trainable numbers instead of all: the family `ADAPTERS`
    stage       what all ways of post-training share: base, folder, trainer, examination
    sft         learn what the assistant says in given conversations
    distill     answer as a teacher does
    dpo         prefer the better one of two answers
    grpo        repeat what earned a reward

This file defines four families and imports none of their parts: they are found on the first look-up.
"""

from typing import TYPE_CHECKING

from scratchlm.registry import Family

if TYPE_CHECKING:
    from scratchlm.posttrain.datasets import Instructions, Preferences
    from scratchlm.posttrain.lora import Adapter
    from scratchlm.posttrain.stage import Stage

INSTRUCTIONS: "Family[Instructions]" = Family(
    "instructions", package="scratchlm.posttrain", variable="INSTRUCTIONS"
)
PREFERENCES: "Family[Preferences]" = Family(
    "preferences", package="scratchlm.posttrain", variable="PREFERENCES"
)
ADAPTERS: "Family[Adapter]" = Family("adapter", package="scratchlm.posttrain", variable="ADAPTERS")
STAGES: "Family[Stage]" = Family("stage", package="scratchlm.posttrain", variable="STAGES")
