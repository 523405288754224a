"""Claims about studies with a tuned setting: best values, their law, and how many rows are enough."""

import json
import math

import pytest
from synthetic_study import row, write_study

from scratchlm.lab.analysis import analyse
from scratchlm.lab.report import write_reports
from scratchlm.lab.spec import Study
from scratchlm.lab.tuning import shared_label

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
ROWS = (8, 16, 32, 64)
ENDS = {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.2}
"""Loss of each size at its best rate, 0.006 * sqrt(rows / 8)."""

STUDY = Study(
    name="made-up",
    question="How many?",
    grid={"optimizer.lr": list(RATES)},
    rows={},
    tuned="optimizer.lr",
    seeds=(1, 2, 3),
)


def cell(rows, rate, seed, **changes):
    best = 0.006 * math.sqrt(rows / 8)
    noise = 0.001 * seed + 0.002 * ((seed * rows) % 5) / 5  # other seeds, other sizes: within noise
    loss = math.nan if rate > 10 * best else ENDS[rows] + 0.3 * math.log(rate / best) ** 2 + noise
    overrides = {"train.batch_tokens": rows * 64, "optimizer.lr": rate}
    speed = {"tokens_per_second": 10_000.0 * min(4, rows // 8)}
    return row(f"{rows} rows, lr {rate:g}", seed, loss, overrides=overrides, **speed, **changes)


def results_of(seeds=(1, 2, 3)):
    return [cell(rows, rate, seed) for rows in ROWS for rate in RATES for seed in seeds]


def test_the_best_rate_of_each_size_is_the_bottom_of_its_parabola_and_their_law_is_found():
    tuning = analyse(STUDY, results_of(), "nats per token").tuning
    assert [group.label for group in tuning.groups] == ["8 rows", "16 rows", "32 rows", "64 rows"]
    for group, rows in zip(tuning.groups, ROWS, strict=True):
        assert group.size == rows * 64
        assert group.fitted == pytest.approx(0.006 * math.sqrt(rows / 8), rel=1e-6)
        assert group.winner == f"{rows} rows, lr {group.tried:g}"
    assert tuning.exponent == pytest.approx(0.5, abs=1e-6)
    assert tuning.ruled(tuning.groups[2], 0.5) == pytest.approx(0.012, rel=1e-6)
    assert tuning.ruled(tuning.groups[2], 1.0) == pytest.approx(0.024, rel=1e-6)


def test_enough_is_the_largest_size_before_one_that_is_clearly_worse():
    analysis = analyse(STUDY, results_of(), "nats per token")
    assert analysis.tuning.enough.label == "32 rows"
    assert analysis.base == analysis.tuning.lowest.winner
    assert "Up to 32 rows the same tokens teach as much, within noise, then less; " in analysis.conclusion
    assert "the best lr goes as size^0.50; the square-root rule says 0.5" in analysis.conclusion
    assert "10,000 with 8 rows, 40,000 with 32 rows; more rows are not faster" in analysis.conclusion
    assert "Diverged: 8 rows, lr 0.08." in analysis.conclusion
    small = [one for one in results_of() if not one.label.startswith("64")]
    assert "40,000 with 32 rows. " in analyse(STUDY, small, "nats per token").conclusion, "the most"


def test_one_seed_cannot_say_how_many_rows_are_enough():
    analysis = analyse(STUDY, results_of(seeds=(1,)), "nats per token")
    assert analysis.tuning.enough is None
    assert "Nobody can tell from one seed where more rows stop helping" in analysis.conclusion


def test_a_lowest_value_at_the_edge_of_what_was_tried_is_no_bottom():
    some = [one for one in results_of() if not one.label.startswith("8 rows") or "lr 0.08" not in one.label]
    some = [one for one in some if not (one.label.startswith("64") and one.label.endswith(("0.04", "0.08")))]
    tuning = analyse(STUDY, some, "nats per token").tuning
    assert (tuning.groups[-1].tried, tuning.groups[-1].fitted, tuning.groups[-1].best) == (0.02, None, 0.02)
    assert "0.02 for 64 rows (at the edge)" in analyse(STUDY, some, "nats per token").conclusion


def test_groups_that_differ_in_no_single_number_have_no_law():
    study = STUDY.model_copy(update={"rows": None, "grid": {"optimizer.lr": [1.0], "model.name": ["a"]}})
    rows = [
        row(f"name {name}, lr {rate:g}", seed, 1.0 + math.log(rate / 0.01) ** 2 + worse, overrides=overrides)
        for name, worse in (("a", 0.0), ("b", 0.5))
        for rate in (0.005, 0.01, 0.02)
        for overrides in [{"model.name": name, "optimizer.lr": rate}]
        for seed in (1, 2, 3)
    ]
    analysis = analyse(study, rows, "nats per token")
    assert (analysis.tuning.along, analysis.tuning.exponent, analysis.tuning.enough) == (None, None, None)
    assert "Each at its best, against name a: name b +0.500" in analysis.conclusion


def test_what_labels_share_names_a_group():
    assert shared_label(["8 rows, lr 0.1", "8 rows, lr 0.2"]) == "8 rows"
    assert (
        shared_label(["d_model 64, mup true, lr 1", "d_model 64, mup true, lr 2"]) == "d_model 64, mup true"
    )
    assert shared_label(["Muon 0.1", "Muon 0.2"]) == ""


def test_the_report_shows_rates_rules_and_curves_of_the_best_cells_only(tmp_path):
    write_study(tmp_path, STUDY, results_of())
    write_reports(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("root rule", "linear rule", "All 24 cells", "nats per token over optimizer.lr"):
        assert words in html
    assert html.count('class="series"') == 2 * len(ROWS), "in the legends of rates and of curves"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Each at its best lr" in text
    assert "| 32 rows | 0.012 | 0.01 | 0.012 | 0.024 | 1." in text
    assert "nats per token, what 64 rows, lr 0.02 has at its end." in text, "what all sizes reach"
    assert (tmp_path / "figures" / "tuning.svg").is_file()
    assert (tmp_path / "figures" / "sizes.svg").is_file()
    assert not (tmp_path / "figures" / "final.svg").exists()


def test_markdown_which_folds_nothing_away_has_the_texts_of_the_best_cells_only(tmp_path):
    results = results_of()
    write_study(tmp_path, STUDY, results)
    for one in results:
        sample = {"step": 1, "prompt": "", "text": f"written by {one.label}."}
        (tmp_path / "cells" / one.cell / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")
    write_reports(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("written by") == len(ROWS)
    assert "written by 64 rows, lr 0.02." in text
    assert "written by 64 rows, lr 0.005." in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tuned": "optimizer.beta"},
            "tuned='optimizer.beta' is set by no cell; they set: optimizer.lr, ",
        ),
        ({"grid": None, "cells": [{"label": "a"}]}, "made-up: rows goes with a grid"),
    ],
)
def test_contradictions_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        Study(**{**STUDY.model_dump(exclude_none=True), **changes})


def test_a_tuned_setting_that_is_no_number_is_told():
    rows = [row("a", 1, 1.0, overrides={"optimizer.lr": "high"})]
    with pytest.raises(ValueError, match=r"optimizer.lr='high' is tuned; give numbers"):
        analyse(STUDY, rows, "nats per token")
