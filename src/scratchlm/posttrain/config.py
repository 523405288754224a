"""All settings of a post-training run: what a recipe in recipes/posttrain holds and posttrain.json records.

A step is a number of items: conversations, pairs of answers, or prompts with a group of answers each. How
many tokens that is differs from step to step; `train.batch_tokens`, the most that it can be, follows from it.
Model, tokenizer and corpus are those of the base run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from scratchlm.config import Config, Part, part_of
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.optim import OPTIMIZERS, SCHEDULES
from scratchlm.posttrain import ADAPTERS, INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain.advantages import ADVANTAGE_EPS, Baseline, Normalizer
from scratchlm.posttrain.policy_losses import POLICY_LOSSES, Normalization
from scratchlm.posttrain.preference_losses import PREFERENCE_LOSSES
from scratchlm.posttrain.rewards import REWARDS, OnFailure
from scratchlm.posttrain.rollout import RolloutConfig
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.train.config import TrainConfig

ONE_PROCESS = (
    "post-training runs in one process, which uses all cores or one GPU; leave it out. Runs from other seeds "
    "or on other data may go on beside it."
)
"""What is said to whom asks for several."""


class StepsConfig(TrainConfig):
    """How long, and what happens along the way: as in pretraining, but for what belongs to rows of text."""

    batch_tokens: int = Field(default=0, ge=0, le=0)
    """Follows from the items of a step."""
    compile: Literal["auto", False] = False
    """Rows differ in length from step to step, so nothing is compiled."""
    ema_decay: float = Field(default=0.0, ge=0, le=0)
    """No average of weights is kept: these runs are short."""
    document_mask: bool = True
    """Whether conversations in one row are hidden from each other."""

    @model_validator(mode="after")
    def _documents_are_masked(self) -> "StepsConfig":
        if not self.document_mask:
            raise ValueError(
                "train.document_mask=false: a conversation must not see those before it in its row; leave it "
                "out."
            )
        return self


class PosttrainConfig(Config):
    """What all ways of post-training have in common."""

    name: str
    """The run's name in tables."""
    description: str = ""
    """One line for people."""
    base: Path
    """Folder of the run to go on from: pretrained or post-trained."""
    checkpoint: str = "newest"
    """Which of its checkpoints: newest, best or the number of a step."""
    seed: int = 0
    """Decides the order of items, adapters' initial weights, dropout and sample texts."""
    chat: Literal["special", "plain"] = "special"
    """How roles are marked: by special tokens, which a tokenizer without them is given, or by words."""
    context_length: int | None = Field(default=None, ge=8)
    """The most tokens of a row; as the base by default."""
    adapter: part_of(ADAPTERS) = Field(Part(name="full"), validate_default=True)  # type: ignore[valid-type]
    """Which numbers are trained: all of the model's (full), or a few beside them (lora, dora)."""
    optimizer: part_of(OPTIMIZERS) = Part(name="adamw")  # type: ignore[valid-type]
    """How gradients become updates."""
    schedule: part_of(SCHEDULES) = Part(name="cosine")  # type: ignore[valid-type]
    """How the learning rate moves."""
    train: StepsConfig
    """How long, and what happens along the way."""
    sampling: SamplingConfig = SamplingConfig()
    """How sample answers are drawn."""
    prompts: tuple[str, ...] = ()
    """Questions whose answers are shown along the way; by default some of the held-out data's."""
    base_tokens: int = Field(default=16_384, ge=0)
    """Tokens of the base run's validation text on which forgetting is measured each time."""

    @field_validator("checkpoint", "teacher_checkpoint", mode="before", check_fields=False)
    @classmethod
    def _a_step_is_a_number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value  # the command line takes digits for a number

    @model_validator(mode="before")
    @classmethod
    def _one_process(cls, given: Any) -> Any:
        """Say what pretraining's settings of several processes mean here: one may be asked for."""
        if not isinstance(given, Mapping):
            return given
        several = [name for name in ("nproc", "distributed") if name in given and given[name] != 1]
        if several:
            raise ValueError(f"{several[0]}: {ONE_PROCESS}")
        return {name: value for name, value in given.items() if name != "nproc"}

    @property
    def items_per_step(self) -> int:
        """Conversations, pairs or answers of one optimizer step."""
        raise NotImplementedError


