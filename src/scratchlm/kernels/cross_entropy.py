r"""Logits (or vectors and the head) and targets in, each target's loss or the mean out: the plain ways.

    lse   = logsumexp(z) = max(z) + log(sum(exp(z - max(z))))
    loss  = lse - (1 - s) z[target] - s mean(z) + w lse^2            s label_smoothing, w z_loss
    d loss / d z[i] = (1 + 2 w lse) softmax(z)[i] - (1 - s) [i = target] - s / V

The largest logit is subtracted first, so logits of any size are safe; all of it in float32. The gradient is
written down instead of found by autograd, which would keep several tables of all logits; and the chunked form
computes a chunk's gradients while its logits are there, so that it never holds the whole table.

Source: as in loss.py. The file kernels/gpu/cross_entropy.py is the same on a GPU.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

IGNORE = -1
"""Targets with this value are left out of the loss."""
CHUNK_ROWS = 256
"""Rows of logits at once: in eager mode a chunk should stay in the processor's cache. Measured, head and
loss of 2,048 tokens in bfloat16 on one Zen 5 core, d_model 256, against all rows at once: 0.46 of the time
with 4,096 tokens in the vocabulary, 0.42 with 16,384 (chunks of 1,024: 0.63 and 1.03); forward and
backward of a whole model with 4 layers 0.65. Compiled, both take the same."""


def token_losses(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> Float[Tensor, "*batch"]:
    """Return each target's loss in nats, 0 where it is IGNORE.

    Args:
        logits: One row of numbers per target.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: Weight of the squared logsumexp, at least 0.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in [0, 1).
        overwrite: Allow the gradient to take the logits' memory. This way to compute it makes no use of it.
    """
    check_weights(z_loss, label_smoothing)
    losses = _TokenLosses.apply(logits, targets.clamp(min=0), z_loss, label_smoothing)
    return torch.where(targets == IGNORE, 0.0, losses)


def token_losses_reference(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> Float[Tensor, "*batch"]:
    """Return what `token_losses` returns; autograd finds the gradient."""
    z = logits.float()
    largest = z.amax(dim=-1, keepdim=True).detach()
    log_sum = (z - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)
    chosen = z.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    losses = log_sum - (1 - label_smoothing) * chosen - label_smoothing * z.mean(dim=-1)
    return torch.where(targets == IGNORE, 0.0, losses + z_loss * log_sum.square())


class _TokenLosses(torch.autograd.Function):
    """The formula at the head of the file with its gradient written down.

    Autograd would keep several tables of all logits in float32; this keeps the logits as they came, and one
    number per target. Measured, compiled on one Zen 5 core, 4,096 tokens in the vocabulary: forward and
    backward of a whole model with 4 layers and d_model 256 take 0.93 of the time that
    token_losses_reference needs.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float
    ) -> Tensor:
        losses, log_sum = _losses(logits, targets, z_loss, label_smoothing)
        ctx.save_for_backward(logits, log_sum, targets)
        ctx.z_loss, ctx.label_smoothing = z_loss, label_smoothing
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, log_sum, targets = ctx.saved_tensors
        difference = _gradient(logits, log_sum, targets, ctx.z_loss, ctx.label_smoothing)
        return (difference * gradients[0].unsqueeze(-1)).to(logits.dtype), None, None, None


