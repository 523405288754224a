"""A kernel, a GPU and a head width come in, the sizes of the blocks that the kernel works with go out.

The table was made without running it: every line compiles without spilled registers (the tests hold it to
that), fits the GPU's shared memory, and follows these reasons:

    block_m x block_n   large enough that a matrix product hides its loads, small enough for 255 registers
    num_warps           4: two programs share a multiprocessor and one computes exponentials while the other
                        multiplies; 8: where the sums that a program keeps need twice the registers
    num_stages          how many blocks are on their way from memory while one is computed
    loads               descriptors on Hopper (9.0): they save the registers of the addresses
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_memory import Masks, padded

MAX_WIDTH = 256
"""The widest head: with 512 not even one block of queries, keys and sums fits a multiprocessor."""


class Tile(NamedTuple):
    """The blocks of one kernel."""

    block_m: int
    """Queries."""
    block_n: int
    """Keys."""
    num_warps: int
    num_stages: int
    loads: str = "pointers"
    """How blocks come from memory: "pointers" or "descriptors" (attention_memory.py)."""


TILES: Mapping[str, Mapping[int, Mapping[int, Tile]]] = {
    "forward": {
        90: {
            64: Tile(128, 64, 4, 3, "descriptors"),
            128: Tile(128, 128, 8, 2, "descriptors"),
            256: Tile(128, 64, 8, 2, "descriptors"),
        },
        80: {64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
        0: {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    },
    "backward_queries": {
        90: {
            64: Tile(128, 64, 4, 3, "descriptors"),
            128: Tile(128, 64, 8, 3, "descriptors"),
            256: Tile(64, 64, 8, 2, "descriptors"),
        },
        80: {64: Tile(128, 64, 8, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 1)},
        0: {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    },
    "backward_keys": {
        90: {
            64: Tile(64, 64, 4, 3, "descriptors"),
            128: Tile(64, 128, 8, 3, "descriptors"),
            256: Tile(32, 32, 8, 2, "descriptors"),
        },
        80: {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 2), 256: Tile(32, 32, 8, 1)},
        0: {64: Tile(32, 64, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(32, 32, 8, 1)},
    },
    "backward_one_pass": {
        90: {
            64: Tile(64, 128, 8, 3, "descriptors"),
            128: Tile(32, 128, 8, 2, "descriptors"),
            256: Tile(32, 32, 8, 1, "descriptors"),
        },
        80: {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 2), 256: Tile(32, 32, 8, 1)},
        0: {64: Tile(32, 64, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 32, 8, 1)},
    },
}
"""Kernel -> compute capability (see `table_of`) -> widest padded head -> tile, for 16-bit inputs."""

CROWDED: Mapping[str, Mapping[int, Mapping[int, Tile]]] = {
    "forward": {
        90: {256: Tile(64, 64, 8, 2, "descriptors")},
        80: {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2)},
    },
    "backward_queries": {
        90: {64: Tile(64, 64, 4, 3, "descriptors"), 256: Tile(64, 32, 8, 2, "descriptors")},
        80: {64: Tile(64, 32, 4, 2)},
        0: {64: Tile(64, 32, 4, 2)},
    },
    "backward_keys": {90: {128: Tile(32, 128, 8, 2, "descriptors")}},
    "backward_one_pass": {90: {128: Tile(32, 64, 8, 2, "descriptors")}},
}
"""Tiles instead of those above where more than a causal mask asks for registers, if those would spill."""

FLOAT32_TILES: Mapping[str, Mapping[int, Tile]] = {
    "forward": {64: Tile(32, 32, 8, 1), 128: Tile(32, 32, 8, 1), 256: Tile(16, 16, 8, 1)},
    "backward_queries": {64: Tile(32, 32, 8, 1), 128: Tile(16, 16, 8, 1), 256: Tile(16, 16, 8, 1)},
    "backward_keys": {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 8, 1), 256: Tile(16, 16, 4, 1)},
    "backward_one_pass": {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 8, 1)},
}
"""Kernel -> widest padded head -> tile: float32 products run on the ordinary units, from registers. They are
made to be right; of these, only dq at a width of 256 spills."""


def choose_tile(kernel: str, q_BHTK: Tensor, width_v: int, *, describable: bool, crowded: bool) -> Tile:
    """Return the tile of the table for these queries' device, dtype and width.

    Args:
        kernel: A key of TILES.
        q_BHTK: The queries.
        width_v: The values' width.
        describable: Whether the copy engine can read what the kernel walks over.
        crowded: Whether there is more than a causal mask: a window, a soft-cap, a bias, documents, or several
            query heads that a program for keys goes through.
    """
    width = max(padded(q_BHTK.shape[-1]), padded(width_v))
    if q_BHTK.dtype == torch.float32:
        return _at_least(FLOAT32_TILES[kernel], width)
    table = 90
    if q_BHTK.is_cuda:
        major, minor = torch.cuda.get_device_capability(q_BHTK.device)
        table = table_of(major * 10 + minor)
    if table == 90 and not describable:
        table = 80  # read by pointers, and Hopper has all that these tiles need
    return tile_of(kernel, table, width, crowded=crowded)


def tile_of(kernel: str, table: int, width: int, *, crowded: bool) -> Tile:
    """Return the tile of one part of the table for heads padded to `width`."""
    widest = min(entry for entry in TILES[kernel][table] if entry >= width)
    plain = TILES[kernel][table][widest]
    return CROWDED[kernel].get(table, {}).get(widest, plain) if crowded else plain


def is_crowded(masks: Masks, group: int = 1) -> bool:
    """Return whether there is more than a causal mask; `group`: query heads that a program goes through."""
    return group > 1 or any(given is not None for given in masks[1:])


def table_of(capability: int) -> int:
    """Return which part of the table a compute capability uses; 0 is right for every GPU.

    8.0 (A100) and 9.0 (H100, H200) have 164 KB of shared memory and more, others 99 KB. 10.0 (B200) and later
    have more, too, but other matrix instructions: Hopper's tiles are unproven there.
    """
    return capability if capability in (80, 90) else 0


def _at_least(tiles: Mapping[int, Tile], width: int) -> Tile:
    return next(tiles[widest] for widest in sorted(tiles) if widest >= width)


def attention_configurations(name: str, kernel: Any) -> list[Configuration]:
    """Return a kernel with every tile of the table for Hopper.

    Each with a causal mask, with none, and with every mask at once; the commonest width also with each mask
    alone and in float16; and heads that are narrower than a tile or padded to it.
    """
    some = torch.empty(0)
    every = Masks(True, 1, 1.0, some, some)
    groups = (1, 4) if name in ("backward_keys", "backward_one_pass") else (1,)
    made = []
    for width in TILES[name][90]:
        for masks, group in (
            (Masks(), 1),
            (Masks(causal=False), 1),
            (every, groups[-1]),
            (Masks(), groups[-1]),
        ):
            tile = tile_of(name, 90, width, crowded=is_crowded(masks, group))
            made.append(configuration(name, kernel, tile, width=width, masks=masks, group=group))
        if width <= 128:
            tile = FLOAT32_TILES[name][width]
            made.append(configuration(name, kernel, tile, width=width, masks=Masks(), dtype="fp32"))
    alone = (Masks(window=1), Masks(softcap=1.0), Masks(slopes=some), Masks(documents=some))
    cases = [(64, masks, "bf16") for masks in alone] + [(64, Masks(), "fp16")]
    for width, masks, dtype in [*cases, *((width, Masks(), "bf16") for width in (16, 32, 80))]:
        tile = tile_of(name, 90, padded(width), crowded=is_crowded(masks))
        made.append(configuration(name, kernel, tile, width=width, masks=masks, dtype=dtype))
    unique = {one.name: one for one in made}
    return list(unique.values())


def configuration(
    name: str, kernel: Any, tile: Tile, *, width: int, masks: Masks, dtype: str = "bf16", group: int = 1
) -> Configuration:
    """Return how ahead.py compiles one kernel; of the masks only which there are counts."""
    described = tile.loads == "descriptors"
    walks_over_keys = name in ("forward", "backward_queries")
    types = dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), f"*{dtype}")
    types |= dict.fromkeys(("lse", "delta", "slopes"), "*fp32")
    # int64 as data/packing.py numbers them
    types |= dict.fromkeys(("documents", "lowest", "highest"), "*i64") | {"softcap": "fp32"}
    if name == "backward_one_pass":
        types["dq"] = "*fp32"
    if described:
        rows = tile.block_n if walks_over_keys else tile.block_m
        block = f"tensordesc<{dtype}[1,1,{rows},{padded(width)}]>"
        types |= dict.fromkeys(("k", "v") if walks_over_keys else ("q", "dout"), block)
        if not walks_over_keys:
            types |= dict.fromkeys(("lse", "delta"), f"tensordesc<fp32[1,{rows}]>")
    constants: dict[str, Any] = {
        "CAUSAL": masks.causal, "WIDTH": width, "WIDTH_V": width, "PADDED": padded(width),
        "PADDED_V": padded(width), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "GROUP": group,
        "DESCRIPTORS": described,
    }  # fmt: skip
    for given, arguments in (
        (masks.slopes, ["slopes"]),
        (masks.documents, ["documents", "lowest", "highest", "stride_db"]),
        (masks.window, ["window"]),
        (masks.softcap, ["softcap"]),
        (name != "backward_keys" or None, ["dq"]),
    ):
        if given is None:
            constants |= dict.fromkeys(arguments)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: types.get(key, "i32") for key in kernel.arg_names if key not in constants}
    asked = [key for key, value in masks._asdict().items() if value is not None and value is not False]
    asked += [f"{group} heads"] if group > 1 else []
    title = f"{name} {dtype} {width} {'+'.join(asked) or 'full'} {'x'.join(map(str, tile[:4]))} {tile.loads}"
    return Configuration(
        title, kernel, signature, constants, tile.num_warps, tile.num_stages, matrix=dtype != "fp32"
    )