class SftConfig(PosttrainConfig):
    """Supervised fine-tuning: learn what the assistant says in given conversations."""

    data: part_of(INSTRUCTIONS)  # type: ignore[valid-type]
    """Where the conversations come from."""
    conversations_per_step: int = Field(default=16, ge=1)
    """Conversations of one optimizer step."""
    rows: Literal["packed", "padded"] = "packed"
    """Several conversations in a row, hidden from each other, or one a row and padding behind it."""
    learn: Literal["assistant", "all"] = "assistant"
    """Which tokens are targets: what the assistant says, or all of the conversation."""
    too_long: Literal["skip", "cut", "error"] = "skip"
    """What happens to conversations that are longer than the context."""
    valid_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the conversations that is held out where the data has no split of its own."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Size of the noise on the embeddings while training (NEFTune); 5 is usual, 0 switches it off."""
    base_documents: int = Field(default=0, ge=0)
    """Documents of the base run's training text that are learned beside the conversations, each once an
    epoch as they are: less is forgotten."""

    @property
    def items_per_step(self) -> int:
        """Conversations of one optimizer step."""
        return self.conversations_per_step


class DistillConfig(SftConfig):
    """Distillation: answer as a teacher does."""

    teacher: Path
    """Folder of the run that is learnt from."""
    teacher_checkpoint: str = "newest"
    """Which of its checkpoints: newest, best or the number of a step."""
    learn_from: Literal["logits", "samples"] = "logits"
    """Its probabilities for each token of the data's answers, or answers that it writes itself."""
    temperature: float = Field(default=1.0, gt=0)
    """Both models' probabilities are softmax(logits / temperature); 2 shows more of what is unlikely."""
    data_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of the cross-entropy on the data's own answers in the loss, where it learns from logits."""
    answers: RolloutConfig = RolloutConfig()
    """How the teacher writes, where it learns from samples."""

    @model_validator(mode="after")
    def _all_settings_have_an_effect(self) -> "DistillConfig":
        if self.learn_from == "logits":
            others = {"neftune_alpha": self.neftune_alpha}
            _refuse_ignored(others | _of_cross_entropy(self.train), "with learn_from=logits")
        return self


