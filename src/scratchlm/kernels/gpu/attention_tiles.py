"""A kernel, a GPU and a head width come in, the sizes of the blocks that the kernel works with go out.

The table below was made without running it: every line compiles without spilled registers (the tests hold it
to that), fits the GPU's shared memory, and follows these reasons:

    block_m x block_n   large enough that a matrix product hides its loads, small enough for 255 registers
    num_warps           4: two programs share a multiprocessor and one computes exponentials while the other
                        multiplies; 8: where the accumulators need the registers of two warpgroups
    num_stages          how many blocks are on their way from memory while one is computed

A measured table beats reasons: `tuned_tile` tries CANDIDATES on the GPU at hand (attention=triton_tuned).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration

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


class Masks(NamedTuple):
    """What the scores go through."""

    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    documents: Tensor | None = None


TILES: Mapping[str, Mapping[int, Mapping[int, Tile]]] = {
    "forward": {
        # 128 x 64 in 4 warps: two programs on a multiprocessor overlap exponentials and products
        90: {
            16: Tile(128, 64, 4, 3),
            64: Tile(128, 64, 4, 3),
            128: Tile(128, 64, 8, 3),
            256: Tile(128, 64, 8, 2),
        },
        # 164 KB of shared memory, and products read both sides through registers
        80: {
            64: Tile(128, 64, 4, 3),
            128: Tile(128, 64, 8, 2),
            256: Tile(64, 32, 8, 2),
        },
        # 99 KB of shared memory (8.6, 8.9, 12.0)
        0: {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    },
    "backward_queries": {
        90: {64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
        80: {64: Tile(128, 64, 8, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 1)},
        0: {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    },
    "backward_keys": {
        90: {64: Tile(64, 128, 8, 3), 128: Tile(64, 128, 8, 2), 256: Tile(32, 64, 8, 2)},
        80: {64: Tile(64, 128, 8, 2), 128: Tile(32, 128, 8, 2), 256: Tile(32, 64, 8, 1)},
        0: {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 4, 2), 256: Tile(32, 32, 4, 1)},
    },
    "backward_one_pass": {
        90: {64: Tile(64, 128, 8, 2), 128: Tile(64, 64, 8, 2), 256: Tile(32, 64, 8, 1)},
        80: {64: Tile(64, 64, 8, 2), 128: Tile(32, 64, 8, 2), 256: Tile(32, 32, 8, 1)},
        0: {64: Tile(32, 64, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 32, 4, 1)},
    },
}
"""Kernel -> oldest compute capability -> widest padded head -> tile, for 16-bit inputs."""

FLOAT32_TILES: Mapping[str, Mapping[int, Tile]] = {
    "forward": {64: Tile(32, 32, 4, 2), 128: Tile(32, 32, 8, 1), 256: Tile(16, 16, 8, 1)},
    "backward_queries": {64: Tile(32, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 8, 1)},
    "backward_keys": {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 8, 1)},
    "backward_one_pass": {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 8, 1)},
}
"""Kernel -> widest padded head -> tile: float32 products run on the ordinary units, from registers."""


def padded(width: int) -> int:
    """Return the power of two that a head's vectors are padded to in registers; products need at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def choose_tile(kernel: str, q_BHTK: Tensor, width_v: int) -> Tile:
    """Return the tile of the table for these queries' device, dtype and width."""
    width = max(padded(q_BHTK.shape[-1]), padded(width_v))
    if q_BHTK.dtype == torch.float32:
        return _at_least(FLOAT32_TILES[kernel], width)
    capability = 90
    if q_BHTK.is_cuda:
        major, minor = torch.cuda.get_device_capability(q_BHTK.device)
        capability = major * 10 + minor
    return _at_least(TILES[kernel][table_of(capability)], width)


def table_of(capability: int) -> int:
    """Return which part of the table a compute capability uses; 0 is right for every GPU.

    8.0 (A100), 9.0 (H100, H200) and 10.0 (B200) have 164 KB of shared memory and more, others 99.
    """
    return {80: 80, 90: 90, 100: 90, 103: 90}.get(capability, 0)


def _at_least(tiles: Mapping[int, Tile], width: int) -> Tile:
    return next(tiles[widest] for widest in sorted(tiles) if widest >= width)


def attention_configurations(
    name: str, kernel: Any, matrices: Sequence[str], without: Sequence[str] = ()
) -> list[Configuration]:
    """Return each tile of the table with a causal mask, and all masks with the commonest tile."""
    made = []
    for width, tile in TILES[name][90].items():
        for causal in (True, False):
            made.append(_configuration(name, kernel, matrices, tile, width=width, masks=Masks(causal=causal)))
    return made


def _configuration(
    name: str,
    kernel: Any,
    matrices: Sequence[str],
    tile: Tile,
    *,
    width: int,
    masks: Masks,
    dtype: str = "bf16",
) -> Configuration:
    optional = {
        "slopes": masks.slopes is not None and "*fp32",
        "documents": masks.documents is not None and "*i32",
        "lowest": masks.documents is not None and "*i32",
        "highest": masks.documents is not None and "*i32",
        "stride_db": masks.documents is not None and "i32",
        "window": masks.window is not None and "i32",
        "softcap": masks.softcap is not None and "fp32",
    }
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {
        "CAUSAL": masks.causal, "WIDTH": width, "WIDTH_V": width, "PADDED": padded(width),
        "PADDED_V": padded(width), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
    }  # fmt: skip
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in matrices:
            signature[argument] = f"*{dtype}"
        elif argument in optional:
            if optional[argument]:
                signature[argument] = str(optional[argument])
            else:
                constants[argument] = None
        else:
            signature[argument] = "i32" if argument.startswith(("stride_", "num_")) else "*fp32"
    asked = [key for key, value in masks._asdict().items() if value is not None and value is not False]
    title = f"{name} {dtype} {width} {tile.block_m}x{tile.block_n} {'+'.join(asked) or 'full'}"
    return Configuration(
        title, kernel, signature, constants, tile.num_warps, tile.num_stages, matrix=dtype != "fp32"
    )
