"""Claims about batch sizes: they double until the memory or the budget ends them."""

import re

import pytest

from scratchlm.lab import batch_sizes as module
from scratchlm.lab.batch_sizes import batch_sizes, memory_for
from scratchlm.lab.cells import resolve
from scratchlm.lab.search import points
from scratchlm.lab.spec import Study, read_study


def study_of(tokens=640_000, **changes):
    known = {
        "name": "sizes", "question": "?", "recipe": "demo", "settings": ("model.context_length=64",),
        "grid": {"optimizer.lr": [1e-3, 1e-2]}, "rows": {"first": 8, "least_steps": 40},
        "budget": {"tokens": tokens},
    }  # fmt: skip
    return Study(**{**known, **changes})


@pytest.fixture
def endless(monkeypatch):
    monkeypatch.setattr(module, "memory_of_a_run", lambda device: 1e15)


@pytest.mark.usefixtures("endless")
def test_sizes_double_while_the_budget_pays_for_enough_steps():
    found = batch_sizes(study_of())
    assert found.rows == [8, 16, 32, 64, 128]  # 256 rows of 64 tokens would make 39 steps of 640,000 tokens
    assert found.end == "256 rows leave 39 steps of 640,000 tokens, fewer than rows.least_steps=40."


def test_sizes_double_while_all_rows_fit_into_half_of_the_memory(monkeypatch):
    from scratchlm.train import recipes

    config = recipes.read("demo", ["model.context_length=64"])
    needed = [memory_for(config, rows) for rows in (8, 16, 32)]
    assert needed[0] < needed[1] < needed[2]
    monkeypatch.setattr(module, "memory_of_a_run", lambda device: 2 * needed[1])
    found = batch_sizes(study_of(tokens=10**12))
    assert found.rows == [8, 16]
    assert re.match(r"32 rows at once need [\d.]+ GB; there are [\d.]+ GB for them\.", found.end)


@pytest.mark.usefixtures("endless")
def test_cells_are_named_by_rows_and_have_equal_tokens():
    study = study_of(tokens=64_000)
    found = points(study, {})
    assert [point.label for point in found] == [
        "8 rows, lr 0.001", "8 rows, lr 0.01", "16 rows, lr 0.001", "16 rows, lr 0.01",
    ]  # fmt: skip
    trained = [cell.config.train for cell in resolve(study, found)]
    assert [train.batch_tokens for train in trained] == [512, 512, 1024, 1024]
    assert [train.steps for train in trained] == [125, 125, 62, 62]


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"flops": 1e12}}, "sizes: rows compares equal tokens; give budget = { tokens = N }."),
        ({"tokens": 10_000}, "sizes: rows.first=8: 8 rows leave 19 steps of 10,000 tokens, fewer than"),
        ({"experiment": "quadratic"}, "sizes: rows are of training runs; quadratic has none."),
    ],
)
def test_what_is_wrong_is_told(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        batch_sizes(study_of(**changes))


def test_a_word_cannot_set_the_batch_size_of_a_study_of_batch_sizes():
    with pytest.raises(ValueError, match=r"train.batch_tokens=512 and the cells both set train.batch_tokens"):
        read_study("batch-size", "cpu", ["train.batch_tokens=512"])
