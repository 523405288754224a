r"""Supervised fine-tuning: conversations come in, a model that says what the assistant says goes out.

    loss = mean over the assistant's tokens of  -ln p(token | all before it in its conversation)

The end of the assistant's turn is one of its tokens, so it learns to stop. With NEFTune the embeddings of a
training pass carry noise, uniform in [-1, 1] times alpha / sqrt(length * d_model), which keeps a model from
reciting short answers.

Source: Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5; Jain et al. 2023 (NEFTune),
https://arxiv.org/abs/2310.05914, algorithm 1.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import loss as losses
from scratchlm import runtime
from scratchlm.data.loader import Batches
from scratchlm.evaluate.likelihood import likelihood
from scratchlm.generate.engine import evaluating
from scratchlm.loss import IGNORE
from scratchlm.posttrain import INSTRUCTIONS, STAGES
from scratchlm.posttrain.config import SftConfig
from scratchlm.posttrain.datasets import Example, Messages, both_splits
from scratchlm.posttrain.held_out import held_out_order
from scratchlm.posttrain.objective import StageObjective
from scratchlm.posttrain.packing import (
    PADDING,
    Arrangement,
    ConversationLoader,
    ConversationSet,
    arrangement_for,
    make_rows,
    write_all,
)
from scratchlm.posttrain.replay import base_documents
from scratchlm.posttrain.stage import Counted, Message, Stage
from scratchlm.train.aim import Measured
from scratchlm.train.events import Message as Note
from scratchlm.train.events import OnEvent
from scratchlm.train.examine import Examiner
from scratchlm.train.objective import logit_rows
from scratchlm.train.trainer import Execution

ROWS_AT_ONCE = 8
"""Rows that are measured together."""
SHOWN = 3
"""Held-out questions that are asked along the way."""


class SftObjective(StageObjective):
    """Mean cross-entropy over what shall be learned."""

    def __init__(self, model: Module, how: Execution, config: SftConfig, *, micro_tokens: int) -> None:
        """Keep the settings.

        Args:
            model: Ids -> logits.
            how: Device and number format.
            config: Smoothing, z-loss and noise.
            micro_tokens: About so many tokens are computed at once.
        """
        super().__init__(model, how)
        self.extras = {"z_loss": config.train.z_loss, "label_smoothing": config.train.label_smoothing}
        self.chunk_rows = logit_rows(model, micro_tokens, device=how.device, compiled=False)
        self.alpha = config.neftune_alpha
        self._spread: Tensor | None = None
        if self.alpha:
            model.token_embeddings.register_forward_hook(self._noise)

    def forward(
        self,
        inputs: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        documents: Int[Tensor, "rows time"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the targets that count."""
        self.num_tokens += int((documents < PADDING).sum())
        if self.alpha:
            self._spread = self.alpha / (lengths_of(documents) * self.model.config.d_model).sqrt()
        hidden = self.hidden(inputs, documents)
        self._spread = None
        with runtime.autocast(self.device, self.precision):
            return losses.chunked_cross_entropy(
                hidden,
                self.model.head_weight,
                targets,
                softcap=self.model.config.logit_softcap,
                chunk_rows=self.chunk_rows,
                **self.extras,
            )

    def _noise(self, module: Module, given: Any, embedded: Tensor) -> Tensor | None:
        if self._spread is None or not self.training:
            return None
        return embedded + (torch.rand_like(embedded) * 2 - 1) * self._spread.unsqueeze(-1)


