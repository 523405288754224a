# ruff: noqa: ANN001, ANN201, ANN202  (arguments of device functions are Triton's, without Python types)
r"""One new query a head and a long cache in, its weighted mean of the values out: the keys are shared out.

A model that writes text has one query (or a few) and thousands of keys. There is little to compute: every key
and value is used once, and the time is that of reading them. With a program for each tile of queries, as in
attention_forward.py, a batch of 1 with 8 key heads would keep 8 of a GPU's 132 multiprocessors busy. So the
keys of a head are cut into splits, and each split gets a program:

    keys     |---- split 0 ----|---- split 1 ----|---- split 2 ----|
    partial   out_0, lse_0      out_1, lse_1      out_2, lse_2         each a softmax over its own keys
    merged    out = sum over i of out_i 2^(lse_i - m) / sum over i of 2^(lse_i - m),   m = max over i of lse_i

The second step is the online softmax once more, with a split in the place of a key. All query heads of a key
head are rows of one matrix product, so each key is read once for all of them; a matrix instruction has at
least 16 rows, and empty ones cost nothing while memory is the limit. How many splits: enough to fill the
multiprocessors, each with enough keys to be worth its start (`share`).

Source: Dao, Haziza, Massa and Sizov 2023, "Flash-Decoding for long-context inference",
https://pytorch.org/blog/flash-decoding/. The rule for the number of splits is ours.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.attention_reference import check_attention
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_memory import padded
from scratchlm.kernels.gpu.attention_scores import LOG2E, LOWEST, bend, load_rows
from scratchlm.kernels.gpu.support import require, require_heads

MAX_ROWS = 32
"""Rows of one program: query heads of a key head, times queries. More go to further programs, which find the
keys in the L2; 64 rows take all 255 registers of a thread (compiled ahead)."""

MAX_ROWS_FLOAT32 = 16
"""The same for float32, whose products run on the ordinary units: 32 rows spill (compiled ahead)."""

PROGRAMS_AT_ONCE = 2
"""Programs that share a multiprocessor: the tiles' registers and shared memory (82 of 227 KB) leave room."""

START = 2
"""What a program costs beyond its keys, in blocks of keys: its first loads, writing its part. Estimated."""

SPLITS_AT_ONCE = tl.constexpr(16)
"""Parts that one step of the merging takes: more than most have, few enough to stay in registers."""


class DecodeTile(NamedTuple):
    """The blocks of the kernel."""

    block: int
    """Keys."""
    num_warps: int
    num_stages: int


TILES: Mapping[int, DecodeTile] = {
    64: DecodeTile(128, 4, 3),
    128: DecodeTile(64, 4, 3),
    256: DecodeTile(32, 4, 3),
}
"""Widest padded head -> tile of 16-bit inputs: 32 KB of keys and values a stage, two stages on their way. To
keep 4.3 TB/s busy for the 0.7 us that a load takes, each of 132 multiprocessors needs 23 KB on its way. Fits
every GPU from compute capability 8.0 on (99 KB)."""

FLOAT32_TILES: Mapping[int, DecodeTile] = {
    64: DecodeTile(32, 4, 2),
    128: DecodeTile(16, 4, 2),
    256: DecodeTile(16, 4, 1),
}


