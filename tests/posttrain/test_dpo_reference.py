"""The reference's log-probabilities: right, computed once, and kept under a fingerprint."""

import json

import numpy as np
import pytest
import torch
from preference_files import some_pairs
from small_bases import tokenizer_of

from scratchlm.model.config import ModelConfig
from scratchlm.model.transformer import TransformerLM
from scratchlm.posttrain import reference
from scratchlm.posttrain.pairs import write_pairs
from scratchlm.posttrain.reference import Reference, answer_log_probs, by_answer
from scratchlm.tokenizer.chat import ChatTemplate

CPU = torch.device("cpu")
HOW = {"room": 160, "arrangement": "packed", "padding_id": 0}


@pytest.fixture(scope="module")
def pairs():
    return write_pairs(some_pairs(11), ChatTemplate(tokenizer_of(chat=True)), max_tokens=160)[0]


@pytest.fixture(scope="module")
def model(pairs):
    torch.manual_seed(5)
    vocabulary = int(pairs.answers.ids.max()) + 1
    return TransformerLM(
        ModelConfig(vocab_size=vocabulary, context_length=160, d_model=32, num_layers=2, num_heads=2, d_ff=48)
    ).eval()


def one_by_one(model, pairs, numbers):
    """Each answer in a row of its own, every step written out."""
    found = []
    for written in pairs.written(numbers):
        ids = torch.from_numpy(written.ids).long()[None]
        logits = model(ids[:, :-1]).double()
        log_p = (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, ids[:, 1:, None])[0, :, 0]
        found.append(log_p[torch.from_numpy(written.mask[1:])].sum())
    return torch.stack(found).float()


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
def test_answers_in_rows_have_the_log_probability_that_they_have_alone(pairs, model, arrangement):
    numbers = [3, 8, 0, 10]
    batch = pairs.rows(numbers, **HOW | {"arrangement": arrangement})
    assert (len(batch.inputs) < 8) == (arrangement == "packed")
    found = answer_log_probs(model, batch, device=CPU, precision="float32")
    torch.testing.assert_close(found, one_by_one(model, pairs, numbers), atol=1e-4, rtol=1e-5)


def test_values_are_added_up_by_answer():
    assert by_answer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 0]), 3).tolist() == [4, 0, 2]


def counting(model):
    calls = []

    def make():
        calls.append(1)
        return model

    return make, calls


def reference_of(pairs, make):
    order = [10, 2, 9, 4, 0, 1, 8, 3, 5, 6, 7]
    return Reference(pairs, make, device=CPU, precision="float32", how=HOW, order=order)


def test_each_group_of_pairs_is_computed_once(pairs, model):
    make, calls = counting(model)
    known = reference_of(pairs, make)
    first = known.log_probs([1, 2, 3])
    assert len(calls) == 1
    told = []
    assert known.compute([2, 3, 6, 4, 6], lambda done, total: told.append((done, total))) == 3
    assert told == [(3, 3)]
    assert torch.equal(known.log_probs([1, 2, 3]), first)
    assert len(calls) == 2
    torch.testing.assert_close(first, one_by_one(model, pairs, [1, 2, 3]), atol=1e-4, rtol=1e-5)
    assert not first.requires_grad


def test_a_number_is_the_same_to_the_last_bit_whatever_else_is_asked_for(pairs, model):
    whole, single = reference_of(pairs, lambda: model), reference_of(pairs, lambda: model)
    whole.compute(range(11))
    for number in (6, 0, 3):
        assert torch.equal(single.log_probs([number]), whole.log_probs([number]))


def test_what_was_written_is_read_back_bit_for_bit_and_holes_stay_holes(tmp_path, pairs, model):
    path = tmp_path / "reference.json"
    known, again = (reference_of(pairs, lambda: model) for _ in "ab")
    known.compute([0, 4])
    reference.save(path, "mark", {"train": known})
    assert reference.load(path, "mark", {"train": again})
    np.testing.assert_array_equal(again.known, known.known)
    assert np.isnan(again.known[5]).all()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        '{"fingerprint": "mark"}',
        '{"fingerprint": "mark", "train": [[1.0]]}',
        json.dumps({"fingerprint": "other", "train": [[1.0, 2.0]] * 11}),
        json.dumps({"fingerprint": "mark", "train": [[1.0, 2.0]] * 3}),
    ],
)
def test_a_file_that_is_missing_damaged_or_of_something_else_is_not_used(
    tmp_path, pairs, model, text, caplog
):
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    known = reference_of(pairs, lambda: model)
    assert not reference.load(path, "mark", {"train": known})
    assert np.isnan(known.known).all()


def test_the_fingerprint_changes_with_any_weight_and_with_anything_else():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(1.0)}
    mark = reference.fingerprint(weights, "x", "y")
    assert mark == reference.fingerprint(dict(reversed(weights.items())), "x", "y")
    others = [
        reference.fingerprint(weights, "xy"),
        reference.fingerprint(weights | {"a": torch.tensor([0.0, 1e-9, 0.0])}, "x", "y"),
        reference.fingerprint(weights | {"c": torch.tensor(1.0, dtype=torch.float64)}, "x", "y"),
    ]
    assert len({mark, *others}) == 4
