r"""Drawn answers as tensors come in, the loss of a policy step goes out, with what a record says beside it.

    loss = sum over answers of  w_i * sum over its tokens of (policy loss + kl * k3)

What a token's loss is says policy_losses.py. w_i is 1 / (answers * length) or one constant, known before the
first micro-batch: micro-batches of any size add up to the gradient of the whole step. Logits are computed of
the answers' tokens alone, since those of prompts and padding are most of a batch.

Figures: entropy of the policy; kl, k3 to the reference; moved, k3 to the weights that drew the answers;
clipped, the share of tokens where the clip decided; engine_gap, the mean difference between the
log-probabilities of engine and trainer while the weights are the same: rounding, or something is wrong.

Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300, equation 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import runtime
from scratchlm.loss import token_losses
from scratchlm.posttrain.config import GrpoConfig
from scratchlm.posttrain.objective import StageObjective
from scratchlm.posttrain.policy_losses import POLICY_LOSSES, compute_entropy, kl_estimate, masked_sum
from scratchlm.train.trainer import Execution


class PolicyBatch(NamedTuple):
    """Some of a step's answers."""

    inputs: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]
    mask: Bool[Tensor, "rows time"]
    advantages: Float[Tensor, "rows 1"]
    weights: Float[Tensor, " rows"]
    """What the sum of an answer's token losses counts in the step's loss."""
    drawn: Float[Tensor, "rows time"]
    """Log-probabilities that the engine had."""
    old: Float[Tensor, "rows time"]
    reference: Float[Tensor, "rows time"]
    scale: Float[Tensor, ""]
    """Undoes the trainer's weight of this micro-batch: parts add up."""


class PolicyObjective(StageObjective):
    """A policy loss with an estimate of the divergence from a reference."""

    def __init__(self, model: Module, how: Execution, config: GrpoConfig) -> None:
        """Keep the settings.

        Args:
            model: Ids -> logits.
            how: Device and number format.
            config: Loss, temperature, weight of the divergence.
        """
        super().__init__(model, how)
        self.policy_loss = POLICY_LOSSES.build(config.loss.name, **config.loss.settings)
        self.temperature, self.kl = config.rollout.temperature, config.kl
        self.on_policy = config.cycle_steps == 1
        self.is_first = True
        """Whether the weights are still those that drew the answers."""

    def forward(self, *tensors: Tensor) -> Float[Tensor, ""]:
        """Return these answers' part of the step's loss, times `scale`."""
        batch = PolicyBatch(*tensors)
        if len(batch.inputs) == 0:
            return next(p for p in self.model.parameters() if p.requires_grad).sum() * 0.0
        self.num_tokens += int((batch.mask.sum(dim=1) + _prompt_lengths(batch.mask)).sum())
        logits = self.answer_logits(self.model, batch.inputs, batch.mask)
        log_probs = table_of(batch.mask, -token_losses(logits, batch.targets[batch.mask]))
        old = log_probs.detach() if self.on_policy else batch.old
        losses, clipped = self.policy_loss(log_probs, batch.advantages, old, batch.mask)
        divergence = kl_estimate(log_probs if self.kl else log_probs.detach(), batch.reference)
        if self.kl:
            losses = losses + self.kl * divergence
        number = batch.mask.sum()
        self.add("entropy", compute_entropy(logits.detach()).sum(), number)
        if self.kl or batch.advantages.any():  # else the answer stands in for those that teach nothing
            self.add("kl", masked_sum(divergence, batch.mask), number)
            self.add("moved", masked_sum(kl_estimate(old, log_probs.detach()), batch.mask), number)
            self.add("clipped", (clipped & batch.mask).sum(), number)
        if self.is_first:
            self.add("engine_gap", masked_sum((log_probs.detach() - batch.drawn).abs(), batch.mask), number)
        return (masked_sum(losses, batch.mask, dim=1) * batch.weights).sum() * batch.scale

    def token_log_probs(
        self,
        model: Module,
        inputs: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows time"]:
        """Return ln p of the targets under a model where the mask is True, 0 elsewhere."""
        return table_of(mask, -token_losses(self.answer_logits(model, inputs, mask), targets[mask]))

    def answer_logits(
        self, model: Module, inputs: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
    ) -> Float[Tensor, "tokens vocab"]:
        """Return the logits of the policy where the mask is True."""
        with runtime.autocast(self.device, self.precision):
            return model.head(model.hidden(inputs)[mask]).float() / self.temperature


def table_of(mask: Bool[Tensor, "rows time"], values: Float[Tensor, " tokens"]) -> Float[Tensor, "rows time"]:
    """Return the values in order where the mask is True, 0 elsewhere."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)


def _prompt_lengths(mask: Bool[Tensor, "rows time"]) -> Int[Tensor, " rows"]:
    """Tokens before each row's answer."""
    return mask.int().argmax(dim=1)
