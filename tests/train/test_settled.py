"""What "auto" became is kept: a run goes on as it began, whatever the machine measures later."""

import pytest

from scratchlm.train import recipes
from scratchlm.train.folder import RunFolder
from scratchlm.train.plan import make_plan
from scratchlm.train.settled import remember, settled_before, with_settled

TINY = ["model.d_model=32", "model.num_heads=2", "model.num_layers=1", "tokenizer.vocab_size=300"]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    chosen = recipes.read(
        "demo", [*TINY, "train.compile=true", "train.precision=float32", "train.micro_batch_tokens=512"]
    )
    remember(RunFolder(tmp_path), make_plan(chosen), 1)
    return RunFolder(tmp_path)


def test_a_resumed_run_takes_what_the_first_one_chose(folder):
    config = with_settled(recipes.read("demo", TINY), settled_before(folder, 1, "cpu"))
    plan = make_plan(config)
    assert (plan.compile, plan.precision, plan.micro_batch_tokens) == (True, "float32", 512)


def test_a_setting_that_is_given_counts_for_itself(folder):
    config = recipes.read("demo", [*TINY, "train.compile=false", "train.micro_batch_tokens=1024"])
    train = with_settled(config, settled_before(folder, 1, "cpu")).train
    assert (train.compile, train.precision, train.micro_batch_tokens) == (False, "float32", 1024)


def test_another_number_of_processes_chooses_its_rows_anew(folder):
    settled = settled_before(folder, 2, "cpu")
    assert settled == {"compile": True, "precision": "float32"}


def test_a_new_run_has_nothing_settled(tmp_path):
    config = recipes.read("demo", TINY)
    assert settled_before(RunFolder(tmp_path), 1, "cpu") == {}
    assert with_settled(config, {}) == config


def test_a_damaged_plan_is_named(folder):
    folder.plan.write_text('{"precision": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"plan\.json: damaged .*remove it"):
        settled_before(folder, 1, "cpu")


def test_on_another_kind_of_device_everything_is_chosen_anew(tmp_path):
    folder = RunFolder(tmp_path)
    remember(folder, make_plan(recipes.read("demo", [*TINY, "train.compile=false"])), 1)
    assert settled_before(folder, 1, "cpu")["compile"] is False
    assert settled_before(folder, 1, "cuda") == {}
