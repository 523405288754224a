"""Rows of matrices come in; each process turns some of them as a whole, and everybody's rows go out.

    process 0 has rows of  A B C D      -> all-to-all ->   A and C, whole      -> turn -> all-to-all -> rows
    process 1 has rows of  A B C D                         B and D, whole

What an optimizer such as Muon does to a matrix needs all its rows. Each matrix is put together on one process
only, and its result goes back the same way: every number travels twice, and N processes share the work, where
gathering all matrices everywhere would send N times as much and compute everything N times.

Source: the distributed Muon of Liu et al. 2025, https://arxiv.org/abs/2502.16982, algorithm 1; there by
gathering, here by an exchange.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class ShardedMatrices:
    """The way from this process's rows to whole matrices and back."""

    def __init__(self, shapes: Mapping[Tensor, tuple[int, ...]], group: Any, part: int, parts: int) -> None:
        """Keep what is known of the whole.

        Args:
            shapes: Rows of a parameter -> the shape of the whole one.
            group: The processes that share each matrix (a ProcessGroup).
            part: This process's number in it.
            parts: How many they are.
        """
        self._shapes, self._group, self._part, self._parts = dict(shapes), group, part, parts

    def shape(self, rows: Tensor) -> tuple[int, ...]:
        """Of the whole matrix that a parameter's rows belong to."""
        return self._shapes[rows]

    def turned(
        self,
        params: Sequence[Tensor],
        rows: Sequence[Tensor],
        turn: Callable[[list[Tensor]], list[Tensor]],
    ) -> list[Tensor]:
        """Return this process's rows of what `turn` makes of the whole matrices.

        Args:
            params: Rows of parameters: they say what the matrices are like.
            rows: For each of them this process's rows of a matrix of its shape.
            turn: Whole matrices -> as many of the same shapes.
        """
        shapes = [self.shape(p) for p in params]
        owned = [list(range(owner, len(params), self._parts)) for owner in range(self._parts)]
        mine = owned[self._part]
        # to owner o: my rows of its matrices; from process s: its rows of mine
        sent = [[rows[i].reshape(-1) for i in owned[owner]] for owner in range(self._parts)]
        sizes = [[self._count(shapes[i], part) for i in mine] for part in range(self._parts)]
        arrived = self._exchange(sent, sizes, rows[0])
        pieces = [part.split(size) for part, size in zip(arrived, sizes, strict=True)]
        whole = [
            torch.cat([pieces[part][k] for part in range(self._parts)]).view(shapes[i])
            for k, i in enumerate(mine)
        ]
        results = [result.contiguous().view(-1) for result in (turn(whole) if whole else [])]
        # and back: to process s its rows of mine; from owner o my rows of its matrices
        parts = [result.split([size[k] for size in sizes]) for k, result in enumerate(results)]
        back = [[part[receiver] for part in parts] for receiver in range(self._parts)]
        own = [[self._count(shapes[i], self._part) for i in owned[owner]] for owner in range(self._parts)]
        found = self._exchange(back, own, rows[0])
        turned = list(rows)
        for owner, flat in enumerate(found):
            for i, piece in zip(owned[owner], flat.split(own[owner]), strict=True):
                turned[i] = piece.view(rows[i].shape)
        return turned

    def _count(self, shape: tuple[int, ...], part: int) -> int:
        """Numbers in a part's rows, which are cut as torch's chunks."""
        step = -(-shape[0] // self._parts)
        rows = min(step * (part + 1), shape[0]) - min(step * part, shape[0])
        return rows * (torch.Size(shape[1:]).numel())

    def _exchange(
        self, sent: Sequence[Sequence[Tensor]], arriving: Sequence[Sequence[int]], like: Tensor
    ) -> list[Tensor]:
        """Send a list of tensors to each process; return what came from each, behind each other."""
        nothing = like.new_empty(0)
        out = [torch.cat([nothing, *tensors]) for tensors in sent]
        counts = [sum(sizes) for sizes in arriving]
        found = like.new_empty(sum(counts))
        distributed.all_to_all_single(
            found, torch.cat(out), counts, [part.numel() for part in out], group=self._group
        )
        return list(found.split(counts))
