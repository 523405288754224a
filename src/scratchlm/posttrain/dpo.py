r"""Preference optimization: pairs of answers come in, a model that prefers the better one of each goes out.

    loss = mean over pairs of  l(log p(y_c), log p(y_r), log q(y_c), log q(y_r))   +  w * NLL(y_c) / |y_c|

l is one of posttrain/preference_losses.py, q the model that the run began with. The second term, off by
default, keeps the chosen answers likely: preferences alone are satisfied as well where both answers lose.
What is followed: how often the better answer is ahead (accuracy), by how much (margin), the rewards that the
loss implies; and at validations how often the better answer is the likelier one, which can be asked of the
base, too, and how far the model went: KL(p || q), exact over the vocabulary, mean over held-out tokens.

Source: as in posttrain/preference_losses.py; the second term: Pang et al. 2024,
https://arxiv.org/abs/2404.19733, equation 1.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import runtime
from scratchlm.evaluate.likelihood import likelihood
from scratchlm.generate.engine import evaluating
from scratchlm.loss import IGNORE
from scratchlm.posttrain import PREFERENCES, STAGES, reference
from scratchlm.posttrain.config import DpoConfig
from scratchlm.posttrain.datasets import Pair, both_splits
from scratchlm.posttrain.held_out import held_out_order
from scratchlm.posttrain.objective import StageObjective
from scratchlm.posttrain.packing import arrangement_for
from scratchlm.posttrain.pairs import PairBatch, PairLoader, PairSet, first_epoch, write_pairs
from scratchlm.posttrain.preference_losses import PREFERENCE_LOSSES, Pairs, Rewards
from scratchlm.posttrain.reference import PAIRS_AT_ONCE, Reference, answer_log_probs, to_device
from scratchlm.posttrain.stage import Counted, Message, Stage
from scratchlm.train.aim import Measured
from scratchlm.train.events import Message as Note
from scratchlm.train.events import OnEvent, PhaseEnded, PhaseProgress, PhaseStarted
from scratchlm.train.examine import Examiner
from scratchlm.train.trainer import Execution

FILE = "reference.json"
"""Where a run keeps what the reference says."""
SHOWN = 3
"""Held-out prompts that are answered along the way."""
POSITIONS_AT_ONCE = 512
"""Tokens whose two distributions are compared together: with 50,000 tokens in the vocabulary 200 MB."""


class DpoObjective(StageObjective):
    """The mean preference loss of pairs."""

    def __init__(self, model: Module, how: Execution, config: DpoConfig) -> None:
        """Build the loss.

        Args:
            model: Ids -> logits.
            how: Device and number format.
            config: The loss and its weight beside that of the chosen answers.
        """
        super().__init__(model, how)
        self.loss = PREFERENCE_LOSSES.build(config.loss.name, **config.loss.settings)
        self.sft_weight = config.sft_weight

    def forward(
        self,
        inputs: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        documents: Int[Tensor, "rows time"],
        answers: Int[Tensor, "rows time"],
        reference: Float[Tensor, " answers"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the pairs."""
        batch = PairBatch(inputs, targets, documents, answers, reference)
        pairs = self.pairs(batch)
        losses, number = self.loss(pairs), len(pairs.chosen)
        rewards = self.loss.rewards(Pairs(*(column.detach() for column in pairs)))
        self.num_tokens += int((answers < len(reference)).sum())
        for name, values in {
            "margin": rewards.margins,
            "accuracy": rewards.ahead,
            "reward_chosen": rewards.chosen,
            "reward_rejected": rewards.rejected,
        }.items():
            self.add(name, values.sum(), number)
        means = -pairs.chosen / pairs.chosen_tokens
        self.add("chosen_loss", means.sum(), number)
        loss = losses.mean()
        return loss + self.sft_weight * means.mean() if self.sft_weight else loss

    def pairs(self, batch: PairBatch) -> Pairs:
        """Return the log-probabilities of a batch's answers."""
        policy = answer_log_probs(self.model, batch, device=self.device, precision=self.precision)
        counted = batch.answers[batch.targets != IGNORE]
        tokens = torch.bincount(counted, minlength=len(policy))
        columns = (*policy.chunk(2), *batch.reference.chunk(2), *tokens.chunk(2))
        return Pairs(*columns)