def lengths_of(documents: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time"]:
    """Return the length of each token's conversation. Example: 0 0 1 1 1 -> 2 2 3 3 3."""
    same = documents.unsqueeze(1) == documents.unsqueeze(2)
    return same.sum(dim=-1).float()


@STAGES.register("sft")
class Sft(Stage):
    """Learn what the assistant says in given conversations."""

    Config = SftConfig
    config: SftConfig

    def prepare(self, on_event: OnEvent) -> None:
        """Read both splits and write them as ids."""
        config = self.config
        source = INSTRUCTIONS.build(config.data.name, **config.data.settings)
        splits = both_splits(source, share=config.valid_share, seed=config.seed)
        self.train_conversations = self._written(splits["train"], "train", on_event)
        self.valid_conversations = self._written(splits["valid"], "held out", on_event)
        shown = splits["valid"] or splits["train"]
        self._asked = first_questions(shown[number] for number in held_out_order(0, len(shown), len(shown)))
        if not len(self.valid_conversations):
            self.valid_conversations = self.train_conversations
            on_event(Note("No conversation is held out (valid_share): the training ones are measured."))
        if source.num_skipped:
            on_event(Note(f"{source.num_skipped:,} entries could not be used and were left out."))
        self.train_set = counted(self.train_conversations)
        self.valid_set = counted(self.valid_conversations)

    def _written(self, examples: list[Example], name: str, on_event: OnEvent) -> ConversationSet:
        config = self.config
        found, dropped = write_all(
            examples,
            self.template,
            max_tokens=self.max_tokens,
            too_long=config.too_long,
            learn=config.learn,
        )
        on_event(Note(f"{name}: {found.describe()}."))
        if name == "train" and not len(found):
            why = f", all {len(examples):,} are longer than {self.max_tokens:,} tokens" if examples else ""
            raise ValueError(f"data: no conversation is left to learn from{why}; see what was left out.")
        if name == "train" and config.base_documents:
            found = self._with_base_text(found)
            on_event(Note(f"with documents of the base's text: {found.describe()}."))
        if any(dropped):
            on_event(
                Note(
                    f"{name}: {dropped.skipped:,} of {len(examples):,} conversations are longer than "
                    f"{self.max_tokens:,} tokens and were left out, {dropped.cut:,} were cut."
                )
            )
        return found

    def _with_base_text(self, found: ConversationSet) -> ConversationSet:
        """The conversations, and documents of the base behind them."""
        config = self.config
        documents = base_documents(
            config.base,
            self.folder.path,
            number=config.base_documents,
            max_tokens=self.max_tokens,
            first_id=self.base.tokenizer.end_of_text_id,
            seed=config.seed,
        )
        return ConversationSet([*(found.take(number) for number in range(len(found))), *documents])

    @property
    def arrangement(self) -> Arrangement:
        """As the settings say; padded where positions are not relative."""
        return arrangement_for(self.config.rows, self.base.settings.position.name)

    def loader(self) -> Batches:
        """Conversations, each once an epoch."""
        return ConversationLoader(
            self.train_conversations,
            self.config.conversations_per_step,
            max_tokens=self.max_tokens,
            arrangement=self.arrangement,
            padding_id=self.base.tokenizer.end_of_text_id,
            seed=self.config.seed,
        )

    def make_objective(self, model: Module, how: Execution) -> SftObjective:
        """Cross-entropy."""
        mean = self.train_set.num_tokens // max(1, self.train_set.num_items)
        return SftObjective(model, how, self.config, micro_tokens=how.micro_rows * mean)

    def held_out(self, examiner: Examiner, *, everything: bool) -> Measured:
        """The loss on what the assistant says in the held-out conversations."""
        most = None if everything else self.config.train.eval_tokens
        total, number, right = 0.0, 0, 0
        objective = self.objective
        with evaluating(examiner.model), torch.no_grad(), self.adapter.merged(examiner.model):
            for batch in self._held_out_rows(most):
                inputs, targets, documents = (tensor.to(examiner.device) for tensor in batch)
                where = targets != IGNORE
                hidden, wanted = objective.hidden(inputs, documents)[where], targets[where]
                with self.autocast(examiner):
                    logits = examiner.model.head(hidden)
                total += float(losses.token_losses(logits, wanted).sum())
                right += int((logits.argmax(dim=-1) == wanted).sum())
                number += len(wanted)
        valid = self.valid_conversations
        num_bytes = round(valid.num_bytes * number / max(1, int(valid.mask.sum())))
        text = likelihood(total, max(1, number), num_bytes)
        return Measured(text.loss, text, {"token_accuracy": right / max(1, number)})

    def _held_out_rows(self, most: int | None) -> Iterator[Any]:
        """Held-out conversations as rows, shuffled, until `most` tokens are read."""
        seen, size = 0, len(self.valid_conversations)
        for first in range(0, size, ROWS_AT_ONCE):
            numbers = held_out_order(first, first + ROWS_AT_ONCE, size)
            chosen = [self.valid_conversations.take(number) for number in numbers]
            yield make_rows(chosen, self.max_tokens, self.arrangement, self.base.tokenizer.end_of_text_id)
            seen += sum(len(written.ids) for written in chosen)
            if most is not None and seen >= most:
                return

    def questions(self) -> Sequence[Sequence[Message]]:
        """Some held-out ones, up to the user's last word."""
        return self._asked


def first_questions(examples: Iterable[Example]) -> list[Messages]:
    """The first few conversations up to the last answer, each once."""
    found: dict[str, Messages] = {}
    for example in examples:
        if len(found) == SHOWN:
            break
        found.setdefault(repr(example.messages[:-1]), example.messages[:-1])
    return list(found.values())


def counted(conversations: ConversationSet) -> Counted:
    """How large a set is."""
    return Counted(len(conversations), conversations.num_tokens, conversations.num_bytes)
