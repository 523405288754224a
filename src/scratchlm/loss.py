r"""Logits and the tokens that really came in, one number out: the mean cross-entropy, in nats per token.

    lse   = logsumexp(z) = max(z) + log(sum(exp(z - max(z))))
    loss  = lse - (1 - s) z[target] - s mean(z) + w lse^2            s label_smoothing, w z_loss

With s = w = 0 that is -log softmax(z)[target]. Label smoothing takes the share s of each target and spreads
it evenly over the V tokens. The z-loss pulls lse towards 0: softmax does not see a common offset of all
logits, which may otherwise drift until bfloat16 holds it no more. Targets of IGNORE count neither in the sum
nor in the mean. The arithmetic is in kernels/cross_entropy.py, for GPUs in kernels/gpu/cross_entropy.py.

    bits per byte = nats per token * tokens / (bytes * ln 2)

compares models with different tokenizers. `chunked_cross_entropy` never holds all logits at once.

Source: label smoothing: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7 (as in torch);
z-loss: Chowdhery et al. 2022 (PaLM), https://arxiv.org/abs/2204.02311, section 5, there with w = 1e-4.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels import choose
from scratchlm.kernels import cross_entropy as plain

IGNORE = plain.IGNORE
"""Targets with this value are left out of the loss."""


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    num_targets: Tensor | None = None,
    overwrite: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean loss over the targets that are not IGNORE; NaN if there are none, as torch has it.

    Args:
        logits: One row of numbers per target.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: Weight of the squared logsumexp, at least 0.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in [0, 1).
        num_targets: Divide the sum by this number instead: that of a whole batch of which these are a part.
        overwrite: Allow the gradient to take the logits' memory, which are lost then, and with them a
            second backward pass. Saves a table of all logits on a GPU; does nothing elsewhere.

    Example: logits [[0, 0]], targets [1] -> ln 2 = 0.693.
    """
    losses = token_losses(
        logits, targets, z_loss=z_loss, label_smoothing=label_smoothing, overwrite=overwrite
    )
    return losses.sum() / ((targets != IGNORE).sum() if num_targets is None else num_targets)


def token_losses(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> Float[Tensor, "*batch"]:
    """Return each target's loss in nats, 0 where it is IGNORE; arguments as in `cross_entropy`."""
    function = plain.token_losses
    if logits.is_cuda and _name_on_gpu("token_losses", logits.device) == "triton":
        from scratchlm.kernels.gpu.cross_entropy import token_losses as function
    return function(logits, targets, z_loss=z_loss, label_smoothing=label_smoothing, overwrite=overwrite)


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
    """Return cross_entropy(hidden head_weight^T, targets) with at most `chunk_rows` rows of logits in memory.

    Args:
        hidden: What the head turns into logits.
        head_weight: The head's matrix.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: As in `cross_entropy`.
        label_smoothing: As in `cross_entropy`.
        softcap: Bound of the logits, softcap * tanh(logits / softcap); None for none.
        num_targets: As in `cross_entropy`.
        chunk_rows: Rows of logits at once, at least 1; None for what suits the device.

    Raises:
        ValueError: chunk_rows is below 1, or a weight is outside its range.
    """
    function = plain.chunked_cross_entropy
    if hidden.is_cuda and _name_on_gpu("chunked_cross_entropy", hidden.device) == "triton":
        from scratchlm.kernels.gpu.chunked_cross_entropy import chunked_cross_entropy as function
    return function(
        hidden,
        head_weight,
        targets,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        softcap=softcap,
        num_targets=num_targets,
        chunk_rows=chunk_rows,
    )


def _name_on_gpu(op: str, device: torch.device) -> str:
    """What "auto" takes on this GPU; a compiler takes it as given instead of reading how it is found."""
    return choose(op, device=device).name


# what torch.compiler.assume_constant_result does; that one imports the compiler, a second for every command
_name_on_gpu._dynamo_marked_constant = True


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: int) -> float:
    """Return the loss in bits per byte of text.

    Example: 2 nats per token at 4 bytes per token -> 2 / (4 ln 2) = 0.721.

    Raises:
        ValueError: num_bytes is not positive.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes={num_bytes}: bits per byte needs at least one byte of text.")
    return nats_per_token * num_tokens / (num_bytes * math.log(2))
