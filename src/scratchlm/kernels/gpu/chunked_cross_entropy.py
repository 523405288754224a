r"""Vectors, the head's matrix and targets in, the mean loss out: never more than a chunk of logits in memory.

    for each chunk of rows:                                       h rows, W head, both in the products' dtype
        z       = h W^T                                           matrix product, into one buffer for all
        loss, g = losses_and_gradient_(z)                         g takes the place of z
        dh      = g W                                             matrix product
        dW     += g^T h                                           matrix product, summed in float32

The loss is one number and so is the gradient that comes from above: dh and dW are computed while the logits
are there, and multiplied by it later. The products are the three that one table of all logits needs too, but
that table (65,536 x 50,304 in bfloat16: 6.6 GB) is never there. Each logit is written by the first product,
read and overwritten by the kernel, read by the other two. To torch.compile all this is one operation,
"scratchlm::chunked_cross_entropy", that it does not look into.

Source: Hsu et al. 2024 (Liger Kernel), https://arxiv.org/abs/2410.10989, section 3.2; our chunks are some
thousand rows longer than theirs, because short ones make the products slow.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels import cross_entropy as plain
from scratchlm.kernels.cross_entropy import IGNORE, check_chunks, check_weights
from scratchlm.kernels.gpu.cross_entropy import launch_losses
from scratchlm.kernels.gpu.support import require

CHUNK_BYTES = 2**31
"""Logits at once: 16,384 rows of 50,304 in bfloat16 when there are 65,536. Computed for an H200 and d_model
768: a chunk costs four passes over dW in float32 (0.14 ms at 4.3 TB/s) beside 5.4 ms of products (700
TFLOP/s); chunks half as long double that share."""
MEMORY_SHARE = 16
"""But no more than 1 / 16 of the GPU's memory: of all of it, not of what is free now, so that a run that goes
on later cuts the same chunks."""
ROW_BYTES = 128
"""Rows of the buffer begin at multiples of this, whatever the vocabulary: products and kernels then read and
write whole lines of the cache (128 bytes), 16 bytes at once in each thread."""


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

    float64 is left to the plain way (kernels/cross_entropy.py): its products are float64, its losses float32.

    Args:
        hidden: What the head turns into logits.
        head_weight: The head's matrix. Under autocast products take its dtype, and gradients keep theirs.
        targets: The ids that came; IGNORE leaves one out, any other that is no row of the head gives NaN.
        z_loss: Weight of the squared logsumexp, at least 0.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in [0, 1).
        softcap: Bound of the logits, softcap * tanh(logits / softcap); None for none.
        num_targets: Divide the sum by this number instead of that of the targets that count.
        chunk_rows: Rows of logits at once, at least 1; None for CHUNK_BYTES of them.

    Raises:
        ValueError: The shapes do not fit, a number is outside its range, or no kernel runs on this device.
    """
    check_weights(z_loss, label_smoothing)
    check_chunks(chunk_rows, softcap)
    _check_shapes(hidden, head_weight, targets)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if dtype == torch.float64:
        settings = {"softcap": softcap, "num_targets": num_targets, "chunk_rows": chunk_rows}
        terms = {"z_loss": z_loss, "label_smoothing": label_smoothing}
        return plain.chunked_cross_entropy(hidden, head_weight.to(dtype), targets, **terms, **settings)
    rows, ids = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    wanted = [tensor.requires_grad and torch.is_grad_enabled() for tensor in (rows, head_weight)]
    total, _, _ = _chunked_cross_entropy(
        rows, head_weight, ids, z_loss, label_smoothing, softcap, chunk_rows, dtype, *wanted
    )
    return total / ((ids != IGNORE).sum() if num_targets is None else num_targets)


