"""Who writes which rows: every row once, equal shares, nothing beyond a tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.checkpoint import Piece
from scratchlm.checkpoint.piece import own_pieces

SHAPES = st.lists(st.lists(st.integers(0, 6), max_size=3).map(tuple), max_size=6)


@given(shapes=SHAPES, world_size=st.integers(1, 9))
def test_every_row_of_what_all_have_is_written_by_exactly_one_process(shapes, world_size):
    tensors = {"model": {f"p{number}": torch.rand(shape) for number, shape in enumerate(shapes)}}
    shares = [own_pieces(tensors, rank, world_size)["model"] for rank in range(world_size)]
    for name, whole in tensors["model"].items():
        pieces = [share[name] for share in shares if name in share]
        assert all(piece.shape == whole.shape for piece in pieces)
        assert [piece.first_row for piece in pieces] == [0, *(piece.end_row for piece in pieces[:-1])]
        assert torch.equal(torch.cat([piece.tensor.reshape(-1) for piece in pieces]), whole.reshape(-1))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_all_processes_write_equal_shares_but_for_a_row(world_size):
    tensors = {"model": {"embeddings": torch.zeros(500, 16), "a": torch.zeros(16, 40), "b": torch.zeros(40)}}
    total = sum(tensor.nbytes for tensor in tensors["model"].values())
    for rank in range(world_size):
        share = own_pieces(tensors, rank, world_size)["model"].values()
        num_bytes = sum(piece.tensor.nbytes for piece in share)
        assert abs(num_bytes - total / world_size) <= 40 * 4


def test_the_shares_do_not_depend_on_the_order_of_names():
    one = {"model": {"a": torch.zeros(4), "b": torch.ones(4)}, "ema": {"a": torch.zeros(3)}}
    other = {"ema": {"a": torch.zeros(3)}, "model": {"b": torch.ones(4), "a": torch.zeros(4)}}
    for rank in range(3):
        shares = [own_pieces(tensors, rank, 3) for tensors in (one, other)]
        places = [{g: {n: p.first_row for n, p in named.items()} for g, named in s.items()} for s in shares]
        assert places[0] == places[1]


def test_a_piece_is_written_by_who_gives_it():
    shard = Piece(torch.arange(2.0), 4, 8)
    empty = Piece(torch.zeros(0), 8, 8)
    tensors = {"optimizer": {"0.m": shard, "0.v": empty, "step": Piece.whole(torch.tensor(3.0))}}
    for rank in range(3):
        mine = own_pieces(tensors, rank, 3)["optimizer"]
        assert mine.keys() == {"0.m", "step"}, "no rows, nothing to write"
        assert (mine["0.m"].first_row, mine["0.m"].end_row, mine["0.m"].shape) == (4, 6, (8,))
        assert (mine["step"].first_row, mine["step"].end_row, mine["step"].shape) == (0, 1, ())


@pytest.mark.parametrize(
    "piece", [Piece(torch.zeros(3), 6, 8), Piece(torch.zeros(3), -1, 8), Piece(torch.tensor(1.0), 0, 2)]
)
def test_rows_beyond_the_tensor_are_refused(piece):
    with pytest.raises(ValueError, match=r"group model, w: rows .* are no part of a tensor of \d rows"):
        own_pieces({"model": {"w": piece}}, 0, 2)
