"""Pieces go to and from whole tensors: the two calls that sharding is made of, under the names of any torch.

    all_gather        [a] [b]  ->  [a b] [a b]            every process: its piece in, all pieces out
    reduce_scatter    [a b] [c d]  ->  [a + c] [b + d]    every process: all in, its piece of the sum out

Both begin at once and return; `.wait()` of what they return says when the result may be used.
"""

from typing import Any

from torch import Tensor, distributed


def all_gather(everything: Tensor, piece: Tensor) -> Any:
    """Begin to put the pieces of all processes behind each other; `.wait()` of what returns ends it."""
    # torch 2.13 has a new name for it and warns of the old one, which older versions know alone
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    return gather(everything, piece, async_op=True)


def reduce_scatter(piece: Tensor, everything: Tensor) -> Any:
    """Begin to add up `everything` over the processes, each receiving its piece; `.wait()` ends it."""
    scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
    return scatter(piece, everything, async_op=True)
