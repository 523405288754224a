"""Claims about what rows say: numbers worked out by hand, verdicts in plain words."""

import math
import re

import pytest
from synthetic_study import row

from scratchlm.lab.analysis import analyse
from scratchlm.lab.parabola import parabola_bottom
from scratchlm.lab.rows import read_rows, write_rows
from scratchlm.lab.spec import Study

STUDY = Study(name="made-up", question="?", cells=({"label": "base"},), base="base")


def lines_of(rows):
    return {line.label: line for line in analyse(STUDY, rows, "nats per token").lines}


def three(label, *losses, **changes):
    return [row(label, seed, loss, **changes) for seed, loss in enumerate(losses, start=1)]


def test_mean_spread_and_paired_difference_are_those_worked_out_by_hand():
    # differences -0.10, -0.11, -0.12: mean -0.11, deviation 0.01, 4.30265 * 0.01 / sqrt(3) = 0.024841
    lines = lines_of([*three("base", 1.0, 1.2, 1.4), *three("other", 0.9, 1.09, 1.28)])
    assert lines["base"].metric.mean == pytest.approx(1.2)
    assert lines["base"].metric.deviation == pytest.approx(0.2)
    assert lines["other"].difference.mean == pytest.approx(-0.11)
    assert lines["other"].difference.half_width == pytest.approx(0.024841, abs=1e-6)
    assert lines["other"].words == "better by 0.110 +- 0.025 nats per token"
    assert lines["base"].verdict == "base"


def test_a_difference_that_changes_its_sign_with_the_seed_is_within_noise():
    lines = lines_of([*three("base", 1.0, 1.0, 1.0), *three("other", 1.1, 0.9, 1.0)])
    assert lines["other"].verdict == "within noise"
    assert lines["other"].words == "within noise (+0.000 +- 0.248 nats per token)"


def test_one_seed_says_nothing_of_noise():
    lines = lines_of([row("base", 1, 1.0), row("other", 1, 0.9)])
    assert lines["other"].words == "lower by 0.100 nats per token (one seed)"


def test_runs_that_diverged_are_counted_apart_and_in_no_mean():
    rows = [*three("base", 1.0, 1.0, 1.0), *three("other", 0.8, 0.8, math.nan), *three("gone", math.nan)]
    lines = lines_of([*rows, row("broken", 1, None)])
    assert (lines["other"].metric.mean, lines["other"].metric.count) == (pytest.approx(0.8), 2)
    assert lines["other"].num_diverged == 1
    assert lines["other"].words.endswith("; 1 of 3 runs diverged")
    assert lines["gone"].words == "diverged (1 of 1 runs)"
    assert lines["broken"].verdict == "failed"


def test_pairs_are_of_the_seeds_that_both_have():
    rows = [row("base", 1, 1.0), row("base", 2, 2.0), row("other", 2, 1.5), row("other", 3, 0.1)]
    assert lines_of(rows)["other"].difference.mean == pytest.approx(-0.5)


def test_the_conclusion_names_best_noise_and_what_diverged():
    rows = [*three("base", 1.0, 1.1, 1.2), *three("good", 0.5, 0.61, 0.69), *three("bad", math.nan)]
    rows += three("same", 1.01, 1.09, 1.2)
    found = analyse(STUDY, rows, "nats per token").conclusion
    assert found.startswith("good is lowest with 0.600 (mean of 3 seeds): against base, better by 0.500 +- ")
    assert "Within noise of base: same (+0.000 +- " in found
    assert found.endswith("Diverged: bad.")


def test_a_sweep_has_its_best_value_by_fit_and_its_edge_of_stability():
    rates = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    losses = [1.0 + (math.log10(rate) + 1.5) ** 2 for rate in rates[:4]] + [math.nan]
    rows = [
        row(f"{rate:g}", 1, loss, overrides={"optimizer.lr": rate})
        for rate, loss in zip(rates, losses, strict=True)
    ]
    axis = analyse(STUDY, rows, "nats per token").axis
    assert axis.log
    assert axis.best == pytest.approx(10**-1.5)
    assert (axis.stable, axis.unstable) == (1.0, 10.0)