def decode(
    q_BHTK: Float[Tensor, "batch heads time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    window: int | None = None,
    softcap: float | None = None,
    slopes_H: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads time d_value"]:
    """Return causal attention of few queries, without a gradient; arguments as in attention_reference.

    The result lies in memory as (batch, time, heads, d_value). Inputs are read by their strides; one whose
    last dimension is not contiguous is copied.

    Raises:
        ValueError: As in attention_reference, or a dtype, width or device that the kernel does not take, or a
            gradient is wanted.
    """
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=True, window=window, slopes_H=slopes_H)
    require("attention", q_BHTK, k_BGSK, v_BGSK, slopes_H)
    tensors = (q_BHTK, k_BGSK, v_BGSK)
    require_heads("attention decode", tensors, max(TILES))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError("attention decode has no gradient; call it under torch.no_grad().")
    return attention_decode(q_BHTK, k_BGSK, v_BGSK, window, softcap, slopes_H)


@torch.library.custom_op("scratchlm::attention_decode", mutates_args=())
def attention_decode(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None, slopes: Tensor | None
) -> Tensor:
    """Return the weighted means."""
    batch, num_heads, num_queries, width = q.shape
    num_groups, num_keys, width_v = k.shape[1], k.shape[2], v.shape[3]
    out = _empty_out(q, v)
    if not out.numel():
        return out
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    num_rows = num_heads // num_groups * num_queries
    rows = min(padded(num_rows), _max_rows(q.dtype))
    tile = _tile(q.dtype, max(width, width_v))
    first_key = 0 if window is None else max(num_keys - num_queries - window + 1, 0)
    programs = batch * num_groups * triton.cdiv(num_rows, rows)
    splits = share(triton.cdiv(num_keys - first_key, tile.block), programs, _slots(q.device))
    parts_BHTNK, logsumexps_BHTN = _parts(out, splits.number)
    with torch.cuda.device_of(q):
        decode_kernel[(programs * splits.number,)](
            q, k, v, parts_BHTNK, logsumexps_BHTN, None if slopes is None else slopes.float().contiguous(),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *parts_BHTNK.stride()[:4],
            num_heads, num_groups, num_queries, num_keys, window, softcap,
            first_key, splits.number, splits.blocks * tile.block,
            WIDTH=width, WIDTH_V=width_v, PADDED=padded(width), PADDED_V=padded(width_v),
            ROWS=rows, BLOCK=tile.block, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        if splits.number > 1:
            merge_kernel[(batch * num_heads * num_queries,)](
                parts_BHTNK, logsumexps_BHTN, out, *out.stride()[:3], num_heads, num_queries, splits.number,
                WIDTH_V=width_v, PADDED_V=padded(width_v), num_warps=1,
            )  # fmt: skip
    return out


@attention_decode.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None, slopes: Tensor | None
) -> Tensor:
    return _empty_out(q, v)


class Splits(NamedTuple):
    """How the blocks of keys are shared out."""

    number: int
    blocks: int
    """Blocks of keys in each split; the last may have fewer."""


@functools.lru_cache(maxsize=4096)
def share(num_blocks: int, programs: int, slots: int) -> Splits:
    """Return the split with the shortest estimated time.

        time = rounds of programs that the GPU needs * (blocks of one program + START)

    Example: 8 programs, 100 blocks, 264 slots -> 33 splits of 4 blocks would fill the slots; 25 of 4 are all.

    Args:
        num_blocks: Blocks of keys that a query sees.
        programs: Programs without splits.
        slots: Programs that the GPU runs at once.
    """
    best, shortest = Splits(1, num_blocks), 0
    for number in range(1, min(num_blocks, triton.cdiv(2 * slots, programs)) + 1):
        blocks = triton.cdiv(num_blocks, number)
        time = triton.cdiv(programs * number, slots) * (blocks + START)
        if number == 1 or time < shortest:
            # rounding up may leave nothing to the last splits: 5 blocks in 4 splits of 2
            best, shortest = Splits(triton.cdiv(num_blocks, blocks), blocks), time
    return best


def configurations() -> list[Configuration]:
    """Return what ahead.py compiles: each tile and number of rows, and all masks with the commonest tile."""
    made = []
    for dtype, tiles, most in (("bf16", TILES, MAX_ROWS), ("fp32", FLOAT32_TILES, MAX_ROWS_FLOAT32)):
        for width, tile in tiles.items():
            made += [_configuration(width, tile, rows, dtype) for rows in (16, 32) if rows <= most]
    masks = {"window": "i32", "softcap": "fp32", "slopes": "*fp32"}
    made += [_configuration(64, TILES[64], 16, "bf16", {name: masks[name]}) for name in masks]
    made.append(_configuration(128, TILES[128], MAX_ROWS, "bf16", masks))
    made += [_merge_configuration(width) for width in TILES]
    return made


def _configuration(
    width: int, tile: DecodeTile, rows: int, dtype: str, masks: Mapping[str, str] | None = None
) -> Configuration:
    masks = masks or {}
    absent = {name: None for name in ("window", "softcap", "slopes") if name not in masks}
    constants = {
        "WIDTH": width, "WIDTH_V": width, "PADDED": width, "PADDED_V": width,
        "ROWS": rows, "BLOCK": tile.block,
    } | absent  # fmt: skip
    pointers = {"q": f"*{dtype}", "k": f"*{dtype}", "v": f"*{dtype}", "parts": "*fp32", "logsumexps": "*fp32"}
    known = pointers | dict(masks)
    names = [name for name in decode_kernel.arg_names if name not in constants]
    return Configuration(
        f"decode {dtype} {width} {rows}x{tile.block} {'+'.join(masks) or 'causal'}",
        decode_kernel,
        {name: known.get(name, "i32") for name in names},
        constants,
        tile.num_warps,
        tile.num_stages,
        matrix=dtype != "fp32",
    )


def _merge_configuration(width: int) -> Configuration:
    pointers = {"parts": "*fp32", "logsumexps": "*fp32", "out": "*bf16"}
    names = [name for name in merge_kernel.arg_names if name not in ("WIDTH_V", "PADDED_V")]
    signature = {name: pointers.get(name, "i32") for name in names}
    constants = {"WIDTH_V": width, "PADDED_V": width}
    return Configuration(f"merge {width}", merge_kernel, signature, constants, num_warps=1, matrix=False)


def _empty_out(q: Tensor, v: Tensor) -> Tensor:
    """Return memory for the result, laid out for the projection after it."""
    batch, num_heads, num_queries, _ = q.shape
    return q.new_empty(batch, num_queries, num_heads, v.shape[3]).transpose(1, 2)


def _parts(out_BHTK: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return memory for each split's result and logsumexp; a single split writes the result itself."""
    logsumexps_BHTN = out_BHTK.new_empty(*out_BHTK.shape[:3], number, dtype=torch.float32)
    if number == 1:
        return out_BHTK[:, :, :, None], logsumexps_BHTN
    return logsumexps_BHTN.new_empty(*logsumexps_BHTN.shape, out_BHTK.shape[3]), logsumexps_BHTN


def _tile(dtype: torch.dtype, width: int) -> DecodeTile:
    tiles = FLOAT32_TILES if dtype == torch.float32 else TILES
    return next(tiles[widest] for widest in sorted(tiles) if widest >= width)


def _slots(device: torch.device) -> int:
    """Return how many programs the device runs at once; interpreted there is one after the other."""
    return 1 if device.type == "cpu" else PROGRAMS_AT_ONCE * _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _max_rows(dtype: torch.dtype) -> int:
    return MAX_ROWS_FLOAT32 if dtype == torch.float32 else MAX_ROWS


# the keys grow with each token: numbers that change so often must not ask for a compilation each
@triton.jit(do_not_specialize=["num_keys", "first_key", "num_splits", "keys_of_split"])
def decode_kernel(
    q, k, v, parts, logsumexps, slopes,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_ph, stride_pt, stride_pn,
    num_heads, num_groups, num_queries, num_keys, window, softcap, first_key, num_splits, keys_of_split,
    WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, PADDED: tl.constexpr, PADDED_V: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Meet one split of the keys of one key head, with ROWS of the queries of its query heads."""
    split = tl.program_id(0) % num_splits
    rest = tl.program_id(0) // num_splits
    heads_of_group = num_heads // num_groups
    row_blocks = tl.cdiv(heads_of_group * num_queries, ROWS)
    group = rest // row_blocks % num_groups
    batch = (rest // row_blocks // num_groups).to(tl.int64)
    # row r is query r % num_queries of the group's query head r // num_queries
    rows = rest % row_blocks * ROWS + tl.arange(0, ROWS)
    exists = rows < heads_of_group * num_queries
    heads = (group * heads_of_group + rows // num_queries).to(tl.int64)
    times = rows % num_queries
    positions = num_keys - num_queries + times
    columns = tl.arange(0, PADDED)
    q_tile = tl.load(
        q + batch * stride_qb + (heads * stride_qh + times * stride_qt)[:, None] + columns[None, :],
        mask=exists[:, None] & (columns[None, :] < WIDTH), other=0.0,
    )  # fmt: skip
    slope = tl.load(slopes + heads, mask=exists, other=0.0)[:, None] if slopes is not None else None
    k_start = k + batch * stride_kb + group.to(tl.int64) * stride_kh
    v_start = v + batch * stride_vb + group.to(tl.int64) * stride_vh
    begin = first_key + split * keys_of_split
    part, logsumexp = _meet_keys(
        q_tile, k_start, v_start, stride_ks, stride_vs, begin, tl.minimum(begin + keys_of_split, num_keys),
        positions, slope, num_keys, window, softcap, WIDTH, WIDTH_V, PADDED, PADDED_V, ROWS, BLOCK,
    )  # fmt: skip
    columns_v = tl.arange(0, PADDED_V)
    places = batch * stride_pb + heads * stride_ph + times * stride_pt + split.to(tl.int64) * stride_pn
    tl.store(
        parts + places[:, None] + columns_v[None, :], part.to(parts.dtype.element_ty),
        mask=exists[:, None] & (columns_v[None, :] < WIDTH_V),
    )  # fmt: skip
    row = (batch * num_heads + heads) * num_queries + times
    tl.store(logsumexps + row * num_splits + split, logsumexp, mask=exists)


@triton.jit
def _meet_keys(
    q_tile, k_start, v_start, stride_ks, stride_vs, first, last, positions, slope, num_keys, window, softcap,
    WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, PADDED: tl.constexpr, PADDED_V: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the result and the logsumexp (in units of log2) over the keys first ... last - 1."""
    SCALE: tl.constexpr = WIDTH**-0.5
    factor: tl.constexpr = SCALE * LOG2E if softcap is None and slope is None else 1.0
    acc = tl.zeros([ROWS, PADDED_V], dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    largest = tl.full([ROWS], LOWEST, dtype=tl.float32)
    for start in tl.range(first, last, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k_tile = load_rows(k_start, stride_ks, start, num_keys, BLOCK, WIDTH, PADDED, True)
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        scores, _ = bend(products, positions[:, None], keys[None, :], slope, softcap, SCALE)
        # every block is compared: the arithmetic waits for memory anyway
        allowed = keys[None, :] <= positions[:, None]
        if window is not None:
            allowed = allowed & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(allowed, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1) * factor)
        p = tl.exp2(scores * factor - new_largest[:, None])
        fix = tl.exp2(largest - new_largest)
        total = total * fix + tl.sum(p, axis=1)
        v_tile = load_rows(v_start, stride_vs, start, num_keys, BLOCK, WIDTH_V, PADDED_V, True)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * fix[:, None], input_precision="ieee")
        largest = new_largest
    # a row may see nothing of a split (window, several queries): its part is 0, its logsumexp -inf
    return acc / tl.where(total == 0.0, 1.0, total)[:, None], largest + tl.log2(total)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    parts, logsumexps, out, stride_ob, stride_oh, stride_ot, num_heads, num_queries, num_splits,
    WIDTH_V: tl.constexpr, PADDED_V: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one query: the online softmax, SPLITS_AT_ONCE splits at each step."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED_V)
    largest = LOWEST
    total = 0.0
    acc = tl.zeros([PADDED_V], dtype=tl.float32)
    for start in tl.range(0, num_splits, SPLITS_AT_ONCE):
        splits = start + tl.arange(0, SPLITS_AT_ONCE)
        exists = splits < num_splits
        logsumexp = tl.load(logsumexps + row * num_splits + splits, mask=exists, other=float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logsumexp, axis=0))
        weights = tl.exp2(logsumexp - new_largest)
        fix = tl.exp2(largest - new_largest)
        part = tl.load(
            parts + (row * num_splits + splits)[:, None] * WIDTH_V + columns[None, :],
            mask=exists[:, None] & (columns[None, :] < WIDTH_V), other=0.0,
        )  # fmt: skip
        total = total * fix + tl.sum(weights, axis=0)
        acc = acc * fix + tl.sum(weights[:, None] * part, axis=0)
        largest = new_largest
    head = row // num_queries % num_heads
    place = row // num_queries // num_heads * stride_ob + head * stride_oh + row % num_queries * stride_ot
    tl.store(out + place + columns, (acc / total).to(out.dtype.element_ty), mask=columns < WIDTH_V)
