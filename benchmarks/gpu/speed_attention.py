"""How fast is attention? Ours and each of torch's own, by name; operations counted as everybody does.

    forward    4 B H T^2 d operations, half of it if causal        backward   2.5 times that

The backend of torch's attention is pinned: on a Hopper GPU its default is cuDNN, so "faster than torch" means
nothing without the name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from benchmarks.gpu.cases import Bench, Case, MissingError, Row
from benchmarks.gpu.measure import kernel, milliseconds
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BACKWARD_OPERATIONS = 2.5
"""Five matrix products instead of two."""


class Shape(NamedTuple):
    """Attention with as many keys as queries."""

    batch: int
    heads: int
    tokens: int
    width: int
    kv_heads: int | None = None

    @property
    def operations(self) -> float:
        """Of the causal forward pass."""
        return 4 * self.batch * self.heads * self.tokens**2 * self.width / 2

    def __str__(self) -> str:
        grouped = f" ({self.kv_heads} for keys)" if self.kv_heads else ""
        return f"{self.batch} x {self.heads} heads{grouped} x {self.tokens:,} x d {self.width}"


LEADERBOARD = Shape(1, 16, 16_384, 64)
"""Stanford CS336 assignment 2, section 1.3.3."""
SHORT_64, LONG_64 = Shape(16, 32, 1024, 64), Shape(1, 32, 16_384, 64)
"""16,384 tokens and 2,048 numbers a token in all, as the papers of FlashAttention measure."""
SHORT_128, LONG_128 = Shape(16, 16, 1024, 128), Shape(1, 16, 16_384, 128)
TRAINING = Shape(64, 12, 1024, 64)
"""GPT-2 small, 65,536 tokens."""
TINY = Shape(1, 1, 32, 16)
PEERS = ("flash", "cudnn", "efficient")
"""Backends of torch's own."""


def speed_attention(bench: Bench) -> list[Case]:
    """All cases."""
    wanted = [
        (LEADERBOARD, "both", "leaderboard"),
        (SHORT_64, "forward", "forward-64-1k"),
        (LONG_64, "forward", "forward-64-16k"),
        (SHORT_128, "forward", "forward-128-1k"),
        (LONG_128, "forward", "forward-128-16k"),
        (SHORT_64, "backward", "backward-64-1k"),
        (LONG_64, "backward", "backward-64-16k"),
        (SHORT_128, "backward", None),
        (LONG_128, "backward", None),
        (TRAINING, "both", None),
    ]
    cases = []
    for shape, what, goal in wanted if not bench.tiny else wanted[:2] + wanted[5:6]:
        names = ["triton", *(["triton_one_pass"] if what != "forward" else []), *PEERS]
        if (shape, what) == (LEADERBOARD, "both"):
            names += ["flex", "FlashAttention2 of CS336, compiled"]
        for name in names:
            words = f"attention {WORDS[what]}, {shape}, {name}"
            run = partial(_attention, bench, bench.pick(shape, TINY), what, name, goal)
            cases.append(Case(words, run))
    cases += _others(bench)
    # what torch has to compile comes last: it takes seconds each
    return sorted(cases, key=lambda case: case.name.endswith(("flex", "compiled")))


WORDS = {"forward": "forward", "backward": "backward", "both": "forward+backward"}


def _others(bench: Bench) -> Iterator[Case]:
    """Masks and shapes without goals."""
    grouped = bench.pick(Shape(1, 32, 16_384, 128, 8), Shape(1, 2, 32, 16, 1))
    window = {"window": bench.pick(1024, 8)}
    for name in ("triton", "flash"):
        words = f"attention forward+backward, {grouped}, {name}"
        yield Case(words, partial(_attention, bench, grouped, "both", name, None))
    shape = bench.pick(LEADERBOARD, TINY)
    for words, masks in (("window of 1,024", window), ("soft-cap", {"softcap": 30.0})):
        run = partial(_attention, bench, shape, "both", "triton", None, **masks)
        yield Case(f"attention forward+backward, {shape}, {words}, triton", run)
    for name in ("triton", "flash"):
        yield Case(
            f"decode, 8 x 32 heads (8 for keys) x 32,768 keys x d 128, {name}", partial(_decode, bench, name)
        )


