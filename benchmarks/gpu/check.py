"""A kernel, its naive twin and inputs come in; how far both are from float64 goes out, or an error.

Everything is computed three times: by the kernel, by the twin in the same number format ("plain PyTorch") and
by the twin in float64, which counts as exact. The bound is a multiple of plain PyTorch's error
(measure.compare).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, MissedError, Row
from benchmarks.gpu.measure import compare, poison
from torch import Tensor

Arguments = Callable[[Sequence[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
"""From the tensors that are differentiated to the function's arguments, in the tensors' number format."""


def check(
    bench: Bench,
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    arguments: Arguments,
    *,
    names: Sequence[str],
    twice: bool = False,
) -> Row:
    """Compare output and gradients.

    Args:
        bench: Where.
        ours: The kernel.
        plain: Its twin.
        leaves: The tensors whose gradients are compared.
        arguments: How the function is called with them.
        names: What the leaves are called.
        twice: Whether a second call must give the same bits.

    Raises:
        MissedError: A result is beyond its bound, or changes from call to call.
    """
    exact = run(plain, [leaf.double() for leaf in leaves], arguments)
    usual = run(plain, leaves, arguments)
    poison(bench)
    found = run(ours, leaves, arguments)
    row = compare(found, usual, exact, ["output", *names])
    if twice:
        poison(bench)
        again = run(ours, leaves, arguments)
        changed = [
            name
            for name, a, b in zip(["output", *names], found, again, strict=True)
            if a is not None and b is not None and not torch.equal(a, b)
        ]
        if changed:
            raise MissedError(f"changes from call to call: {', '.join(changed)}", row)
    return row


def run(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], arguments: Arguments
) -> list[Tensor | None]:
    """Return the output and the gradient of each leaf, for a random gradient of the output."""
    # layouts stay: a copy of a strided tensor would test another path
    fresh = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    positional, named = arguments(fresh)
    out = function(*positional, **named)
    if not out.requires_grad:
        return [out.detach(), *[None] * len(fresh)]
    generator = torch.Generator(out.device).manual_seed(1)
    # rounded to the 16-bit formats first, so that the three computations get the same numbers
    upstream = torch.randn(out.shape, generator=generator, device=out.device).bfloat16().to(out.dtype)
    gradients = torch.autograd.grad(out, fresh, upstream, allow_unused=True)
    return [out.detach(), *gradients]


def refuses(call: Callable[[], Any]) -> Row:
    """Check that bad input gets a ValueError with a sentence; return what it says.

    Raises:
        MissedError: It was taken.
    """
    try:
        call()
    except ValueError as error:
        return {"says": str(error)[:200]}
    raise MissedError("took what it should refuse", {})
