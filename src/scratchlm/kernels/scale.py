"""Tensors and a factor on their device come in, the tensors multiplied by it go out, in place.

A factor of 1 changes nothing, and clipping's factor is 1 at most steps; but it lies on the GPU, and looking
at it from Python would make the CPU wait for the GPU at every step.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def scale_(tensors: Sequence[Tensor], factor: Float[Tensor, ""]) -> None:
    """Multiply all tensors by a factor.

    Args:
        tensors: At least one.
        factor: At most 1, or not a number; on the tensors' device.
    """
    torch._foreach_mul_(tensors, factor)


def scale_reference_(tensors: Sequence[Tensor], factor: Float[Tensor, ""]) -> None:
    """As `scale_`, one tensor at a time.

    Args:
        tensors: As `scale_`.
        factor: As `scale_`.
    """
    for tensor in tensors:
        tensor.mul_(factor)
