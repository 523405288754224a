import random

import pytest
import torch

from scratchlm.data.packing import documents_of, evaluation_rows

END = 256


def predictions(rows):
    """Every scored target with what the model sees before it in its row."""
    for inputs, targets in rows:
        assert inputs.shape == targets.shape
        for row_inputs, row_targets in zip(inputs.tolist(), targets.tolist(), strict=True):
            for place, target in enumerate(row_targets):
                if target != -1:
                    yield row_inputs[: place + 1], target


def test_the_worked_example(make_dataset):
    dataset = make_dataset([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    rows = list(evaluation_rows(dataset, 8))
    assert [row.inputs.tolist() for row in rows] == [
        [[END, 1, 2, 3, END, 4, 5, END]],
        [[END, 6, 7, 8, 9, END, END, END]],
    ]
    assert [row.targets.tolist() for row in rows] == [
        [[1, 2, 3, END, 4, 5, END, -1]],
        [[6, 7, 8, 9, END, -1, -1, -1]],
    ]


@pytest.mark.parametrize("context_length", [1, 3, 10, 64])
def test_every_token_is_predicted_exactly_once_from_its_own_document(make_dataset, context_length):
    chooser = random.Random(context_length)
    lengths = [chooser.choice([0, 1, 2, 5, 9, 10, 11, 30, 64, 100]) for _ in range(200)]
    names = iter(range(10**9))
    documents = [[next(names) + 300 for _ in range(length)] for length in lengths]
    dataset = make_dataset(documents, vocab_size=100_000)
    seen = {}
    num_ends = 0
    for context, target in predictions(evaluation_rows(dataset, context_length)):
        if target == END:
            num_ends += 1
        else:
            assert target not in seen
            seen[target] = context
    assert num_ends == len(documents)
    assert sorted(seen) == [token for document in documents for token in document]
    for document in documents:
        for place, token in enumerate(document):
            known = place % context_length  # ids of the document that its piece of the context holds
            expected = [END, *document[:place]][place - known :]
            assert seen[token][len(seen[token]) - known - 1 :] == expected


def test_rows_are_the_same_on_every_call(make_dataset):
    dataset = make_dataset([[number] * (number % 17) for number in range(200)])
    first, second = (list(evaluation_rows(dataset, 20)) for _ in range(2))
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


def test_first_fit_leaves_little_padding(make_dataset):
    chooser = random.Random(0)
    dataset = make_dataset([[1] * chooser.randrange(20, 200) for _ in range(500)])
    num_rows = sum(1 for _ in evaluation_rows(dataset, 256))
    assert dataset.num_tokens / (num_rows * 256) > 0.9


def test_max_rows_ends_early(make_dataset):
    dataset = make_dataset([[1] * 10] * 20)
    assert sum(1 for _ in evaluation_rows(dataset, 11, max_rows=7)) == 7
    with pytest.raises(ValueError, match="max_rows=0: at least 1"):
        next(evaluation_rows(dataset, 11, max_rows=0))


def test_an_end_of_text_begins_the_document_after_it():
    ids = torch.tensor([[END, 1, 2, END, 3], [1, 2, END, END, 3]])
    assert documents_of(ids, END).tolist() == [[1, 1, 1, 2, 2], [0, 0, 1, 2, 2]]


def test_documents_of_evaluation_rows_are_the_documents_packed_into_them(make_dataset):
    dataset = make_dataset([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    first, second = (documents_of(row.inputs, END).tolist() for row in evaluation_rows(dataset, 8))
    assert first == [[1, 1, 1, 1, 2, 2, 2, 3]]
    assert second[0][:5] == [1, 1, 1, 1, 1]
