"""Pieces: tensors that all processes have come in, the rows that this process writes come out.

    everything, end to end   | token_embeddings | layers.0.attn.q_proj | layers.0.ffn.w1 | ...     T bytes
    process 0 of 3           |<------- T/3 ------>|
    process 1                                     |<-------- T/3 -------->|
    process 2                                                             |<------- T/3 ------->|

A tensor that all processes hold is written once: all bytes in one line are cut into equal lengths, at whole
rows, so that every process copies and writes the same amount and none has to ask another. What one process
alone holds, be it a tensor or rows of one, it gives as a `Piece`, and writes it itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Piece(NamedTuple):
    """This process's rows of a tensor, which no other process writes.

    Example: rows 4 and 5 of 8 -> Piece(tensor of shape [2, ...], first_row=4, rows=8).
    """

    tensor: Tensor
    first_row: int
    rows: int
    """Of the whole tensor, in its first dimension; a number without dimensions is one row."""

    @staticmethod
    def whole(tensor: Tensor) -> "Piece":
        """All rows: what this process alone has."""
        return Piece(tensor, 0, num_rows(tensor))

    @property
    def end_row(self) -> int:
        """The row after the last."""
        return self.first_row + num_rows(self.tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return (self.rows, *self.tensor.shape[1:]) if self.tensor.ndim else ()


def num_rows(tensor: Tensor) -> int:
    """Rows in the first dimension; a number without dimensions is one row."""
    return tensor.shape[0] if tensor.ndim else 1


def own_pieces(
    tensors: Mapping[str, Mapping[str, Tensor | Piece]], rank: int = 0, world_size: int = 1
) -> dict[str, dict[str, Piece]]:
    """Say what process `rank` writes: its pieces, and its rows of what all processes have.

    Args:
        tensors: By group and name: a Tensor is the same on all processes, a Piece is this process's own.
        rank: This process's number, 0 .. world_size - 1.
        world_size: Number of processes that write.

    Returns:
        By group and name; groups without anything to write are there too.

    Raises:
        ValueError: A piece reaches beyond its tensor.
    """
    whole = [
        (group, name, part)
        for group in sorted(tensors)
        for name, part in sorted(tensors[group].items(), key=lambda item: item[0])
        if isinstance(part, Tensor)
    ]
    total = sum(tensor.nbytes for _, _, tensor in whole)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    mine: dict[str, dict[str, Piece]] = {group: {} for group in tensors}
    begin = 0
    for group, name, tensor in whole:
        if tensor.nbytes == 0:
            first, end = 0, num_rows(tensor) if rank == 0 else 0
            taken = rank == 0
        else:
            first, end = _rows_between(tensor, low - begin, high - begin)
            taken = end > first
        if taken:
            rows = tensor[first:end] if tensor.ndim else tensor
            mine[group][name] = Piece(rows, first, num_rows(tensor))
        begin += tensor.nbytes
    for group, named in tensors.items():
        for name, part in named.items():
            if isinstance(part, Piece):
                _check(part, group, name)
                if num_rows(part.tensor) or not part.rows:
                    mine[group][name] = part
    return mine


def _rows_between(tensor: Tensor, low: int, high: int) -> tuple[int, int]:
    """The rows whose first byte lies in [low, high)."""
    rows = num_rows(tensor)
    row_bytes = tensor.nbytes // rows
    first, end = (min(max(-(-place // row_bytes), 0), rows) for place in (low, high))
    return first, end


def _check(piece: Piece, group: str, name: str) -> None:
    scalar = not piece.tensor.ndim and piece.rows != 1
    if scalar or piece.first_row < 0 or piece.end_row > piece.rows:
        raise ValueError(
            f"checkpoint group {group}, {name}: rows {piece.first_row} to {piece.end_row} are no part of a "
            f"tensor of {piece.rows} rows; rows must be those of the whole tensor."
        )
