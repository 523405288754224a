"""Claims about what cells do, and about the shipped studies' promises."""

import itertools
import json

import pytest
from synthetic_study import row

from scratchlm.lab import shipped
from scratchlm.lab.cells import resolve
from scratchlm.lab.experiments import EXPERIMENTS, QuadraticConfig
from scratchlm.lab.rows import write_rows
from scratchlm.lab.search import points
from scratchlm.lab.spec import read_study
from scratchlm.model.accounting import num_parameters


def test_the_toy_multiplies_its_weights_by_what_the_formula_says(tmp_path):
    run = EXPERIMENTS.build("quadratic").run
    run(QuadraticConfig(lr=10.0, steps=3, seed=4), tmp_path, lambda event: None)
    rows = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [row["loss"] for row in rows]
    for step, (before, after) in enumerate(itertools.pairwise(losses)):
        assert after / before == pytest.approx((1 - 10 / (50 * (step + 1) ** 0.5)) ** 2, rel=1e-5)
    assert losses[0] == pytest.approx(25, rel=0.5)


def test_the_toy_has_no_recipe():
    with pytest.raises(ValueError, match="the quadratic experiment has none"):
        EXPERIMENTS.build("quadratic").resolve("demo", [])


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_feedforwards_are_compared_at_equal_parameters(scale):
    study = read_study("feedforward", scale)
    cells = resolve(study, points(study, {}))
    assert len({num_parameters(cell.config.model.with_vocabulary(1000)) for cell in cells}) == 1


def test_the_sweep_has_the_rates_of_the_course():
    study = read_study("lr-sweep")
    rates = [0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
    cells = resolve(study, points(study, {}))
    assert [cell.config.optimizer.settings["lr"] for cell in cells[::3]] == rates
    assert len(cells) == 21


def test_a_shipped_study_shows_what_was_measured_from_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "RESULTS", tmp_path)
    write_rows(tmp_path / "norms-gpu.csv", [row("pre-norm", 1, 1.5), row("post-norm", 1, 1.25)])
    known = {one.name: one for one in shipped.shipped()}
    assert known["lr-sweep"].conclusions == {}
    assert known["norms"].conclusions == {
        "gpu": "post-norm is lowest with 1.250 (1 seed): against pre-norm, lower by 0.250 nats per token "
        "(one seed)."
    }