def _check_shapes(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> None:
    fits = hidden.ndim > 0 and hidden.shape[:-1] == targets.shape and head_weight.ndim == 2
    if not fits or head_weight.shape[0] == 0 or head_weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, head_weight {tuple(head_weight.shape)}, targets "
            f"{tuple(targets.shape)}: need (..., d_model), (vocabulary, d_model) and (...)."
        )
    if targets.is_floating_point():
        raise ValueError(f"targets {targets.dtype}: give integers, the ids of tokens.")
    if not torch.compiler.is_compiling():  # a compiler cannot look at a GPU's properties
        require("chunked_cross_entropy", hidden, head_weight, targets)


def rows_of_a_chunk(num_rows: int, vocabulary: int, dtype: torch.dtype, memory_bytes: int | None) -> int:
    """Return how many rows of logits are computed at once, so that chunks are equally long.

    Args:
        num_rows: All rows.
        vocabulary: Columns.
        dtype: Of the logits.
        memory_bytes: The GPU's memory; None for any.

    Example: 65,536 rows of 50,304 in bfloat16 -> 16,384.
    """
    limit = CHUNK_BYTES if memory_bytes is None else min(CHUNK_BYTES, memory_bytes // MEMORY_SHARE)
    most = max(1, limit // (_padded(vocabulary, dtype) * dtype.itemsize))
    equal = max(1, -(-num_rows // max(1, -(-num_rows // most))))
    rounded = -(-equal // 128) * 128  # whole tiles of the products
    return rounded if equal > 128 and rounded <= most else equal


def _padded(vocabulary: int, dtype: torch.dtype) -> int:
    """Columns of the buffer."""
    lane = ROW_BYTES // dtype.itemsize
    return -(-vocabulary // lane) * lane


@torch.library.custom_op("scratchlm::chunked_cross_entropy", mutates_args=())
def _chunked_cross_entropy(
    rows: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype,
    wants_rows: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses and its derivatives by the rows and the head; empty where not wanted."""
    vocabulary, num_rows = head_weight.shape[0], rows.shape[0]
    if chunk_rows is None:
        memory = torch.cuda.get_device_properties(rows.device).total_memory if rows.is_cuda else None
        chunk_rows = rows_of_a_chunk(num_rows, vocabulary, dtype, memory)
    total, grad_rows, grad_weight = _empty_results(rows, head_weight, dtype, wants_rows, wants_weight)
    total.zero_()
    grad_weight.zero_()
    head = head_weight.to(dtype)
    buffer = head.new_empty(min(chunk_rows, num_rows), _padded(vocabulary, dtype))
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, num_rows, chunk_rows):
            place = slice(start, start + chunk_rows)
            chunk = rows[place].to(dtype)
            logits = buffer[: len(chunk), :vocabulary]
            torch.mm(chunk, head.T, out=logits)
            overwrite = wants_rows or wants_weight
            losses, _, _ = launch_losses(
                logits, targets[place], z_loss, label_smoothing, softcap, overwrite=overwrite
            )
            total += losses.sum()
            if wants_rows:
                torch.mm(logits, head, out=grad_rows[place])
            if wants_weight:
                grad_weight += _product_in_float32(logits.T, chunk)
    return total, grad_rows, grad_weight


@_chunked_cross_entropy.register_fake
def _(
    rows: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype,
    wants_rows: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(rows, head_weight, dtype, wants_rows, wants_weight)


def _empty_results(
    rows: Tensor, head_weight: Tensor, dtype: torch.dtype, wants_rows: bool, wants_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def place(like: Tensor, dtype: torch.dtype, *, wanted: bool) -> Tensor:
        return torch.empty(like.shape if wanted else (0,), dtype=dtype, device=like.device)

    total = torch.empty((), dtype=torch.float32, device=rows.device)
    return (
        total,
        place(rows, dtype, wanted=wants_rows),
        place(head_weight, torch.float32, wanted=wants_weight),
    )


def _product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """The product of a and b, its sums not rounded to their dtype."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, head_weight = inputs[:2]
    ctx.wanted = inputs[-2:]
    ctx.dtypes = rows.dtype, head_weight.dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients = [
        (gradient.float() * upstream).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    ]
    return (*gradients, *[None] * 8)


_chunked_cross_entropy.register_autograd(_backward, setup_context=_keep)
