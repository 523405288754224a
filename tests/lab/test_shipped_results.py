"""Claims about measured results: list and experiments tell the same, of the studies as they ship."""

import json
from pathlib import Path

import pytest

from scratchlm.lab.rows import read_rows
from scratchlm.lab.search import points
from scratchlm.lab.spec import RESULTS, names, read_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MEASURED = sorted(RESULTS.glob("*.csv"))


def test_every_study_that_ships_has_been_run():
    assert {path.stem.rsplit("-", 1)[0] for path in MEASURED} == set(names())


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_the_list_tells_is_what_the_experiment_keeps(path):
    name, size = path.stem.rsplit("-", 1)
    assert name in names()
    kept = next(EXPERIMENTS.glob(f"*-{name}/rows.csv"), None)
    assert kept is not None, f"no experiment of {name}"
    assert kept.read_bytes() == path.read_bytes()
    rows = read_rows(path)
    found = {point.label: point.settings for point in points(read_study(name).scaled(size), {})}
    assert {row.label for row in rows} == set(found)
    assert {row.scale for row in rows} == {size}
    # a value of the study's file that was changed since then would be told of other runs
    for row in rows:
        words = " ".join(found[row.label])
        assert all(str(key).rsplit(".", 1)[-1] in words for key in json.loads(row.overrides)), row.label


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_an_experiment_says_what_follows(path):
    name = path.stem.rsplit("-", 1)[0]
    text = next(EXPERIMENTS.glob(f"*-{name}/README.md")).read_text(encoding="utf-8")
    decision = text.split("## Decision", 1)[1].strip()
    assert len(decision) > 100
    assert "To be written" not in decision