def test_a_parabola_has_no_bottom_where_the_points_bend_the_other_way_or_end():
    assert parabola_bottom([(1, 1.0), (2, 2.0), (3, 1.0)], log=False) is None
    assert parabola_bottom([(1, 9.0), (2, 4.0), (3, 1.0)], log=False) is None
    assert parabola_bottom([(1, 5.0), (2, 4.0), (3, 5.0)], log=False) == pytest.approx(2.0)


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [row("a, b", 1, 1 / 3), row('"q"', 2, math.nan), row("c", 3, None, steps=None, seconds=None)]
    write_rows(tmp_path / "rows.csv", rows)
    back = read_rows(tmp_path / "rows.csv")
    assert back[0] == rows[0]
    assert back[2] == rows[2]
    assert math.isnan(back[1].final_loss)


def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=re.escape("line 2: no column 'label'; this is no rows.csv of a study.")
    ):
        read_rows(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "other.csv")


def test_nothing_to_weigh_is_an_error():
    with pytest.raises(ValueError, match="no run has ended yet"):
        analyse(STUDY, [], "nats per token")


def test_a_change_gains_what_it_brings_alone_and_what_is_lost_without_it():
    words = [{"label": name, "settings": [f"model.{name}=true"]} for name in ("good", "same", "bad")]
    study = Study(name="made-up", question="?", changes=words)
    rows = [*three("none", 2.0, 2.1), *three("+ good", 1.5, 1.61), *three("+ bad", 2.2, 2.31)]
    rows += [*three("+ same", 2.01, 2.09), *three("all", 1.6, 1.7), *three("all but good", 2.1, 2.21)]
    rows += [*three("all but same", 1.58, 1.72), *three("all but bad", math.nan, math.nan)]
    found = analyse(study, rows, "nats per token")
    good, same, bad = found.gains
    assert (good.alone.mean, good.among.mean) == (pytest.approx(0.495), pytest.approx(0.505))
    assert (bad.alone.mean, bad.among) == (pytest.approx(-0.205), None)
    assert not same.alone.is_clear
    assert found.conclusion.startswith(
        "+ good is lowest with 1.555 (mean of 2 seeds): against none, better by"
    )
    assert "Put in alone, gain: good +0.495 +- 0.064, same +0.000 +- 0.127 (within noise), bad -0.205" in (
        found.conclusion
    )
    assert "On top of the others, gain: good +0.505 +- 0.064, same +0.000" in found.conclusion
    assert {line.label: line.rival for line in found.lines}["all but good"] == "all"


def test_cells_that_share_a_value_lie_along_no_axis():
    rows = [row(label, 1, 1.0, overrides={"model.d_model": 64}) for label in ("base", "longer", "longest")]
    assert analyse(STUDY, rows, "nats per token").axis is None


def test_a_rung_of_a_ladder_is_compared_to_the_one_below():
    cells = [{"label": "v0"}, {"label": "v1", "against": "v0"}, {"label": "v2", "against": "v1"}]
    study = Study(name="made-up", question="?", cells=cells)
    rows = [*three("v0", 3.0, 3.2), *three("v1", 2.0, 2.21), *three("v2", 2.0, 2.2)]
    found = analyse(study, rows, "nats per token")
    assert [line.words.partition(",")[0] for line in found.lines][1:] == ["against v0", "against v1"]
    assert found.against == "the cell named"
    assert found.conclusion.startswith("v2 is lowest with 2.100 (mean of 2 seeds): against v1, within noise")
    assert found.conclusion.endswith(
        "Rung by rung: v1 against v0 -0.995 +- 0.064; v2 against v1 -0.005 +- 0.064 (within noise)."
    )
