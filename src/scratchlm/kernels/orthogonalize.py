r"""Newton-Schulz: matrices come in, matrices with the same directions and singular values near 1 go out.

    x = m / |m|                                        Frobenius norm: singular values now at most 1
    x = a x + (b G + c G G) x,   G = x x^T             5 times; a singular value s becomes a s + b s^3 + c s^5

A product of x with x^T has the singular vectors of x and powers of its singular values, so a polynomial of
matrix products acts on the singular values alone: no decomposition, only products, which every machine does
fast, and in bfloat16. The coefficients are not those that converge to 1. They are as steep at 0 as can be, so
that small singular values, too, arrive after 5 iterations, at the price of ending anywhere in [0.68, 1.21]:

    s = 0.003 -> 0.010 -> 0.036 -> 0.123 -> 0.413 -> 1.11        (about x 3.44 each time)

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, section "Choosing good coefficients";
the idea from Bernstein & Newhouse 2024, https://arxiv.org/abs/2409.20325.
"""

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c, from the source."""

EPS = 1e-7
"""A matrix of zeros stays one; from the source."""


def orthogonalize(
    matrices: Float[Tensor, "batch rows columns"], *, iterations: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "batch rows columns"]:
    """Bring every singular value above 0 near 1, for many matrices at once.

    Args:
        matrices: Wide or square ones are fastest: G is rows x rows, so tall ones are transposed first.
        iterations: How often the polynomial is applied.
        dtype: Number format of the products and of the result.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, iterations=iterations, dtype=dtype).mT
    a, b, c = COEFFICIENTS
    lengths = matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    x = (matrices / lengths).to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def orthogonalize_reference(
    matrices: Float[Tensor, "*batch rows columns"],
    *,
    iterations: int = 5,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch rows columns"]:
    """The formula, computed in the matrices' own number format.

    Args:
        matrices: One matrix, or a stack of them.
        iterations: How often the polynomial is applied.
        dtype: Number format of the result; the matrices' own by default.
    """
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if dtype is None else x.to(dtype)
