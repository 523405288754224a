r"""Newton-Schulz on a GPU: stacked matrices come in, matrices with singular values near 1 go out.

    x = m / |m|
    G = x x^T              symmetric: this file's kernel
    H = b G + c G G        symmetric, and G G = G G^T: the same kernel, the sum in its last lines
    x = a x + H x          a plain product: torch's (cuBLAS)

Of a symmetric product only the tiles on and above the diagonal are computed; each of the others is written as
the mirror image of one that was. With n x n tiles that is (n + 1) / 2n of the work, 21 tiles of 36 for 768
rows, and the mirror image costs only the writing:

    tile     0  1  3      column j:  program t computes tile (i, j), i <= j,
             .  2  4      j = the largest number with j (j + 1) / 2 <= t,
             .  .  5      i = t - j (j + 1) / 2, and writes it at (i, j) and, turned, at (j, i)

All matrices of a stack are one launch. An iteration costs 2 r^2 c + 2 r^3 + 2 r^2 c operations for r x c
matrices; this way the first two terms are 7 twelfths of that for 768 rows. The matrices of a model of GPT-2's
size need 1.22e12 operations a step instead of 1.63e12: 0.75 of them (computed for tiles of 128 rows).

Source: the polynomial in kernels/orthogonalize.py; tiles as in any blocked product, whose loads Triton's
software pipeline keeps in flight. That half of a symmetric product suffices is common knowledge (BLAS: syrk).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels import orthogonalize as plain
from scratchlm.kernels.gpu import support
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.tables import on


class Tile(NamedTuple):
    """How a product is cut."""

    rows: int
    """A program computes rows x rows numbers."""
    inner: int
    """Columns of x that are multiplied at a time."""
    num_warps: int
    num_stages: int
    """Steps of the loop whose loads are in flight, at rows * inner * 4 bytes of shared memory each."""


TILES = {
    # two blocks fit a multiprocessor (96 kB of its 227 of shared memory, 128 registers a thread: compiled
    # ahead): one multiplies while the other begins or writes, for matrices of 768 rows have short loops
    90: (Tile(64, 64, 4, 4), Tile(128, 64, 8, 3)),
    # 164 kB of shared memory: half of the columns at a time
    80: (Tile(64, 32, 4, 4), Tile(128, 32, 8, 4)),
}
"""Compute capability -> the tiles for matrices of up to 64 rows and for larger ones; 80: all but Hopper."""

PRODUCTS = (torch.bfloat16, torch.float16)
"""What matrix instructions multiply without loss; float32 they would round, so torch multiplies it."""

INTERPRETED_PRODUCTS = (torch.float32, torch.float16)
"""What Triton's interpreter multiplies rightly."""

LARGEST = 2**31 - 1
"""Numbers of one matrix: inside it the kernel counts in 32 bits, to save registers; between them in 64."""


def orthogonalize(
    matrices: Float[Tensor, "batch rows columns"], *, iterations: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "batch rows columns"]:
    """Bring every singular value above 0 near 1, for many matrices at once; no gradient passes.

    Args:
        matrices: As `orthogonalize.orthogonalize`; in any layout, copied once in the number format `dtype`.
        iterations: As `orthogonalize.orthogonalize`.
        dtype: As `orthogonalize.orthogonalize`; float32 and float64 are computed there.

    Raises:
        ValueError: Triton cannot run on the matrices' device.
    """
    support.require("orthogonalize", matrices)
    products = INTERPRETED_PRODUCTS if support.interpreted() else PRODUCTS
    if dtype not in products or not matrices.numel() or matrices[0].numel() > LARGEST:
        return plain.orthogonalize(matrices, iterations=iterations, dtype=dtype)
    if matrices.shape[-2] > matrices.shape[-1]:
        return _orthogonalize_wide(matrices.mT, iterations, dtype).mT
    return _orthogonalize_wide(matrices, iterations, dtype)


@torch.library.custom_op("scratchlm::orthogonalize", mutates_args=())
def _orthogonalize_wide(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """The operation as torch.compile sees it."""
    lengths = matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=plain.EPS)
    x = torch.empty(matrices.shape, dtype=dtype, device=matrices.device)
    torch.div(matrices, lengths, out=x)  # scaled and rounded in one pass
    a, b, c = plain.COEFFICIENTS
    gram = x.new_empty(len(x), x.shape[1], x.shape[1])
    polynomial = torch.empty_like(gram)
    for _ in range(iterations):
        multiply_by_own_transpose(x, out=gram)
        multiply_by_own_transpose(gram, out=polynomial, add=gram, factor=c, add_factor=b)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


