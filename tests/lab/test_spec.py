"""Claims about study files: what is wrong is one clear error before anything runs."""

import re

import pytest

from scratchlm.lab import cells
from scratchlm.lab.cells import resolve
from scratchlm.lab.search import points, rivals
from scratchlm.lab.spec import names, read_study
from scratchlm.train.config import RunConfig

GOOD = {
    "name": '"two"',
    "question": '"Which is better?"',
    "recipe": '"demo"',
    "settings": '["train.batch_tokens=512", "model.context_length=64"]',
    "seeds": "[1, 2]",
    "budget": "{ tokens = 5120 }",
    "grid": '{ "optimizer.lr" = [1e-3, 1e-2] }',
}


def write(tmp_path, **changes):
    tree = {**GOOD, **changes}
    path = tmp_path / "study.toml"
    text = "\n".join(f"{key} = {value}" for key, value in tree.items() if value is not None)
    path.write_text(text, encoding="utf-8")
    return str(path)


def cells_of(path, *words, scale="cpu"):
    study = read_study(path, scale, words)
    return resolve(study, points(study, {}))


def test_a_grid_has_a_cell_for_each_combination_and_seed(tmp_path):
    cells = cells_of(write(tmp_path, grid='{ "optimizer.lr" = [1e-3, 1e-2], "model.num_layers" = [1, 2] }'))
    assert [cell.label for cell in cells[::2]] == [
        "lr 0.001, num_layers 1", "lr 0.001, num_layers 2", "lr 0.01, num_layers 1", "lr 0.01, num_layers 2",
    ]  # fmt: skip
    assert [cell.seed for cell in cells[:2]] == [1, 2]
    assert cells[0].config.optimizer.settings["lr"] == 1e-3
    assert cells[-1].config.model.num_layers == 2
    assert {cell.config.train.steps for cell in cells} == {10}


def test_the_name_of_a_folder_changes_with_any_setting_but_not_with_the_machine(tmp_path):
    path = write(tmp_path)
    key = cells_of(path)[0].key
    assert cells_of(path)[0].key == key
    assert cells_of(path, "model.dropout=0.1")[0].key != key
    assert cells_of(path, "nproc=2", "data.workers=1")[0].key == key
    assert cells_of(path, "model.dropout=0.0")[0].key == key, "a default that is written out"


def test_a_setting_that_a_later_version_adds_leaves_the_names_of_folders(tmp_path):
    class Later(RunConfig):
        added: int = 3

    cell = cells_of(write(tmp_path))[0]
    later = Later(**cell.config.model_dump())
    assert cells._key(cell.label, cell.seed, later) == cell.key
    assert cells._key(cell.label, cell.seed, later.model_copy(update={"added": 4})) != cell.key


def test_a_budget_in_flops_gives_larger_models_fewer_steps(tmp_path):
    path = write(tmp_path, budget="{ flops = 1e10 }", grid='{ "model.num_layers" = [1, 4] }', seeds="[1]")
    small, large = cells_of(path)
    assert small.config.train.steps > large.config.train.steps
    from scratchlm.lab.experiments import TrainExperiment

    spent = [TrainExperiment().estimate(cell.config) for cell in (small, large)]
    assert all(1e10 - need.flops / need.steps < need.flops <= 1e10 for need in spent)


def test_a_budget_in_minutes_is_the_same_for_all_seeds_and_what_was_settled_before(tmp_path):
    path = write(tmp_path, budget="{ minutes = 0.5 }")
    steps = [cell.config.train.steps for cell in cells_of(path)]
    assert steps[0] == steps[1]
    study = read_study(path)
    again = resolve(study, points(study, {}), {"0.001": 7, "0.01": 9})
    assert [cell.config.train.steps for cell in again] == [7, 7, 9, 9]


CHANGES = (
    '[{ label = "A", settings = ["model.num_layers=1"] }, { label = "B", settings = ["model.dropout=0.1"] },'
    ' { label = "C", settings = ["model.bias=true"] }]'
)


def test_changes_make_cells_with_none_with_each_alone_with_all_and_with_all_but_each(tmp_path):
    path = write(tmp_path, grid=None, changes=CHANGES, seeds="[1]")
    models = {cell.label: cell.config.model for cell in cells_of(path)}
    assert {name: (m.num_layers == 1, m.dropout > 0, m.bias) for name, m in models.items()} == {
        "none": (False, False, False),
        "+ A": (True, False, False), "+ B": (False, True, False), "+ C": (False, False, True),
        "all": (True, True, True),
        "all but A": (False, True, True), "all but B": (True, False, True), "all but C": (True, True, False),
    }  # fmt: skip
    assert rivals(read_study(path)) == {f"all but {change}": "all" for change in "ABC"}


def test_words_with_a_key_of_the_study_change_the_study_and_others_its_runs(tmp_path):
    cells = cells_of(write(tmp_path), "seeds=[7]", "budget.tokens=1024", "model.d_model=96")
    assert [(cell.seed, cell.config.train.steps, cell.config.model.d_model) for cell in cells] == [
        (7, 2, 96)
    ] * 2


