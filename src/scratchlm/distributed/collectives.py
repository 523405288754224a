"""Pieces go to and from whole tensors: the two calls that sharding is made of, under the names of any torch.

    all_gather        [a] [b]  ->  [a b] [a b]            every process: its piece in, all pieces out
    reduce_scatter    [a b] [c d]  ->  [a + c] [b + d]    every process: all in, its piece of the sum out

Both begin at once and return; `.wait()` of what they return says when the result may be used.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def all_gather(everything: Tensor, piece: Tensor) -> Any:
    """Begin to put the pieces of all processes behind each other; `.wait()` of what returns ends it."""
    # torch 2.13 has a new name for it and warns of the old one, which older versions know alone
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    return gather(everything, piece, async_op=True)


def reduce_scatter(piece: Tensor, everything: Tensor) -> Any:
    """Begin to add up `everything` over the processes, each receiving its piece; `.wait()` ends it."""
    if everything.device.type == "cpu":
        return _ExchangeAndAdd(piece, everything)
    return backend_reduce_scatter(piece, everything)


def backend_reduce_scatter(piece: Tensor, everything: Tensor) -> Any:
    """Begin the same as the backend does it, gloo or nccl."""
    scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
    return scatter(piece, everything, async_op=True)


class _ExchangeAndAdd:
    """Every process sends each other its piece, and adds up what it receives in the order of the processes.

    gloo's own reduce-scatter takes 1.2 to 2 times as long (2 and 4 processes, 1 to 17 MB), since it adds up
    everything everywhere first.
    """

    def __init__(self, piece: Tensor, everything: Tensor) -> None:
        self._piece, self._pieces = piece, torch.empty_like(everything)
        self._work = distributed.all_to_all_single(self._pieces, everything, async_op=True)

    def wait(self) -> None:
        self._work.wait()
        torch.sum(self._pieces.view(-1, len(self._piece)), 0, out=self._piece)