def _losses(
    logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 1"]]:
    """Each row's loss and its logsumexp; terms of weight 0 are not computed."""
    z = logits.float()
    largest = z.amax(dim=-1, keepdim=True)
    log_sum = (z - largest).exp().sum(dim=-1, keepdim=True).log() + largest
    chosen = z.gather(-1, targets.unsqueeze(-1))
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * z.mean(dim=-1, keepdim=True)
    losses = log_sum - chosen
    if z_loss:
        losses = losses + z_loss * log_sum.square()
    return losses.squeeze(-1), log_sum


def _gradient(
    logits: Tensor, log_sum: Tensor, targets: Tensor, z_loss: float, label_smoothing: float
) -> Float[Tensor, "*batch vocab"]:
    """The derivative of each row's loss by its logits, in float32."""
    probabilities = (logits.float() - log_sum).exp()
    if z_loss:
        probabilities = probabilities * (1 + 2 * z_loss * log_sum)
    if label_smoothing:
        probabilities = probabilities - label_smoothing / logits.shape[-1]
    ids = torch.arange(logits.shape[-1], device=logits.device)
    # a comparison instead of a scatter: it fuses with the rest
    return torch.where(ids == targets.unsqueeze(-1), probabilities - (1 - label_smoothing), probabilities)


def chunked_cross_entropy(
    hidden: Float[Tensor, "*batch d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    num_targets: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of token_losses(hidden head_weight^T, targets), a chunk of the logits at a time.

    Args:
        hidden: What the head turns into logits.
        head_weight: The head's matrix.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: As in `token_losses`.
        label_smoothing: As in `token_losses`.
        softcap: Bound of the logits, softcap * tanh(logits / softcap); None for none.
        num_targets: Divide the sum by this number instead of that of the targets that count.
        chunk_rows: Rows of logits at once, at least 1; None for CHUNK_ROWS. A compiler unrolls the chunks:
            give it few.

    Raises:
        ValueError: chunk_rows is below 1, or a weight is outside its range.
    """
    chunk_rows = CHUNK_ROWS if chunk_rows is None else chunk_rows
    check_weights(z_loss, label_smoothing)
    check_chunks(chunk_rows, softcap)
    rows, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if not torch.is_grad_enabled():  # autograd would still say that gradients are needed
        rows, head_weight = rows.detach(), head_weight.detach()
    total = _ChunkedLoss.apply(rows, head_weight, flat_targets, z_loss, label_smoothing, softcap, chunk_rows)
    return total / ((flat_targets != IGNORE).sum() if num_targets is None else num_targets)


def chunked_cross_entropy_reference(
    hidden: Float[Tensor, "*batch d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    num_targets: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Return what `chunked_cross_entropy` returns, from one table of all logits."""
    check_weights(z_loss, label_smoothing)
    check_chunks(chunk_rows, softcap)
    logits = hidden @ head_weight.T
    bounded = logits if softcap is None else softcap * torch.tanh(logits.float() / softcap)
    losses = token_losses_reference(bounded, targets, z_loss=z_loss, label_smoothing=label_smoothing)
    return losses.sum() / ((targets != IGNORE).sum() if num_targets is None else num_targets)


class _ChunkedLoss(torch.autograd.Function):
    """The sum of the rows' losses; the gradients are computed on the way, while a chunk's logits are there.

    The loss is one number, so the gradient that comes in is one number too and may be multiplied in later:
    nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        z_loss: float,
        label_smoothing: float,
        softcap: float | None,
        chunk_rows: int,
    ) -> Tensor:
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        total = rows.new_zeros((), dtype=torch.float32)
        grad_rows: list[Tensor] = []
        grad_weight = torch.zeros_like(head_weight, dtype=torch.float32) if wants_weight else None
        for chunk, ids in zip(rows.split(chunk_rows), targets.split(chunk_rows), strict=True):
            logits = chunk @ head_weight.T
            bounded = logits if softcap is None else softcap * torch.tanh(logits.float() / softcap)
            known = ids.clamp(min=0)
            losses, log_sum = _losses(bounded, known, z_loss, label_smoothing)
            total = total + torch.where(ids == IGNORE, 0.0, losses).sum()
            if not (wants_rows or wants_weight):
                continue
            slope = _gradient(bounded, log_sum, known, z_loss, label_smoothing)
            if softcap is not None:
                slope = slope * (1 - (bounded / softcap).square())
            slope = torch.where((ids == IGNORE).unsqueeze(-1), 0.0, slope).to(logits.dtype)
            if wants_rows:
                grad_rows.append((slope @ head_weight).to(rows.dtype))
            if grad_weight is not None:
                grad_weight += slope.T @ chunk
        ctx.save_for_backward(torch.cat(grad_rows) if wants_rows else None, grad_weight)
        ctx.weight_dtype = head_weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        upstream = gradients[0]
        return (
            None if grad_rows is None else (grad_rows * upstream).to(grad_rows.dtype),
            None if grad_weight is None else (grad_weight * upstream).to(ctx.weight_dtype),
            *[None] * 5,
        )


def check_weights(z_loss: float, label_smoothing: float) -> None:
    """Check the weights of the loss's extra terms.

    Raises:
        ValueError: One is outside its range.
    """
    if not z_loss >= 0:
        raise ValueError(f"z_loss={z_loss}: must be at least 0; 1e-4 is usual, 0 switches it off.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be at least 0 and below 1.")


def check_chunks(chunk_rows: int | None, softcap: float | None) -> None:
    """Check what only the chunked loss takes.

    Raises:
        ValueError: chunk_rows is below 1, or softcap is not above 0.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows}: must be at least 1.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: must be above 0, or None for no bound.")
