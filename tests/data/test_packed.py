"""The packed loader: whole documents, each once an epoch, in rows that are almost full."""

import random

import numpy as np
import pytest
import torch

from scratchlm.data import LOADERS
from scratchlm.data.packed import plan_rows
from scratchlm.data.packing import documents_of, evaluation_rows

END = 256


def numbered(lengths):
    """Documents of these lengths (without their end) in which no id comes twice."""
    ids = iter(range(300, 10**9))
    return [[next(ids) for _ in range(length)] for length in lengths]


@pytest.fixture
def mixed(make_dataset):
    """Lengths around every border of a context of 10: shorter, equal, longer by one, many times longer."""
    chooser = random.Random(1)
    lengths = [chooser.choice([0, 1, 2, 3, 5, 8, 9, 10, 11, 19, 20, 33, 64]) for _ in range(150)]
    documents = numbered(lengths)
    return documents, make_dataset(documents, vocab_size=100_000, tokens_per_shard=97)


def epoch_of(loader, epoch):
    """Inputs and targets of all rows of one epoch."""
    number = loader.num_rows_per_epoch
    steps = [divmod(epoch * number + index, loader.rows_per_step) for index in range(number)]
    return [loader.rows(step, row, 1) for step, row in steps]


def test_the_worked_example(make_dataset):
    a, b, c, d = [1, 2, 3], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21], [30, 31]
    loader = LOADERS.build("packed", make_dataset([a, b, c, d]), 3, 8, 0)
    rows = loader.rows(0, 0, 3)
    found = {tuple(row): targets for row, targets in zip(*(x.tolist() for x in rows), strict=True)}
    two = [*c, END, *d, END] if (END, *c, END, *d, END, END) in found else [*d, END, *c, END]
    assert found == {
        (END, *b[:7]): b[:8],
        (17, 18, 19, END, *a, END): [18, 19, END, *a, END, -1],
        (END, *two, END): [*two, -1, -1],
    }
    assert loader.num_rows_per_epoch == 3


@pytest.mark.parametrize("context_length", [1, 2, 3, 10, 64, 500])
@pytest.mark.parametrize("epoch", [0, 2])
def test_every_token_is_a_target_exactly_once_an_epoch_after_its_own_document(mixed, context_length, epoch):
    documents, dataset = mixed
    loader = LOADERS.build("packed", dataset, 4, context_length, 7)
    seen, num_ends = {}, 0
    for inputs, targets in epoch_of(loader, epoch):
        for place, target in enumerate(targets[0].tolist()):
            if target == END:
                num_ends += 1
            elif target != -1:
                assert target not in seen
                seen[target] = inputs[0, : place + 1].tolist()
    assert num_ends == len(documents)
    assert sorted(seen) == [token for document in documents for token in document]
    for document in documents:
        for place, token in enumerate(document):
            known = place % context_length
            assert seen[token][len(seen[token]) - known - 1 :] == [END, *document[:place]][place - known :]


def test_a_document_number_holds_one_document_only(mixed):
    documents, dataset = mixed
    home = {token: number for number, document in enumerate(documents) for token in document}
    for inputs, _ in epoch_of(LOADERS.build("packed", dataset, 1, 10, 0), 0):
        numbers = documents_of(inputs, END)[0].tolist()
        groups = {}
        for token, number in zip(inputs[0].tolist(), numbers, strict=True):
            if token != END:
                groups.setdefault(number, set()).add(home[token])
        assert all(len(homes) == 1 for homes in groups.values())


def test_rows_are_a_pure_function_and_another_seed_or_epoch_packs_others_together(mixed):
    _, dataset = mixed
    loader, again, other = (LOADERS.build("packed", dataset, 5, 20, seed) for seed in (1, 1, 2))
    places = [(step, row) for step in range(30) for row in range(5)]
    rows = {place: loader.row(*place).tolist() for place in places}
    for place in reversed(places):
        assert again.row(*place).tolist() == rows[place]
    assert [other.row(*place).tolist() for place in places] != list(rows.values())
    packed = [{tuple(row.targets[0].tolist()) for row in epoch_of(loader, epoch)} for epoch in range(2)]
    assert len(packed[0]) == len(packed[1])
    assert packed[0] != packed[1]


