"""Is attention right on the device? Every mask, width and layout of the kernels, against float64."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, Case, MissedError, MissingError, Row
from benchmarks.gpu.check import check, refuses
from benchmarks.gpu.measure import compare, kernel, poison
from torch import Tensor

MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 100},
    "window of 1": {"window": 1},
    "soft-cap": {"softcap": 5.0},
    "ALiBi": {"slopes": True},
    "documents": {"documents": True},
    "documents, full": {"documents": True, "causal": False},
    "window, ALiBi, soft-cap, documents": {"window": 77, "slopes": True, "softcap": 20.0, "documents": True},
}
WIDTHS = (16, 32, 40, 64, 80, 96, 128, 256)
TUNING_SECONDS = 30
"""To compile the nine tiles of one case, some seconds each, beside other workers; later it is left out."""
MOST_ELEMENTS = 2**31
"""Offsets into larger tensors need 64 bits."""


def correctness_attention(bench: Bench) -> list[Case]:
    """All cases."""
    return [*_masks(bench), *_shapes(bench), *_formats(bench), *_decoding(bench), *_edges(bench)]


def attend(
    bench: Bench,
    *,
    name: str = "triton",
    batch: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    queries: int | None = None,
    keys: int | None = None,
    width: int = 64,
    dtype: torch.dtype | None = None,
    packed: bool = False,
    twice: bool = False,
    **masks: Any,
) -> Row:
    """Check one shape; `packed` reads queries, keys and values from one projection by strides."""
    from scratchlm.kernels.attention_reference import attention

    ours = kernel("attention", name, bench)
    keys = keys or bench.pick(1024, 40)
    queries, kv_heads = queries or keys, kv_heads or heads
    if packed:
        leaves = [bench.randn(batch, keys, heads + 2 * kv_heads, width, dtype=dtype)]
        names = ["d_packed"]
    else:
        shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
        leaves = [
            bench.randn(batch, n, t, width, dtype=dtype, seed=seed) for seed, (n, t) in enumerate(shapes)
        ]
        names = ["dq", "dk", "dv"]
    arguments = partial(_arguments, packed=(heads, kv_heads) if packed else None, masks=masks)
    return check(bench, ours, attention, leaves, arguments, names=names, twice=twice)


def _arguments(
    leaves: list[Tensor], *, packed: tuple[int, int] | None, masks: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    if packed is not None:
        heads, kv_heads = packed
        q, k, v = leaves[0].transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    else:
        q, k, v = leaves
    masks = dict(masks)
    if masks.pop("slopes", False):
        masks["slopes_H"] = (2.0 ** -(1 + torch.arange(q.shape[1], device=q.device) % 8)).to(torch.float32)
    if masks.pop("documents", False):
        # about three documents a row, their borders nowhere near a tile's
        places = torch.arange(k.shape[2], device=q.device)
        masks["documents_BS"] = torch.stack([places * 3 // (k.shape[2] + 7 * b) for b in range(len(k))])
    return (q, k, v), masks


def _masks(bench: Bench) -> Iterator[Case]:
    for words, masks in MASKS.items():
        masks = dict(masks)
        if bench.tiny and "window" in masks:
            masks["window"] = min(masks["window"], 13)
        yield Case(f"attention, {words}", partial(attend, bench, twice=words == "causal", **masks))
    everything = {**MASKS["window, ALiBi, soft-cap, documents"], "window": bench.pick(77, 13)}
    odd = {"keys": bench.pick(1013, 37), "heads": 8, "kv_heads": 2, **everything}
    yield Case("attention, all at once, 4 heads a key head, odd length", partial(attend, bench, **odd))
    for words in bench.pick(("causal", "full", "window"), ("causal",)):
        settings = {"name": "triton_one_pass", **MASKS[words]}
        yield Case(f"attention in one backward pass, {words}", partial(attend, bench, **settings))


def _shapes(bench: Bench) -> Iterator[Case]:
    for width in bench.pick(WIDTHS, (16, 24)):
        settings = {"width": width, "keys": bench.pick(777, 33)}
        yield Case(
            f"attention, d_head {width}, {settings['keys']} tokens", partial(attend, bench, **settings)
        )
    long = bench.pick(8192, 70)
    shapes: dict[str, dict[str, Any]] = {
        "one token": {"keys": 1},
        "one query, many keys": {"queries": 1, "keys": bench.pick(777, 50)},
        "few queries, many keys": {"queries": 17, "keys": bench.pick(1000, 50)},
        "few queries, many keys, full": {"queries": 17, "keys": bench.pick(1000, 50), "causal": False},
        "more queries than keys, full": {"queries": bench.pick(300, 40), "keys": 17, "causal": False},
        "one key head": {"heads": 8, "kv_heads": 1},
        "read from a packed projection": {"packed": True},
        "read from a packed projection, 2 heads a key head": {"packed": True, "kv_heads": 2},
        f"{long} tokens": {"batch": 1, "heads": 2, "keys": long},
        f"{long} tokens, window of 300": {
            "batch": 1,
            "heads": 2,
            "keys": long,
            "window": bench.pick(300, 20),
        },
    }
    for words, settings in shapes.items():
        yield Case(f"attention, {words}", partial(attend, bench, **settings))


def _formats(bench: Bench) -> Iterator[Case]:
    for dtype in (torch.float32, torch.float16):
        for width in bench.pick((64, 128), (16,)):
            settings = {"dtype": dtype, "width": width, "keys": bench.pick(500, 40)}
            yield Case(f"attention, {str(dtype)[6:]}, d_head {width}", partial(attend, bench, **settings))


def _decoding(bench: Bench) -> Iterator[Case]:
    lengths = bench.pick((1, 77, 4096, 32768), (1, 45))
    for keys in lengths:
        yield Case(f"decode, one query, {keys} keys", partial(_decode, bench, keys))
    most = lengths[-1]
    options: dict[str, dict[str, Any]] = {
        "4 heads a key head": {"kv_heads": 2},
        "window": {"window": bench.pick(1000, 11)},
        "soft-cap and ALiBi": {"softcap": 10.0, "slopes": True},
        "batch of 1": {"batch": 1, "kv_heads": 1},
    }
    for words, settings in options.items():
        yield Case(f"decode, {most} keys, {words}", partial(_decode, bench, most, **settings))


def _decode(bench: Bench, keys: int, *, batch: int = 3, kv_heads: int = 8, **masks: Any) -> Row:
    from scratchlm.kernels.attention_reference import attention

    try:
        from scratchlm.kernels.gpu.attention_decode import decode
    except ImportError as error:
        raise MissingError(str(error)) from None
    leaves = [
        bench.randn(batch, n, t, 64, seed=n + t) for n, t in ((8, 1), (kv_heads, keys), (kv_heads, keys))
    ]
    found = []
    with torch.no_grad():
        for function, dtype in ((decode, bench.half), (attention, bench.half), (attention, torch.float64)):
            poison(bench)
            given = [leaf.to(dtype) for leaf in leaves]
            (q, k, v), named = _arguments(given, packed=None, masks=masks)
            found.append([function(q, k, v, **named)])
    return compare(*found, ["output"])


def _edges(bench: Bench) -> Iterator[Case]:
    yield Case("attention, compiled without a graph break", partial(_compiled, bench))
    yield Case("attention, NaN stays where it is", partial(_nan, bench))
    yield Case("attention, no rows", partial(_empty, bench))
    yield Case("attention, large scores", partial(_large, bench))
    yield Case("attention, wrong shapes are refused", partial(_refused, bench))
    if not bench.tiny:  # a rehearsal has one device
        yield Case("attention, keys on another device are refused", partial(_elsewhere, bench))
    yield Case("FlashAttention2 of CS336, our Triton kernels", partial(_course, bench))
    yield Case("attention with measured tiles", partial(_tuned, bench))


def _compiled(bench: Bench) -> Row:
    from scratchlm.kernels.attention_reference import attention

    backend = bench.pick("inductor", "aot_eager")
    ours = kernel("attention", "triton", bench)
    compiled = torch.compile(lambda q, k, v: ours(q * 1.0, k, v) * 1.0, fullgraph=True, backend=backend)
    leaves = [bench.randn(2, 4, bench.pick(256, 32), bench.pick(64, 16), seed=seed) for seed in range(3)]
    return check(
        bench, compiled, attention, leaves, lambda given: (tuple(given), {}), names=["dq", "dk", "dv"]
    )


def _nan(bench: Bench) -> Row:
    ours = kernel("attention", "triton", bench)
    q, k, v = (bench.randn(1, 2, bench.pick(300, 40), 64, seed=seed) for seed in range(3))
    at = q.shape[2] // 2
    q[0, 0, at] = float("nan")
    out = ours(q, k, v)
    bad = out.isnan().any(dim=-1)
    expected = torch.zeros_like(bad)
    expected[0, 0, at] = True
    if not torch.equal(bad, expected):
        raise MissedError(f"NaN in one query gave NaN in {int(bad.sum())} rows instead of 1", {})
    k[0, 1, at] = float("nan")
    bad = ours(q, k, v).isnan().any(dim=-1)
    expected[0, 1, at:] = True
    if not torch.equal(bad, expected):
        raise MissedError(f"NaN in one key gave {int(bad.sum())} NaN rows, not {int(expected.sum())}", {})
    return {}


def _empty(bench: Bench) -> Row:
    ours = kernel("attention", "triton", bench)
    q = torch.empty(0, 2, 8, 64, device=bench.device, dtype=bench.half, requires_grad=True)
    out = ours(q, q, q)
    out.sum().backward()
    assert out.shape == q.shape, out.shape
    return {}


def _large(bench: Bench) -> Row:
    """Scores of several hundred: without the running maximum exp would overflow."""
    from scratchlm.kernels.attention_reference import attention

    ours = kernel("attention", "triton", bench)
    size = bench.pick(500, 40)
    leaves = [bench.randn(1, 2, size, 64, seed=seed) * scale for seed, scale in enumerate((8.0, 8.0, 1.0))]
    leaves = [leaf.to(bench.half) for leaf in leaves]
    return check(bench, ours, attention, leaves, lambda given: (tuple(given), {}), names=["dq", "dk", "dv"])


def _refused(bench: Bench) -> Row:
    ours = kernel("attention", "triton", bench)
    q = bench.randn(1, 3, 8, 64)
    return refuses(lambda: ours(q, q[:, :2], q[:, :2]))


def _elsewhere(bench: Bench) -> Row:
    ours = kernel("attention", "triton", bench)
    q = bench.randn(1, 2, 8, 64)
    return refuses(lambda: ours(q, q.cpu(), q.cpu()))


def _tuned(bench: Bench) -> Row:
    """Measure a few tiles for one small shape, then check the results of the fastest.

    All candidates are up to 25 a kernel, 75 compilations. Here each of the three kernels tries 3: the
    table's tile, and its first other shape by pointers and by descriptors. Interpreted kernels take the
    table's without measuring.
    """
    from benchmarks.gpu.sweep_constants import replaced

    if bench.until - time.time() < TUNING_SECONDS:
        return {"status": "cut", "why": f"less than {TUNING_SECONDS} s were left to compile its tiles"}
    from scratchlm.kernels.gpu import attention_tuning as tuning

    few = {name: shapes[:1] for name, shapes in tuning.SHAPES.items()}
    with replaced(("attention_tuning",), {"SHAPES": few, "STAGES": tuning.STAGES[:1]}):
        row = attend(bench, name="triton_tuned")
    return row | {"most_candidates": 3 * len(few)}


def _course(bench: Bench) -> Row:
    from scratchlm.kernels.attention_reference import attention

    try:
        from scratchlm.cs336.systems import get_flashattention_autograd_function_triton as get
    except ImportError as error:
        raise MissingError(str(error)) from None
    apply: Callable[..., Tensor] = get().apply
    leaves = [bench.randn(4, bench.pick(128, 32), bench.pick(64, 16), seed=seed) for seed in range(3)]
    plain = lambda q, k, v, causal: attention(q[:, None], k[:, None], v[:, None], causal=causal)[:, 0]  # noqa: E731
    return check(bench, apply, plain, leaves, lambda given: ((*given, True), {}), names=["dq", "dk", "dv"])


def beyond_int32(bench: Bench) -> Row:
    """All rows are computed, the last row's heads are compared: they lie behind 2^31 numbers."""
    from scratchlm.kernels.attention_reference import attention

    ours = kernel("attention", "triton", bench)
    batch, heads, tokens, width = bench.pick((1100, 16, 1024, 128), (2, 1, 16, 16))
    assert bench.tiny or batch * heads * tokens * width > MOST_ELEMENTS
    leaves = [
        torch.empty(batch, heads, tokens, width, device=bench.device, dtype=bench.half) for _ in range(3)
    ]
    for leaf in leaves:
        leaf.normal_()
        leaf.requires_grad_()
    out = ours(*leaves)
    upstream = torch.zeros_like(out)
    upstream[-1].normal_()
    gradients = torch.autograd.grad(out, leaves, upstream)
    found = [out[-1:].detach(), *(gradient[-1:] for gradient in gradients)]
    last = [leaf[-1:].detach() for leaf in leaves]
    others = []
    for dtype in (bench.half, torch.float64):
        given = [leaf.to(dtype).requires_grad_() for leaf in last]
        result = attention(*given)
        others.append([result.detach(), *torch.autograd.grad(result, given, upstream[-1:].to(dtype))])
    return compare(found, *others, ["output", "dq", "dk", "dv"])