@STAGES.register("dpo")
class Dpo(Stage):
    """Prefer the better one of two answers."""

    Config = DpoConfig
    config: DpoConfig
    objective: DpoObjective

    def prepare(self, on_event: OnEvent) -> None:
        """Read both splits and write them as ids.

        Raises:
            ValueError: No pair is left to learn from, or one cannot be used.
        """
        config, self.on_event = self.config, on_event
        source = PREFERENCES.build(config.data.name, **config.data.settings)
        splits = both_splits(source, share=config.valid_share, seed=config.seed)
        self.train_pairs = self._written(splits["train"], "train")
        self.valid_pairs = self._written(splits["valid"], "held out")
        if not len(self.train_pairs):
            raise ValueError("data: no pair is left to learn from; see what was left out, and why.")
        if not len(self.valid_pairs):
            self.valid_pairs = self.train_pairs
            on_event(Note("No pair is held out (valid_share): the training ones are measured."))
        if source.num_skipped:
            on_event(Note(f"{source.num_skipped:,} entries could not be used and were left out."))
        self.train_set, self.valid_set = (_counted(pairs) for pairs in (self.train_pairs, self.valid_pairs))
        self._reference_model: Module | None = None
        self._references: dict[str, Reference] = {}

    def _written(self, pairs: list[Pair], name: str) -> PairSet:
        found, dropped = write_pairs(
            pairs, self.template, max_tokens=self.max_tokens, too_long=self.config.too_long
        )
        if any(dropped):
            self.on_event(
                Note(
                    f"{name}: of {len(pairs):,} pairs {dropped.too_long:,} are longer than "
                    f"{self.max_tokens:,} tokens, {dropped.equal:,} have two equal answers; left out."
                )
            )
        return found

    def loader(self) -> PairLoader:
        """Pairs, each once an epoch, with what the reference says of them."""
        loss = PREFERENCE_LOSSES.get(self.config.loss.name)
        return PairLoader(
            self.train_pairs,
            self.config.pairs_per_step,
            reference=self._references["train"] if loss.needs_reference else None,
            seed=self.config.seed,
            **self._rows(),
        )

    def make_objective(self, model: Module, how: Execution) -> DpoObjective:
        """The loss, once the reference's numbers are there."""
        objective = DpoObjective(model, how, self.config)
        self._device, self._precision = how.device, how.precision
        train, valid = self.train_pairs, self.valid_pairs
        orders = {
            "train": first_epoch(len(train), self.config.seed),
            "valid": held_out_order(0, len(valid), len(valid)),
        }
        for (name, order), pairs in zip(orders.items(), (train, valid), strict=True):
            about = {"device": how.device, "precision": how.precision, "how": self._rows(), "order": order}
            self._references[name] = Reference(pairs, self._reference, **about)
        if objective.loss.needs_reference:
            self._compute_reference()
        return objective

    def held_out(self, examiner: Examiner, *, everything: bool) -> Measured:
        """The loss on held-out pairs, and how far the model is from the reference."""
        most = None if everything else self.config.train.eval_tokens
        columns, nats, tokens, divergence, positions = [], 0.0, 0, 0.0, 0
        with evaluating(examiner.model), torch.no_grad(), self.adapter.merged(examiner.model):
            for numbers in self._some(most):
                batch = to_device(self.valid_pairs.rows(numbers, **self._rows()), examiner.device)
                if self.objective.loss.needs_reference:
                    known = self._references["valid"].log_probs(numbers)
                    batch = batch._replace(reference=known.to(examiner.device))
                pairs = self.objective.pairs(batch)
                loss, likelier = self.objective.loss, (pairs.chosen > pairs.rejected).float()
                columns.append(torch.stack([*loss.rewards(pairs), loss(pairs), likelier]))
                nats -= float(pairs.chosen.sum())
                tokens += int(pairs.chosen_tokens.sum())
                divergence += self._divergence(examiner.model, batch)
                positions += int((batch.targets != IGNORE).sum())
        chosen, rejected, losses, likelier = torch.cat(columns, dim=1).double().cpu()
        number = len(losses)
        text = likelihood(
            nats, tokens, max(1, round(self.valid_set.num_bytes * number / len(self.valid_pairs)))
        )
        figures = {
            "accuracy": float(Rewards(chosen, rejected).accuracy),
            "likelier": float(likelier.mean()),
            "margin": float((chosen - rejected).mean()),
            "reward_chosen": float(chosen.mean()),
            "reward_rejected": float(rejected.mean()),
            "chosen_loss": text.loss,
            "kl": divergence / positions,
        }
        return Measured(float(losses.mean()), text, figures)

    def questions(self) -> Sequence[Sequence[Message]]:
        """Some held-out prompts."""
        numbers = held_out_order(0, SHOWN, len(self.valid_pairs))
        return [self.valid_pairs.prompts[number] for number in numbers]

    def _rows(self) -> dict[str, Any]:
        """How pairs become rows: an answer's numbers must not depend on what stands before it in its row."""
        padding = self.base.tokenizer.end_of_text_id
        arrangement = arrangement_for(self.config.rows, self.base.settings.position.name)
        return {"room": self.max_tokens, "arrangement": arrangement, "padding_id": padding}

    def _reference(self) -> Module:
        """The model that the run began with, made when it is first asked for."""
        if self._reference_model is None:
            self._reference_model = self.base.reference(self._device)
        return self._reference_model

    def _compute_reference(self) -> None:
        """Read what the folder knows, compute what this run will read beyond it, and write it down."""
        train, valid = self._references["train"], self._references["valid"]
        path, config = self.folder.path / FILE, self.config
        about = (self._precision, self._device.type, config.rows, str(config.seed))
        prints = [pairs.fingerprint for pairs in (self.train_pairs, self.valid_pairs)]
        mark = reference.fingerprint(self.base.weights, *about, *prints)
        reference.load(path, mark, self._references)
        started, computed = time.perf_counter(), 0
        self.on_event(PhaseStarted("reference", f"log-probabilities, kept in {FILE}"))
        needed = train.order[: config.train.steps * config.pairs_per_step]
        for split, numbers in ((valid, valid.order), (train, needed)):
            computed += split.compute(
                numbers,
                lambda done, total: self.on_event(PhaseProgress("reference", done, total, "pairs")),
            )
        if computed:
            reference.save(path, mark, self._references)
        seconds = time.perf_counter() - started
        self.on_event(PhaseEnded("reference", seconds, {"computed pairs": computed}))

    def _some(self, most: int | None) -> Iterator[list[int]]:
        """Numbers of held-out pairs, shuffled, several at once, until `most` tokens are read."""
        seen, order = 0, self._references["valid"].order
        for first in range(0, len(order), PAIRS_AT_ONCE):
            numbers = order[first : first + PAIRS_AT_ONCE]  # as the reference reads them together
            yield numbers
            seen += sum(map(self.valid_pairs.length, numbers))
            if most is not None and seen >= most:
                return

    def _divergence(self, model: Module, batch: PairBatch) -> float:
        """KL(p || q), summed over the tokens of a batch's answers."""
        where = batch.targets != IGNORE
        found = []
        for part in (model, self._reference()):
            with runtime.autocast(self._device, self._precision):
                found.append(part.hidden(batch.inputs, documents=batch.documents)[where])
        total = 0.0
        for first in range(0, len(found[0]), POSITIONS_AT_ONCE):
            log_p, log_q = (
                self._log_distribution(part, hidden[first : first + POSITIONS_AT_ONCE])
                for part, hidden in zip((model, self._reference()), found, strict=True)
            )
            total += float((log_p.exp() * (log_p - log_q)).sum())
        return total

    def _log_distribution(self, model: Module, hidden: Tensor) -> Float[Tensor, "tokens vocab"]:
        with runtime.autocast(self._device, self._precision):
            logits = model.head(hidden).float()
        return logits - logits.logsumexp(dim=-1, keepdim=True)


def _counted(pairs: PairSet) -> Counted:
    """How large a set is; its bytes are those of the chosen answers."""
    return Counted(len(pairs), pairs.answers.num_tokens, pairs.num_chosen_bytes)
