r"""Logits and targets in, each target's loss out, by the kernels of cross_entropy_kernels.py.

    token_losses            forward: reads the logits once.  backward: reads them again, writes the gradient
                            overwrite=True: over the logits themselves, so that no second table is needed
    losses_and_gradient_    one kernel for both, for a loss whose gradient from above is one number

Logits are read by two strides, one for the rows of a text and one for texts: logits[:, :-1] is not copied,
other layouts are. torch.compile knows the operations by name, "scratchlm::token_losses"; in what it makes the
gradient gets a table of its own, because its backward pass may not write over what the forward pass saved.

Source: as in cross_entropy_kernels.py.
"""

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels import cross_entropy as plain
from scratchlm.kernels.cross_entropy import check_weights
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.cross_entropy_kernels import gradient_kernel, losses_kernel
from scratchlm.kernels.gpu.support import require

LARGEST_BLOCK = 8192
"""Columns at once. The second-level cache (50 MB) should hold all rows that are worked on: 16 warps with 40
registers a thread let 3 programs share a processor, and 132 * 3 rows of 50,304 in bfloat16 are 40 MB."""
COLUMNS_PER_THREAD = 16
"""Two loads of 16 bytes under way in each thread: 1,536 threads of a processor ask for 48 kB, where 4.3 TB/s
at 800 ns (computed: Little's law) want 26 kB of each of 132 processors."""
LARGEST_WARPS = 16
"""Warps that share a row of LARGEST_BLOCK columns at a time."""


class _Layout(NamedTuple):
    """Rows as a kernel finds them: r // num_inner * stride_outer + r % num_inner * stride_inner is row r."""

    rows: Tensor
    num_rows: int
    num_inner: int
    stride_outer: int
    stride_inner: int


