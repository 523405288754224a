"""Do the optimizers' kernels move parameters as the formulas do? Compared in float64 after some steps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, Case, Row
from benchmarks.gpu.measure import compare, kernel, poison
from torch import Tensor

STEPS = 5
"""Optimizer steps that are compared."""
LARGE, FEW = ((768, 768), (300_001,)), ((64, 64), (3001,))
"""Shapes beside the odd ones. FEW where a sign decides: among many numbers one lies so near to 0 that
rounding flips it, and then float32 is as right as float64."""


def optimizers(bench: Bench) -> Iterator[Case]:
    """All cases."""
    from scratchlm.optim.adamw import AdamW, AdamWReference
    from scratchlm.optim.lion import Lion, LionReference

    adamw, lion = ("adamw", AdamW, AdamWReference), ("lion", Lion, LionReference)
    cautious = {"cautious_decay": True}
    yield Case(f"AdamW, {STEPS} steps, many shapes", partial(_steps, bench, *adamw, LARGE))
    yield Case("AdamW, cautious decay", partial(_steps, bench, *adamw, FEW, **cautious))
    yield Case(f"Lion, {STEPS} steps, many shapes", partial(_steps, bench, *lion, FEW))
    yield Case("Lion, cautious decay", partial(_steps, bench, *lion, FEW, **cautious))
    for factor in (0.37, 1.0, float("nan")):
        yield Case(f"gradients times {factor}", partial(_scale, bench, factor))
    shapes = bench.pick(((12, 768, 768), (12, 768, 3072), (3, 3072, 768), (1, 100, 333)), ((2, 24, 40),))
    for shape in shapes:
        words = " x ".join(map(str, shape))
        yield Case(f"Newton-Schulz, {words}", partial(_newton_schulz, bench, shape))


def _shapes(bench: Bench, more: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """One number, no multiple of anything, a matrix, three dimensions, and `more`."""
    return [(1,), (7,), (129, 65), (2, 3, 5), *(bench.pick(more, ((8, 8), (301,))))]


def _steps(
    bench: Bench,
    op: str,
    fast: Callable[..., Any],
    formula: Callable[..., Any],
    more: tuple[tuple[int, ...], ...],
    **settings: Any,
) -> Row:
    """Run the optimizer as training does, with torch's operations, and as the formula in float64."""
    shapes = _shapes(bench, more)
    results = []
    for name, kind in (("triton", fast), ("plain", fast), ("exact", formula)):
        dtype = torch.float64 if name == "exact" else torch.float32
        params = [
            torch.nn.Parameter(bench.randn(*shape, dtype=torch.float32, seed=seed).to(dtype))
            for seed, shape in enumerate(shapes)
        ]
        optimizer = kind(params, **settings)
        if name != "exact":
            optimizer._move = kernel(op, name, bench)
        for step in range(STEPS):
            for seed, p in enumerate(params):
                p.grad = bench.randn(*p.shape, dtype=torch.float32, seed=100 * step + seed).to(dtype)
            poison(bench)
            optimizer.step()
        # as one: how a single number rounds is chance
        results.append([torch.cat([p.detach().flatten() for p in params])])
    return compare(*results, ["output"])


def _scale(bench: Bench, factor: float) -> Row:
    """Clipping's product; a factor that is no number must not pass unseen."""
    ours, plain = kernel("scale", "triton", bench), kernel("scale", "plain", bench)
    tensors = [
        bench.randn(*shape, dtype=torch.float32, seed=seed)
        for seed, shape in enumerate(_shapes(bench, LARGE))
    ]
    results: list[list[Tensor]] = []
    for function in (ours, plain):
        results.append([tensor.clone() for tensor in tensors])
        function(results[-1], torch.tensor(factor, device=bench.device))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    return {}


def _newton_schulz(bench: Bench, shape: tuple[int, int, int]) -> Row:
    ours, plain = kernel("orthogonalize", "triton", bench), kernel("orthogonalize", "plain", bench)
    matrices = bench.randn(*shape, dtype=torch.float32)
    exact = kernel("orthogonalize", "reference", bench)(matrices.double())
    poison(bench)
    found = [function(matrices, dtype=bench.half) for function in (ours, plain)]
    return compare(found[:1], found[1:], [exact], ["output"])
