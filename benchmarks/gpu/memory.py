"""How much memory does attention need? Linear in the number of tokens, where the reference's is quadratic."""

from functools import partial

import torch
from benchmarks.gpu.cases import Bench, Case, Row
from benchmarks.gpu.measure import kernel, peak_bytes

TOKENS = (4096, 8192, 16_384, 32_768, 65_536)
HEADS, WIDTH = 16, 64
"""Of the leaderboard's shape."""


def memory(bench: Bench) -> list[Case]:
    """All cases, the longest text last."""
    cases = []
    for tokens in bench.pick(TOKENS, (16, 32)):
        for name in ("triton", "reference"):
            words = f"attention forward+backward, 1 x {HEADS} heads x {tokens:,} x d {WIDTH}, {name}"
            cases.append(Case(words, partial(_attention, bench, tokens, name)))
    return cases


def _attention(bench: Bench, tokens: int, name: str) -> Row:
    """Inputs and their gradients are not counted twice: the peak above what is there before."""
    function = kernel("attention", name, bench)
    heads, width = bench.pick((HEADS, WIDTH), (1, 16))
    q, k, v = (bench.randn(1, heads, tokens, width, seed=seed).requires_grad_() for seed in range(3))
    upstream = bench.randn(1, heads, tokens, width, seed=3)
    fields = {"tokens": tokens, "candidate": name, "goal": "memory"}
    # the scores alone, in the inputs' number format: what the reference cannot do without
    fields["score_bytes"] = heads * tokens**2 * q.element_size() if name == "reference" else 0
    if bench.device.type == "cuda" and fields["score_bytes"] > torch.cuda.mem_get_info()[1]:
        return fields | {"status": "out of memory", "why": "the scores alone are larger than the device"}
    try:
        fields["peak_bytes"] = peak_bytes(
            bench, lambda: torch.autograd.grad(function(q, k, v), (q, k, v), upstream)
        )
    except torch.OutOfMemoryError as error:
        return fields | {"status": "out of memory", "why": str(error).splitlines()[0]}
    return fields