def backend_called(word: str) -> Any:
    """Return torch's constant for one of PEERS.

    Raises:
        MissingError: This torch has no such backend.
    """
    from torch.nn.attention import SDPBackend

    names = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    chosen = getattr(SDPBackend, names[word], None)
    if chosen is None:
        raise MissingError(f"this torch has no {names[word]}")
    return chosen


def pinned(backend: str) -> Callable[..., Tensor]:
    """Return torch's attention with one backend, causal, of our signature.

    Raises:
        MissingError: This torch has no such backend.
    """
    from torch.nn.attention import sdpa_kernel

    chosen = backend_called(backend)

    def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        with sdpa_kernel([chosen]):
            grouped = q.shape[1] != k.shape[1]
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return attention


def implementation(name: str, bench: Bench) -> Callable[..., Any]:
    """Return a kernel of ours, or a backend of torch's, by name."""
    if name == "flex" and bench.tiny:
        raise MissingError("flex has no gradient on a CPU")
    if name not in PEERS:
        return kernel("attention", name, bench)
    if bench.device.type != "cuda":
        return scaled_dot_product_attention_on_a_cpu
    return pinned(name)


def scaled_dot_product_attention_on_a_cpu(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """What stands for every backend in a rehearsal."""
    return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def course_class(bench: Bench) -> Callable[..., Tensor]:
    """Our autograd function of CS336, compiled, as the course's leaderboard calls it."""
    try:
        from scratchlm.cs336.systems import get_flashattention_autograd_function_triton as get
    except ImportError as error:
        raise MissingError(str(error)) from None
    apply = torch.compile(get().apply, backend=bench.pick("inductor", "aot_eager"))
    return lambda q, k, v: apply(q[0], k[0], v[0], True)[None]


def _attention(
    bench: Bench, shape: Shape, what: str, name: str, goal: str | None, *, causal: bool = True, **masks: Any
) -> Row:
    function = course_class(bench) if "CS336" in name else implementation(name, bench)
    heads = (shape.heads, *[shape.kv_heads or shape.heads] * 2)
    given = [
        bench.randn(shape.batch, n, shape.tokens, shape.width, seed=seed) for seed, n in enumerate(heads)
    ]
    q, k, v = (tensor.requires_grad_() for tensor in given)
    upstream = bench.randn(shape.batch, shape.heads, shape.tokens, shape.width, seed=3)
    if "CS336" not in name:
        masks = masks | ({} if causal else {"causal": False})

    def both() -> None:
        torch.autograd.grad(function(q, k, v, **masks), (q, k, v), upstream)

    if what == "both":
        row, operations = milliseconds(bench, both), (1 + BACKWARD_OPERATIONS) * shape.operations
    elif what == "forward":
        row, operations = milliseconds(bench, lambda: function(q, k, v, **masks)), shape.operations
    else:
        out = function(q, k, v, **masks)
        backward = partial(torch.autograd.grad, out, (q, k, v), upstream, retain_graph=True)
        row, operations = milliseconds(bench, backward), BACKWARD_OPERATIONS * shape.operations
    window = masks.get("window")
    if window is not None:
        operations *= 2 * window / shape.tokens  # about: of T / 2 keys a query sees the window's
    rate = {"rate": operations / row["ms"] / 1e9, "unit": "TFLOP/s"}
    return row | rate | {"goal": goal, "candidate": name, "shape": str(shape), "what": what}


def _decode(bench: Bench, name: str) -> Row:
    """One token of a text with a long cache: reading the cache once is all there is to do."""
    batch, heads, kv_heads, keys, width = bench.pick((8, 32, 8, 32_768, 128), (1, 2, 1, 40, 16))
    q = bench.randn(batch, heads, 1, width)
    k, v = (bench.randn(batch, kv_heads, keys, width, seed=seed) for seed in (1, 2))
    if name == "triton":
        try:
            from scratchlm.kernels.gpu.attention_decode import decode
        except ImportError as error:
            raise MissingError(str(error)) from None
        function = lambda: decode(q, k, v)  # noqa: E731
    else:
        function = lambda: implementation(name, bench)(q, k, v, causal=False)  # noqa: E731
    with torch.no_grad():
        row = milliseconds(bench, function)
    rate = {"rate": 2 * k.numel() * k.element_size() / row["ms"] / 1e6, "unit": "GB/s"}
    return row | rate | {"candidate": name, "goal": None}