def token_losses(
    logits: Float[Tensor, "*batch vocab"],
    targets: Int[Tensor, "*batch"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    overwrite: bool = False,
) -> Float[Tensor, "*batch"]:
    """Return each target's loss in nats, 0 where it is IGNORE, NaN where there is no such token.

    float64 is left to the plain way (kernels/cross_entropy.py), whose losses are float32 as everywhere.

    Args:
        logits: One row of numbers per target.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: Weight of the squared logsumexp, at least 0.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in [0, 1).
        overwrite: Write the gradient over the logits, and over all tensors that share their memory; a second
            backward pass is then an error. Logits that no operation made (leaves) are never overwritten.

    Raises:
        ValueError: The shapes do not fit, a weight is outside its range, or no kernel runs on this device.
    """
    check_weights(z_loss, label_smoothing)
    check_logits(logits, targets)
    if logits.dtype == torch.float64:
        return plain.token_losses(logits, targets, z_loss=z_loss, label_smoothing=label_smoothing)
    return _token_losses(logits, targets, z_loss, label_smoothing, overwrite and _may_overwrite(logits))[0]


def losses_and_gradient_(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
) -> Float[Tensor, " rows"]:
    """Return each target's loss, and turn the logits into its gradient in the same pass over memory.

    Args:
        logits: One row of numbers per target; rows may lie further apart than they are long.
        targets: The ids that came; IGNORE leaves one out.
        z_loss: As in `token_losses`.
        label_smoothing: As in `token_losses`.
        softcap: Bound of the logits, softcap * tanh(logits / softcap); the gradient is that of the unbounded.

    Raises:
        ValueError: As in `token_losses`, or the columns of `logits` do not lie side by side, or are float64.
    """
    check_weights(z_loss, label_smoothing)
    check_logits(logits, targets)
    if logits.dtype == torch.float64:
        raise ValueError("logits torch.float64: the kernel computes in float32; give float32, or 16 bits.")
    if logits.stride(-1) != 1:
        raise ValueError(
            f"logits with stride {logits.stride(-1)} between columns: they are overwritten in place and must "
            "lie side by side; give logits.contiguous()."
        )
    return launch_losses(logits, targets, z_loss, label_smoothing, softcap, overwrite=True)[0]


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Check that there is one row of logits per target, on a device with kernels.

    Raises:
        ValueError: There is not, or they are not.
    """
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape or logits.shape[-1] == 0:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: logits need the targets' "
            "shape and one more dimension, the vocabulary, which is not empty."
        )
    if not logits.is_floating_point() or targets.is_floating_point():
        raise ValueError(f"logits {logits.dtype}, targets {targets.dtype}: give floats and integers.")
    if not torch.compiler.is_compiling():  # a compiler cannot look at a GPU's properties
        require("token_losses", logits, targets)


def launch_losses(
    logits: Tensor,
    targets: Tensor,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    *,
    overwrite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, largest logits and sums of exponentials of checked tensors.

    With `overwrite` the logits become their gradient.
    """
    losses, tops, sums = _empty_results(logits, targets)
    layout = _layout(logits)
    assert not overwrite or layout.rows.data_ptr() == logits.data_ptr(), "a copy was overwritten"
    if layout.num_rows == 0:
        return losses, tops, sums
    with torch.cuda.device_of(logits):
        losses_kernel[(layout.num_rows,)](
            layout.rows,
            targets.contiguous(),
            losses,
            tops,
            sums,
            layout.stride_outer,
            layout.stride_inner,
            layout.num_inner,
            z_loss,
            label_smoothing,
            1.0 if softcap is None else softcap,
            CAPPED=softcap is not None,
            SMOOTHED=label_smoothing > 0,
            OVERWRITE=overwrite,
            **_tiles(logits.shape[-1], logits.element_size()),
        )
    return losses, tops, sums


def _layout(logits: Tensor) -> _Layout:
    """Two strides for any number of leading dimensions; a copy only where two cannot say it."""
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    rows = logits.flatten(0, -3) if logits.ndim > 2 else logits.reshape(1, -1, logits.shape[-1])
    num_outer, num_inner = rows.shape[:2]
    return _Layout(rows, num_outer * num_inner, num_inner, rows.stride(0), rows.stride(1))


def _may_overwrite(logits: Tensor) -> bool:
    """Whether the logits' memory is free to be written: made by an operation, each number in it once."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not logits.requires_grad:
        return False
    owner = logits if logits._base is None else logits._base
    once = all(stride > 0 for stride, size in zip(logits.stride(), logits.shape, strict=True) if size > 1)
    return owner.grad_fn is not None and once


def _tiles(vocabulary: int, item_bytes: int) -> dict[str, int]:
    """A kernel's constants for rows of so many numbers: whole blocks, then a tail just large enough."""
    lanes = 16 // item_bytes
    block = max(lanes, min(LARGEST_BLOCK, triton.next_power_of_2(vocabulary)))
    tail = max(1, triton.cdiv(vocabulary % block, lanes))
    return {
        "VOCABULARY": vocabulary,
        "GROUPS": block // lanes,
        "TAIL_GROUPS": triton.next_power_of_2(tail),
        "LANES": lanes,
        "num_warps": min(LARGEST_WARPS, max(1, block // (32 * COLUMNS_PER_THREAD))),
    }


@torch.library.custom_op("scratchlm::token_losses", mutates_args=())
def _token_losses(
    logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float, overwrite: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_losses(logits, targets, z_loss, label_smoothing, None, overwrite=False)


@_token_losses.register_fake
def _(
    logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float, overwrite: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(logits, targets)


def _empty_results(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    return losses, torch.empty_like(losses), torch.empty_like(losses)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, ctx.z_loss, ctx.label_smoothing, ctx.overwrite = inputs
    ctx.save_for_backward(logits, targets, *output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets, tops, sums = ctx.saved_tensors
    terms = (targets, tops, sums, upstream, ctx.z_loss, ctx.label_smoothing)
    if ctx.overwrite:
        gradient = (
            logits.detach()
        )  # the same memory; autograd's count of changes makes a second pass an error
        _token_losses_gradient_(gradient, *terms)
    else:
        gradient = _token_losses_gradient(logits, *terms)
    return gradient, None, None, None, None


_token_losses.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("scratchlm::token_losses_gradient", mutates_args=())
def _token_losses_gradient(
    logits: Tensor,
    targets: Tensor,
    tops: Tensor,
    sums: Tensor,
    upstream: Tensor,
    z_loss: float,
    label_smoothing: float,
) -> Tensor:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _launch_gradient(logits, gradient, targets, tops, sums, upstream, z_loss, label_smoothing)
    return gradient


@_token_losses_gradient.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    tops: Tensor,
    sums: Tensor,
    upstream: Tensor,
    z_loss: float,
    label_smoothing: float,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op("scratchlm::token_losses_gradient_", mutates_args=("logits",))
def _token_losses_gradient_(
    logits: Tensor,
    targets: Tensor,
    tops: Tensor,
    sums: Tensor,
    upstream: Tensor,
    z_loss: float,
    label_smoothing: float,
) -> None:
    if _layout(logits).rows.data_ptr() == logits.data_ptr():
        _launch_gradient(logits, logits, targets, tops, sums, upstream, z_loss, label_smoothing)
        return
    logits.copy_(_token_losses_gradient(logits, targets, tops, sums, upstream, z_loss, label_smoothing))


def _launch_gradient(
    logits: Tensor,
    gradient: Tensor,
    targets: Tensor,
    tops: Tensor,
    sums: Tensor,
    upstream: Tensor,
    z_loss: float,
    label_smoothing: float,
) -> None:
    source, sink = _layout(logits), _layout(gradient)
    if source.num_rows == 0:
        return
    with torch.cuda.device_of(logits):
        gradient_kernel[(source.num_rows,)](
            source.rows,
            targets.contiguous(),
            tops,
            sums,
            upstream.contiguous(),  # a mean's gradient is one number, repeated by a stride of 0
            sink.rows,
            source.stride_outer,
            source.stride_inner,
            sink.stride_outer,
            sink.stride_inner,
            source.num_inner,
            z_loss,
            label_smoothing,
            **_tiles(logits.shape[-1], logits.element_size()),
        )


def configurations() -> list[Configuration]:
    """Return what `_tiles` chooses: long, odd and short vocabularies, all dtypes and terms of the loss."""
    made = []
    for vocabulary in (50_304, 50_257, 4096, 65):
        for kind, item_bytes in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
            tiles = _tiles(vocabulary, item_bytes)
            warps, name = tiles.pop("num_warps"), f"{kind}, vocabulary {vocabulary}"
            made.append(_configuration(f"gradient, {name}", gradient_kernel, kind, tiles, warps))
            every = (vocabulary, kind) == (50_304, "bf16")
            for number in range(8) if every else (0, 1, 7):
                flags = {"OVERWRITE": bool(number & 1), "SMOOTHED": bool(number & 2), "CAPPED": number > 3}
                title = ", ".join(["losses", name, *(flag.lower() for flag, on in flags.items() if on)])
                made.append(_configuration(title, losses_kernel, kind, tiles | flags, warps))
    return made


def _configuration(
    name: str, kernel: Any, kind: str, constants: dict[str, Any], num_warps: int
) -> Configuration:
    """How a kernel is compiled for logits of one kind."""
    types = {argument: "*fp32" if argument.endswith("_pointer") else "fp32" for argument in kernel.arg_names}
    types |= {"targets_pointer": "*i64", "logits_pointer": f"*{kind}", "gradient_pointer": f"*{kind}"}
    types |= {argument: "i64" for argument in types if argument.startswith("stride_")} | {"num_inner": "i32"}
    signature = {argument: types[argument] for argument in kernel.arg_names if not argument.isupper()}
    return Configuration(name, kernel, signature, constants, num_warps, matrix=False)
