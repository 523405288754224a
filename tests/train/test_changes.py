"""Resuming with other settings: harmless ones pass, others are named and refused."""

from pathlib import Path

import pytest

from scratchlm.train import recipes
from scratchlm.train.changes import check_changes

OLD = recipes.read("demo")


def changed(*overrides: str):
    return recipes.read("demo", overrides)


def test_lengths_intervals_and_machine_may_change_and_are_told():
    new = changed("train.steps=4000", "train.log_every=50", "train.micro_batch_tokens=512", "name=other")
    assert check_changes(OLD, new, Path("runs/a")) == {
        "name": ("demo", "other"),
        "train.log_every": (5, 50),
        "train.micro_batch_tokens": ("auto", 512),
        "train.steps": (OLD.train.steps, 4000),
    }


@pytest.mark.parametrize(
    "override",
    [
        "model.d_model=384",
        "tokenizer.vocab_size=900",
        "seed=7",
        "corpus.num_train=10",
        "batches=epochs",
        "optimizer=lion",
    ],
)
def test_what_the_weights_belong_to_may_never_change(override):
    key, value = override.split("=")
    with pytest.raises(
        ValueError, match=rf"{key}.*-> {value}.*weights and moments belong to the old settings"
    ):
        check_changes(OLD, changed(override), Path("runs/a"), allow_learning=True)


@pytest.mark.parametrize("override", ["optimizer.lr=0.1", "train.grad_clip=0.5", "train.precision=float32"])
def test_what_changes_learning_needs_to_be_allowed(override):
    key, value = override.split("=")
    with pytest.raises(ValueError, match=rf"{key}: .* -> {value}: .*say --allow-changes"):
        check_changes(OLD, changed(override), Path("runs/a"))
    assert list(check_changes(OLD, changed(override), Path("runs/a"), allow_learning=True)) == [key]


def test_nothing_changed_is_nothing_to_tell():
    assert check_changes(OLD, OLD, Path("runs/a")) == {}
