import numpy as np
import pytest
import torch

from scratchlm.data import LOADERS
from scratchlm.data.loader import get_batch
from scratchlm.data.permutation import permute, uniform

NAMES = ["windows", "epochs", "documents"]


@pytest.fixture
def counting(make_dataset):
    """100 ids in documents of 10: 0..8, end; 10..18, end; ..., so that an id tells its place."""
    return make_dataset([range(first, first + 9) for first in range(0, 100, 10)], tokens_per_shard=33)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 10, 97, 100, 1_000])
def test_permute_is_a_permutation_for_every_size(size):
    assert sorted(permute(index, size, 7, 3) for index in range(size)) == list(range(size))


def test_permute_is_another_shuffle_for_every_key():
    shuffles = {
        tuple(permute(index, 50, seed, epoch) for index in range(50))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(shuffles) == 25


def test_permute_has_no_favourite_places():
    counts = np.zeros((12, 12))
    for key in range(6_000):
        for index in range(12):
            counts[index, permute(index, 12, key)] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert (
        chi_square < 121 + 5 * (2 * 121) ** 0.5
    )  # mean and deviation of chi-square with 11 * 11 degrees of freedom


def test_permute_works_far_beyond_memory():
    size = 10**15 + 7
    places = {permute(index, size, 1) for index in range(1_000)}
    assert len(places) == 1_000
    assert 0.4 * size < np.mean(list(places)) < 0.6 * size


def test_permute_refuses_an_index_outside():
    with pytest.raises(ValueError, match="index=5 is not one of 0 to 4"):
        permute(5, 5, 0)


def test_uniform_reaches_everything_equally():
    counts = np.bincount([uniform(10, 3, step) for step in range(20_000)], minlength=10)
    assert abs(counts - 2_000).max() < 200


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_a_pure_function_of_seed_step_and_row(counting, name):
    first = LOADERS.build(name, counting, 4, 8, 1)
    rows = {(step, row): first.row(step, row).tolist() for step in range(20) for row in range(4)}
    again = LOADERS.build(name, counting, 4, 8, 1)
    for step, row in reversed(rows):
        assert again.row(step, row).tolist() == rows[step, row]
    other = LOADERS.build(name, counting, 4, 8, 2)
    assert [other.row(step, row).tolist() for step, row in rows] != list(rows.values())


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_single_rows_however_a_step_is_cut(counting, name):
    loader = LOADERS.build(name, counting, 6, 8, 1)
    whole = loader.rows(5, 0, 6)
    assert whole.inputs.dtype == whole.targets.dtype == torch.int64
    assert whole.inputs.shape == whole.targets.shape == (6, 8)
    parts = [loader.rows(5, first, count) for first, count in [(0, 1), (1, 3), (4, 2)]]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    for row in range(6):
        ids = loader.row(5, row).tolist()
        assert whole.inputs[row].tolist() == ids[:-1]
        assert whole.targets[row].tolist() == ids[1:]


@pytest.mark.parametrize("name", ["epochs", "documents"])
@pytest.mark.parametrize("rows_per_step", [1, 4, 7])
def test_a_stream_of_steps_is_the_same_order_for_any_batch_size(counting, name, rows_per_step):
    plain = LOADERS.build(name, counting, 1, 8, 1)
    loader = LOADERS.build(name, counting, rows_per_step, 8, 1)
    for number in range(40):
        step, row = divmod(number, rows_per_step)
        assert loader.row(step, row).tolist() == plain.row(number, 0).tolist()


def test_windows_reach_every_start_and_no_other(counting):
    loader = LOADERS.build("windows", counting, 1, 8, 0)
    starts = np.bincount([loader.start(step, 0) for step in range(10_000)])
    assert len(starts) == 100 - 8  # CS336: 0 .. length - context_length - 1
    assert starts.min() > 50
    stream = counting.read(0, 100)
    for step in range(50):
        start = loader.start(step, 0)
        assert loader.row(step, 0).tolist() == stream[start : start + 9].tolist()


def test_epochs_read_every_block_exactly_once_an_epoch(counting):
    loader = LOADERS.build("epochs", counting, 1, 8, 0)
    stream = counting.read(0, 100)
    blocks = sorted(stream[first : first + 9].tolist() for first in range(0, 99 - 8 + 1, 8))
    assert loader.num_rows_per_epoch == 12 == len(blocks)
    orders = []
    for epoch in range(3):
        rows = [loader.row(epoch * 12 + index, 0).tolist() for index in range(12)]
        assert sorted(rows) == blocks
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]


def test_documents_begin_every_row_after_an_end_and_come_once_an_epoch(counting):
    loader = LOADERS.build("documents", counting, 1, 12, 0)
    assert loader.num_rows_per_epoch == 10
    for epoch in range(3):
        rows = [loader.row(epoch * 10 + index, 0).tolist() for index in range(10)]
        assert all(row[0] == 256 for row in rows)
        assert sorted(row[1] for row in rows) == list(range(0, 100, 10))
    last = next(row for row in rows if row[1] == 90)
    assert last == [256, *range(90, 99), 256, 0, 1]  # runs on at the beginning


def test_long_documents_begin_rows_until_all_of_them_is_read(make_dataset):
    dataset = make_dataset([range(30), range(50, 55)])
    loader = LOADERS.build("documents", dataset, 1, 8, 0)
    assert loader.num_rows_per_epoch == 4 + 1
    rows = sorted(loader.row(step, 0).tolist() for step in range(5))
    assert [row[1] for row in rows] == [8, 16, 24, 0, 50]
    assert {token for row in rows for token in row[1:]} == {*range(30), *range(50, 55), 256}


@pytest.mark.parametrize("name", NAMES)
def test_a_context_longer_than_the_corpus_is_refused(counting, name):
    LOADERS.build(name, counting, 1, 99, 0).row(0, 0)
    with pytest.raises(
        ValueError, match=r"context_length=100 is longer than the corpus: .* holds 100 tokens"
    ):
        LOADERS.build(name, counting, 1, 100, 0)


def test_rows_outside_a_step_are_refused(counting):
    loader = LOADERS.build("windows", counting, 4, 8, 0)
    with pytest.raises(ValueError, match="row=4: rows go from 0 to 3"):
        loader.row(0, 4)


def test_get_batch_is_uniform_over_cs336_starts():
    data = np.arange(30, dtype=np.uint16)
    batch = get_batch(data, 20_000, 10, "cpu")
    assert torch.equal(batch.inputs + 1, batch.targets)
    assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(10))
    counts = torch.bincount(batch.inputs[:, 0])
    assert len(counts) == 20
    assert (counts - 1_000).abs().max() < 200


def test_get_batch_refuses_a_context_longer_than_the_data():
    with pytest.raises(ValueError, match="context_length=5 is longer than the corpus of 5 tokens"):
        get_batch(np.arange(5), 1, 5, "cpu")