class DpoConfig(PosttrainConfig):
    """Direct preference optimization and its relatives: prefer the better one of two answers."""

    data: part_of(PREFERENCES)  # type: ignore[valid-type]
    """Where the pairs come from."""
    loss: part_of(PREFERENCE_LOSSES) = Field(Part(name="dpo"), validate_default=True)  # type: ignore[valid-type]
    """What is minimised: dpo, ipo, kto, simpo."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' mean loss beside it: keeps them likely; 0 switches it off."""
    pairs_per_step: int = Field(default=16, ge=1)
    """Pairs of one optimizer step."""
    rows: Literal["packed", "padded"] = "packed"
    """Several answers in a row, hidden from each other, or one a row and padding behind it."""
    too_long: Literal["skip", "error"] = "skip"
    """What happens to pairs that are longer than the context."""
    valid_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the pairs that is held out where the data has no split of its own."""

    @model_validator(mode="after")
    def _all_settings_have_an_effect(self) -> "DpoConfig":
        _refuse_ignored(_of_cross_entropy(self.train), "for preferences")
        return self

    @property
    def items_per_step(self) -> int:
        """Pairs of one optimizer step."""
        return self.pairs_per_step


class GrpoConfig(PosttrainConfig):
    """Reinforcement learning with verifiable rewards: repeat what earned a reward."""

    data: part_of(EXERCISES)  # type: ignore[valid-type]
    """Which problems are solved."""
    rewards: tuple[part_of(REWARDS), ...] = Field(({"name": "correct"},), validate_default=True)  # type: ignore[valid-type]
    """What earns a reward: parts by name, each with its weight; their sum counts."""
    rewards_on_failure: OnFailure = "skip"
    """A reward that raises, hangs or is no number: leave the answer out, count 0, or stop the run."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Problems of one optimizer step."""
    group_size: int = Field(default=8, ge=1)
    """Answers drawn for each problem."""
    steps_per_rollout: int = Field(default=1, ge=1)
    """Optimizer steps whose answers are drawn together, before the first of them."""
    passes: int = Field(default=1, ge=1)
    """How often each answer is learnt from."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are drawn."""
    baseline: Baseline = "mean"
    """What is taken away from a reward: the group's mean, or nothing."""
    normalizer: Normalizer = "std"
    """What the rest is divided by: the group's standard deviation or mean, or nothing."""
    advantage_eps: float = Field(default=ADVANTAGE_EPS, gt=0)
    """Added to what is divided by."""
    loss: part_of(POLICY_LOSSES) = Field({"name": "grpo"}, validate_default=True)  # type: ignore[valid-type]
    """What is minimised for a token: reinforce, ratio, grpo, gspo, cispo."""
    length: Normalization = "sequence"
    """Tokens of an answer: their mean counts, or their sum over a constant."""
    constant: float | None = Field(default=None, gt=0)
    """That constant; None: the most tokens that a step's answers may have."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the base in the loss; it is measured in any case."""
    valid_problems: int = Field(default=256, ge=1)
    """Held-out problems, all solved before the first step and after the last."""
    eval_problems: int | None = Field(default=None, ge=1)
    """How many of them are solved along the way; None: all."""
    rows_at_once: int = Field(default=16, ge=1)
    """Answers whose log-probabilities are computed at once, where nothing is learnt."""

    @field_validator("baseline", "normalizer", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        return "none" if value is None else value  # the command line takes the word none for nothing

    @model_validator(mode="after")
    def _no_more_than_all_are_solved_on_the_way(self) -> "GrpoConfig":
        if (self.eval_problems or 0) > self.valid_problems:
            raise ValueError(
                f"eval_problems={self.eval_problems}: along the way some of the valid_problems="
                f"{self.valid_problems} are solved; take fewer, or leave it out: all."
            )
        return self

    @model_validator(mode="after")
    def _all_settings_have_an_effect(self) -> "GrpoConfig":
        others = {"constant": self.constant if self.length == "sequence" else None}
        _refuse_ignored(_of_cross_entropy(self.train), "for rewards")
        _refuse_ignored(others, "with length=sequence")
        return self

    @model_validator(mode="after")
    def _equal_rewards_are_not_divided_by_nothing(self) -> "GrpoConfig":
        if self.baseline == "none" and self.normalizer == "std":
            raise ValueError(
                "baseline='none' with normalizer='std': answers that all earned the same would count "
                f"1 / advantage_eps = {1 / self.advantage_eps:g} times; take baseline=mean or "
                "normalizer=none."
            )
        return self

    @model_validator(mode="after")
    def _a_group_is_more_than_one(self) -> "GrpoConfig":
        if self.group_size == 1 and (self.baseline == "mean" or self.normalizer == "std"):
            raise ValueError(
                f"group_size=1 with baseline={self.baseline!r}, normalizer={self.normalizer!r}: one answer "
                "is the mean of its group; take at least 2, or none of both."
            )
        return self

    @property
    def items_per_step(self) -> int:
        """Answers of one step."""
        return self.prompts_per_step * self.group_size

    @property
    def cycle_steps(self) -> int:
        """Optimizer steps from one rollout to the next."""
        return self.steps_per_rollout * self.passes

    @property
    def answers_per_rollout(self) -> int:
        """Answers drawn together."""
        return self.items_per_step * self.steps_per_rollout

    @property
    def most_tokens_per_step(self) -> float:
        """What the answers of a step have if all are cut."""
        return float(self.items_per_step * self.rollout.max_new_tokens)


def _of_cross_entropy(train: StepsConfig) -> dict[str, float]:
    """Settings that only a cross-entropy reads."""
    return {"train.z_loss": train.z_loss, "train.label_smoothing": train.label_smoothing}


def _refuse_ignored(settings: Mapping[str, float | None], where: str) -> None:
    """Refuse settings that are on and would do nothing."""
    if ignored := [name for name, value in settings.items() if value]:
        raise ValueError(f"{', '.join(ignored)}: not used {where}; leave it out.")
