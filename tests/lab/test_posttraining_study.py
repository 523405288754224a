"""Claims about studies of post-training: all cells go on from one start, which is made once."""

import json

import pytest

from scratchlm.lab.cells import resolve
from scratchlm.lab.export import command_of
from scratchlm.lab.rows import read_rows
from scratchlm.lab.runner import run_study
from scratchlm.lab.search import points
from scratchlm.lab.spec import Study, read_study
from scratchlm.lab.start import resolve_start

START = ({"do": "train", "recipe": "demo"}, {"do": "sft", "recipe": "demo-sft"})
CELLS = ({"label": "mean"}, {"label": "none", "settings": ["baseline=none", "normalizer=none"]})
TINY = (
    "corpus={ name = 'stories', num_train = 20, num_valid = 2, seed = 1 }",
    "tokenizer={ name = 'bpe', vocab_size = 300 }",
    "model={ name = 'transformer', context_length = 96, d_model = 16, num_layers = 1, num_heads = 2 }",
    "train={ steps = 3, batch_tokens = 192, compile = false, eval_tokens = 96, sample_every = 3 }",
    "sampling.max_new_tokens=4",
)
GONE = "corpus={ name = 'files', paths = ['nothing.txt'] }"
FEW = "data={ name = 'exercises', num_valid = 4, exercises = [{ name = 'arithmetic', num = 16 }] }"


def study_of(**changes):
    words = {"recipe": "demo-grpo", "experiment": "grpo", "start": START, "cells": CELLS, "seeds": (1, 2)}
    return Study(**{"name": "rewards", "question": "Which?", **words, **changes})


def cells_of(study):
    return resolve(study, points(study, {}))


def test_all_cells_go_on_from_one_start():
    cells = cells_of(study_of())
    assert len({cell.config.base for cell in cells}) == 1
    assert len({cell.key for cell in cells}) == 4
    assert cells[0].config.base.parts[0] == "shared"
    assert cells[0].config.base.name == "2-sft"


def test_another_start_makes_other_cells():
    longer = (START[0], {**START[1], "settings": ["train.steps=7"]})
    first, second = cells_of(study_of()), cells_of(study_of(start=longer))
    assert first[0].config.base != second[0].config.base
    assert not {cell.key for cell in first} & {cell.key for cell in second}


def test_a_cell_without_a_start_goes_on_from_the_recipes_base():
    cell = cells_of(study_of(start=(), settings=("base='runs/mine'",)))[0]
    assert str(cell.config.base) == "runs/mine"


def test_a_base_beside_a_start_is_refused():
    with pytest.raises(ValueError, match=r"base='runs/mine': cells go on from the study's start"):
        cells_of(study_of(settings=("base='runs/mine'",)))


def test_cells_are_measured_as_often_as_the_study_says():
    cell = cells_of(study_of(validations=4, settings=("train.steps=40",)))[0]
    assert (cell.config.train.eval_every, cell.config.train.keep_checkpoints) == (10, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"tokens": 1000}}, "a budget is for experiment='train'; set train.steps"),
        ({"cells": ({"label": "few", "budget": {"flops": 1e9}},)}, "a budget is for experiment='train'"),
        ({"experiment": "train", "recipe": "demo"}, "start is what cells of post-training go on from"),
        ({"grid": {"base": ["a", "b"]}, "cells": None}, "start is what cells of post-training go on from"),
    ],
)
def test_what_contradicts_a_start_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        cells_of(study_of(**changes))


@pytest.mark.parametrize(
    ("links", "words"),
    [
        (START[1:], r"start\[0\] \(sft\): the first link is a train"),
        ((START[0], START[0]), r"start\[1\] \(train\): the first link is a train"),
        ((START[0], {"do": "sft", "recipe": "demo-sftt"}), r"start\[1\] \(sft\): .*Did you mean 'demo-sft'"),
    ],
)
def test_a_link_that_cannot_be_run_is_named(links, words):
    with pytest.raises(ValueError, match=words):
        resolve_start("mine", study_of(start=links).start)


def test_a_recipe_beside_the_study_is_found_for_a_link_too(tmp_path):
    (tmp_path / "own.toml").write_text("", encoding="utf-8")
    tree = study_of(start=({"do": "train", "recipe": "own.toml"}, START[1])).model_dump(mode="json")
    (tmp_path / "study.json").write_text(json.dumps(tree), encoding="utf-8")
    found = read_study(str(tmp_path / "study.json"))
    assert [link.recipe for link in found.start] == [str(tmp_path / "own.toml"), "demo-sft"]


def test_the_command_of_a_shipped_study_is_told_though_its_recipes_lie_elsewhere():
    study = read_study("grpo-variants")
    assert command_of(study, "cpu") == "scratchlm study run grpo-variants --scale cpu"
    assert command_of(study.model_copy(update={"start": study.start[:1]}), "cpu") == ""


@pytest.mark.slow
@pytest.mark.distributed
def test_the_start_is_made_once_and_a_second_call_finds_everything_done(tmp_path):
    start = (
        {"do": "train", "recipe": "demo", "settings": TINY},
        {
            "do": "sft",
            "recipe": "demo-sft",
            "settings": (FEW, "train.steps=2", "conversations_per_step=4", "sampling.max_new_tokens=4"),
        },
    )
    settings = (
        "data='arithmetic'",
        *("train.steps=2", "prompts_per_step=2", "group_size=2", "rollout.max_new_tokens=4"),
        *("valid_problems=4", "eval_problems=4", "sampling.max_new_tokens=4"),
    )
    study = study_of(start=start, settings=settings, seeds=(1,), validations=1)
    told = []
    outcome = run_study(study, tmp_path / "study", jobs=1, watch=lambda seen: told.append(seen.preparing))
    assert [row.state for row in outcome.results] == ["finished"] * 2, [row.error for row in outcome.results]
    assert max(told) == 1
    assert all(0 <= row.final_loss <= 1 and row.guessing_loss is None for row in outcome.results)
    made = sorted(path.name for path in next((tmp_path / "study" / "shared").iterdir()).iterdir())
    assert made == ["1-train", "2-sft"]
    again = run_study(study, tmp_path / "study", jobs=1, watch=lambda seen: told.append(seen.preparing))
    assert again.results == read_rows(tmp_path / "study" / "rows.csv")
    nothing = (study.start[0].model_copy(update={"settings": (*TINY, GONE)}),)
    with pytest.raises(ValueError, match=r"what its cells go on from: .*nothing\.txt"):
        run_study(study.model_copy(update={"start": nothing}), tmp_path / "other", jobs=1)