@pytest.mark.parametrize("name", LOADERS.names())
def test_loaders_say_whether_some_targets_are_none(mixed, name):
    loader = LOADERS.build(name, mixed[1], 1, 10, 1)
    targets = torch.cat([loader.rows(step, 0, 1).targets for step in range(loader.num_rows_per_epoch)])
    assert (targets == -1).any() == loader.padded
    assert (targets != -1).any(dim=1).all()  # but no row is without any


@pytest.mark.parametrize("rows_per_step", [1, 4, 7])
def test_a_stream_of_steps_is_the_same_order_for_any_batch_size(mixed, rows_per_step):
    _, dataset = mixed
    plain, loader = (LOADERS.build("packed", dataset, rows, 10, 1) for rows in (1, rows_per_step))
    whole = loader.rows(3, 0, rows_per_step)
    assert whole.inputs.dtype == whole.targets.dtype == torch.int64
    for row in range(rows_per_step):
        single = plain.rows(3 * rows_per_step + row, 0, 1)
        assert torch.equal(single.inputs[0], whole.inputs[row])
        assert torch.equal(single.targets[0], whole.targets[row])


@pytest.mark.parametrize(("shortest", "longest", "share"), [(1, 60, 0.98), (20, 200, 0.95), (100, 900, 0.85)])
def test_packing_wastes_no_more_than_first_fit_does(make_dataset, shortest, longest, share):
    """Documents longer than the context leave more room: last pieces cannot share a row."""
    chooser = random.Random(0)
    dataset = make_dataset([[1] * chooser.randrange(shortest, longest) for _ in range(400)])
    num_rows = LOADERS.build("packed", dataset, 1, 256, 0).num_rows_per_epoch
    assert num_rows <= sum(1 for _ in evaluation_rows(dataset, 256))
    assert dataset.num_tokens / (num_rows * 256) > share


def naive_best_fit(lengths, room_of_openers, context_length):
    """Best-fit decreasing, one document at a time; returns the room that is left in each row."""
    rooms = [context_length - rest for rest in room_of_openers]
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting) if fitting else context_length
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_planning_by_lengths_equals_packing_one_document_at_a_time(seed):
    chooser = np.random.default_rng(seed)
    context = int(chooser.integers(2, 40))
    counts = np.where(chooser.random(2 * context) < 0.5, chooser.integers(0, 30, 2 * context), 0)
    counts[[0, context]] = 0
    kinds = plan_rows(counts, context)
    lengths = np.repeat(np.arange(1, context), counts[1:context]).tolist()
    openers = np.repeat(np.arange(1, context), counts[context + 1 :]).tolist()
    rooms = [
        context - sum(slot.key % context for slot in kind.slots) for kind in kinds for _ in range(kind.count)
    ]
    assert sorted(rooms) == naive_best_fit(lengths, openers, context)
    taken = {key: [] for key in range(2 * context)}
    for kind in kinds:
        for slot in kind.slots:
            taken[slot.key] += range(slot.first, slot.first + kind.count)
        assert all(slot.key < context for slot in kind.slots[1:])  # a last piece opens its row
    assert [len(pieces) for pieces in taken.values()] == counts.tolist()
    assert all(sorted(pieces) == list(range(len(pieces))) for pieces in taken.values())


def test_the_plan_is_small_for_any_number_of_documents():
    counts = np.zeros(2048, dtype=np.int64)
    counts[1:1024] = 10_000_000
    counts[1025:] = 1_000_000
    kinds = plan_rows(counts, 1024)
    assert len(kinds) < 3 * 2048
    num_ids = 10_000_000 * sum(range(1, 1024)) + 1_000_000 * sum(range(1, 1024))
    assert num_ids / (1024 * sum(kind.count for kind in kinds)) > 0.999


def test_a_dataset_that_names_no_end_is_refused(make_dataset):
    dataset = make_dataset([range(50)])
    dataset.manifest = dataset.manifest.model_copy(update={"extra": {}})
    with pytest.raises(ValueError, match="names no end_of_text_id; prepare the corpus again"):
        LOADERS.build("packed", dataset, 1, 10, 0)


def test_rows_outside_a_step_are_refused(mixed):
    _, dataset = mixed
    with pytest.raises(ValueError, match="row=4: rows go from 0 to 3"):
        LOADERS.build("packed", dataset, 4, 10, 0).rows(0, 4, 1)