@_orthogonalize_wide.register_fake
def _(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(matrices.shape, dtype=dtype, device=matrices.device)


def multiply_by_own_transpose(
    x: Float[Tensor, "batch rows inner"],
    *,
    out: Float[Tensor, "batch rows rows"],
    add: Float[Tensor, "batch rows rows"] | None = None,
    factor: float = 1.0,
    add_factor: float = 0.0,
) -> None:
    """Write factor * x x^T + add_factor * add over `out`.

    Args:
        x: Contiguous.
        out: Contiguous; neither `x` nor `add`, whose tiles other programs still read.
        add: Contiguous and symmetric.
        factor: Of the product.
        add_factor: Of `add`.
    """
    batch, rows, inner = x.shape
    tile = choose_tile(rows, x.device)
    across = triton.cdiv(rows, tile.rows)
    tiles = across * (across + 1) // 2
    with on(x.device):
        symmetric_kernel[(batch * tiles,)](
            x,
            out if add is None else add,
            out,
            factor,
            add_factor,
            rows,
            inner,
            tiles,
            ADD=add is not None,
            WHOLE=rows % tile.rows == 0 and inner % tile.inner == 0,
            TILE=tile.rows,
            INNER=tile.inner,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def choose_tile(rows: int, device: torch.device) -> Tile:
    """The tile for matrices of `rows` rows on a device."""
    hopper = device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9
    small, large = TILES[90 if hopper else 80]
    return small if rows <= small.rows else large


@triton.jit
def symmetric_kernel(  # noqa: ANN201
    x, add, out,  # noqa: ANN001
    factor, add_factor,  # noqa: ANN001
    stride_out, stride_x, tiles,  # noqa: ANN001
    ADD: tl.constexpr, WHOLE: tl.constexpr, TILE: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute one tile of factor * x x^T + add_factor * add, and write it and its mirror image.

    Args:
        x: Matrices of rows x inner.
        add: Matrices of rows x rows.
        out: Matrices of rows x rows.
        factor: Of the product.
        add_factor: Of `add`.
        stride_out: From row to row of `add` and `out`: their columns, which are x's rows.
        stride_x: From row to row of x: its columns.
        tiles: On and above the diagonal of one matrix.
        ADD: Whether there is something to add.
        WHOLE: Whether x's rows and columns are multiples of TILE and INNER: then nothing is compared.
        TILE: Rows and columns of a tile.
        INNER: Columns of x that are multiplied at a time.
    """
    rows, inner = stride_out, stride_x
    program = tl.program_id(0)
    matrix = (program // tiles).to(tl.int64)
    tile = program % tiles
    # the root is off by one at most where float32 rounds it
    j = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > tile, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= tile, j + 1, j)
    i = tile - j * (j + 1) // 2

    above = i * TILE + tl.arange(0, TILE)
    beside = j * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, INNER)
    x += matrix * rows * inner
    # rows past the end are read as others, and not written: no comparison in the loop
    above_at = x + (above % rows)[:, None] * inner + columns[None, :]
    beside_at = x + (beside % rows)[:, None] * inner + columns[None, :]
    sums = tl.zeros((TILE, TILE), dtype=tl.float32)
    for begin in tl.range(0, inner, INNER):
        if WHOLE:
            left, right = tl.load(above_at), tl.load(beside_at)
        else:
            inside = (begin + columns < inner)[None, :]
            left, right = (
                tl.load(above_at, mask=inside, other=0.0),
                tl.load(beside_at, mask=inside, other=0.0),
            )
        sums = tl.dot(left, tl.trans(right), sums, input_precision="ieee")
        above_at += INNER
        beside_at += INNER

    sums *= factor
    here = above[:, None] * rows + beside[None, :]
    mirrored = beside[:, None] * rows + above[None, :]
    inside = None if WHOLE else (above < rows)[:, None] & (beside < rows)[None, :]
    if ADD:
        known = tl.load(add + matrix * rows * rows + here, mask=inside)
        sums += add_factor * known.to(tl.float32)
    out += matrix * rows * rows
    result = sums.to(out.dtype.element_ty)
    tl.store(out + here, result, mask=inside)
    if i != j:
        inside = None if WHOLE else (beside < rows)[:, None] & (above < rows)[None, :]
        tl.store(out + mirrored, tl.trans(result), mask=inside)


def configurations(capability: int = 90) -> list[Configuration]:
    """What is compiled ahead: both products, both tiles, whole loops and others."""
    found = []
    for tile in TILES[capability]:
        for add in (False, True):
            for whole in (True, False):
                signature = dict.fromkeys(("x", "add", "out"), "*bf16")
                signature |= dict.fromkeys(("factor", "add_factor"), "fp32")
                signature |= dict.fromkeys(("stride_out", "stride_x", "tiles"), "i32")
                found.append(
                    Configuration(
                        name=f"symmetric {tile.rows}x{tile.inner}{' sum' * add}{' rest' * (not whole)}",
                        kernel=symmetric_kernel,
                        signature=signature,
                        constants={"ADD": add, "WHOLE": whole, "TILE": tile.rows, "INNER": tile.inner},
                        num_warps=tile.num_warps,
                        num_stages=tile.num_stages,
                    )
                )
    return found