def test_a_scale_lies_over_the_study(tmp_path):
    path = write(tmp_path, scales='{ gpu = { settings = ["model.d_model=384"], seeds = [3] } }')
    cells = cells_of(path, scale="gpu")
    assert (cells[0].seed, cells[0].config.model.d_model) == (3, 384)
    assert cells[0].config.optimizer.settings["lr"] == 1e-3
    other = write(tmp_path, scales='{ gpu = { grid = { "optimizer.lr" = [5e-2] } } }')
    assert [cell.label for cell in cells_of(other, scale="gpu")] == ["0.05", "0.05"]
    with pytest.raises(ValueError, match=re.escape("two: has no scale 'cpu'; known: gpu.")):
        read_study(path, "cpu")


def test_a_random_search_draws_the_same_cells_again(tmp_path):
    rates = '"optimizer.lr" = { low = 1e-4, high = 1e-1, log = true }'
    space = f'{{ {rates}, "model.num_layers" = {{ choices = [1, 2] }} }}'
    path = write(tmp_path, grid=None, random=f"{{ trials = 6, seed = 4, space = {space} }}")
    first, again = cells_of(path), cells_of(path)
    assert [cell.key for cell in first] == [cell.key for cell in again]
    assert all(1e-4 <= cell.config.optimizer.settings["lr"] <= 1e-1 for cell in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qestion": '"?"'}, "qestion: unknown key 'qestion'. Did you mean 'question'?"),
        ({"question": None}, "question: missing; add question=VALUE."),
        ({"grid": "{}"}, "two: grid is empty; name at least one cell."),
        ({"grid": '{ "optimizer.lr" = [] }'}, "grid: optimizer.lr=[] is no list of values"),
        ({"grid": None}, "two: no cells; give exactly one of grid, cells, changes, random, optuna."),
        ({"cells": '[{ label = "a" }]'}, "two: grid and cells contradict each other"),
        ({"grid": None, "cells": '[{ labl = "a" }]'}, "unknown key 'labl'. Did you mean 'label'?"),
        ({"grid": None, "cells": '[{ label = "a" }, { label = "a" }]'}, "two cells are called 'a'"),
        ({"grid": None, "cells": '[{ label = "a" }, { label = "b" }]'}, "cells 'a' and 'b' are the same run"),
        ({"budget": "{ tokens = 100 }"}, "budget: 100 tokens are less than one step (train.batch_tokens=512"),
        ({"budget": "{ flops = 10 }"}, "budget: 10 FLOPs are less than one step"),
        ({"budget": "{ tokens = 5120, flops = 1e9 }"}, "tokens and flops contradict each other"),
        ({"budget": "{}"}, "budget: is empty; give one of tokens, flops or minutes."),
        ({"settings": '["train.steps=5"]'}, "train.steps=5 contradicts the budget"),
        ({"settings": '["model.d_model=8", "model.d_model=16"]'}, "contradict each other; keep one."),
        ({"settings": '["train={ steps = 5 }"]'}, "train={ steps = 5 } contradicts the budget"),
        ({"settings": '["seed=3"]'}, "seed=3: seeds are given once, by seeds=[...]."),
        ({"settings": '["model.d_modle=8"]'}, "model.d_modle: unknown key 'd_modle'. Did"),
        ({"grid": '{ "optimizer.momentun" = [0.1] }'}, "two, cell '0.1': "),
        ({"recipe": '"dmo"'}, "unknown recipe 'dmo'. Did you mean 'demo'?"),
        ({"seeds": "[]"}, "seeds"),
        ({"seeds": "[1, 1]"}, "seeds=[1, 1] holds one twice"),
        (
            {"grid": None, "cells": '[{ label = "a" }, { label = "b", against = "c" }]'},
            "two: 'b' is compared to 'c', which is no other cell; known: a.",
        ),
        ({"grid": None, "changes": '[{ label = "a", settings = ["model.bias=true"] }]'}, "changes"),
        (
            {"grid": None, "changes": CHANGES.replace("bias=true", "dropout=0.2")},
            "two, cell 'all': model.dropout=0.1 and model.dropout=0.2 contradict each other; keep one.",
        ),
        ({"base": '"0.5"'}, "base='0.5' is no cell; known: 0.001, 0.01."),
        ({"experiment": '"trian"'}, "unknown experiment 'trian'. Did you mean 'train'?"),
        ({"metric": '"los"'}, "metric='los'"),
        ({"scales": "{ tpu = {} }"}, "unknown key 'tpu'"),
        ({"scales": "{ cpu = { setings = [] } }"}, "unknown key 'setings'. Did you mean 'settings'?"),
        ({"grid": None, "random": "{ trials = 2, space = {} }"}, "random.space"),
        (
            {"grid": None, "random": '{ trials = 2, space = { "seed" = { low = 1.0, high = 0.1 } } }'},
            "low=1.0 must be below high=0.1.",
        ),
        ({"settings": '["schedule.name=wsd", "schedule.warmup=2.0"]'}, "warmup=2.0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cells_of(write(tmp_path, **changes))


def test_a_study_that_does_not_exist_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=re.escape("unknown study 'lr-swep'. Did you mean 'lr-sweep'?")):
        read_study("lr-swep")


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("name", names())
def test_every_shipped_study_resolves_in_both_sizes(name, scale):
    study = read_study(name, scale)
    assert resolve(study, points(study, {}))
