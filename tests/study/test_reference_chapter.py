"""Claims about the report's answer to "is this loss normal?"."""

import json

import pytest
from several_runs import write_small_run
from synthetic_run import ENVIRONMENT
from test_report import page_of

from scratchlm.study import reference_curve
from scratchlm.study.reference_chapter import reference_chapter
from scratchlm.study.reference_curve import REFERENCE_FILE, ReferenceCurve
from scratchlm.study.run_record import read_run


@pytest.fixture
def curve(tmp_path, monkeypatch):
    """The curve of three seeds; no curve ships."""
    monkeypatch.setattr(reference_curve, "FOLDER", tmp_path / "curves")
    runs = [read_run(write_small_run(tmp_path / "seeds" / str(seed), seed=seed)) for seed in range(3)]
    return ReferenceCurve.from_runs(runs)


def test_without_a_reference_there_is_no_such_chapter(curve, tmp_path):
    page = page_of(write_small_run(tmp_path / "run", seed=9))
    assert "Is this loss normal?" not in page.text
    assert "Is it normal?" not in page.text


@pytest.mark.parametrize(
    ("how", "answer", "sentence"),
    [
        ({}, "Yes, this loss is normal", "1.3"),
        ({"shift": 0.3}, "No, this loss is too high, from step 100 on", "1.6"),
        ({"shift": -0.3}, "This loss is better than expected, from step 100 on", "1.0"),
        (
            {"optimizer": "lion"},
            "There is no equal run to compare this one with",
            "Settings differ: optimizer lion instead of adamw.",
        ),
    ],
)
def test_the_answer_is_the_verdict(curve, tmp_path, how, answer, sentence):
    run = write_small_run(tmp_path / "run", seed=9, **how)
    curve.save(run / REFERENCE_FILE)
    chapter = reference_chapter(read_run(run))
    assert chapter.answer == answer
    assert chapter.sentence.startswith(sentence)
    assert chapter.made.startswith("demo, 3 runs with other seeds (AMD EPYC 9R45, 2 min 36 s each); ")
    assert len(chapter.points) == (0 if "optimizer" in how else 12)


def test_the_answer_stands_in_the_report_with_its_drawing(curve, tmp_path):
    run = write_small_run(tmp_path / "run", seed=9)
    curve.save(run / REFERENCE_FILE)
    page = page_of(run)
    assert "Yes, this loss is normal. 1.3" in page.text
    assert "loss above (+) or below the expected" in page.text
    assert (page.open, page.mistakes) == ([], [])


def test_a_shipped_curve_serves_its_recipe(curve, tmp_path):
    curve.save(tmp_path / "curves" / "demo.json")
    chapter = reference_chapter(read_run(write_small_run(tmp_path / "run", seed=9)))
    assert chapter.answer == "Yes, this loss is normal"


def test_a_loss_that_is_too_high_is_told_with_what_differs(curve, tmp_path):
    run = write_small_run(tmp_path / "run", seed=9, shift=0.3)
    curve.save(run / REFERENCE_FILE)
    assert reference_chapter(read_run(run)).differences == []
    (run / "environment.json").write_text(json.dumps({**ENVIRONMENT, "torch": "2.99.0"}), encoding="utf-8")
    text = page_of(run).text
    assert "differs from the reference:" in text
    assert "2.99.0" in text
    assert "2.13.0+cpu" in text


def test_a_damaged_reference_costs_its_chapter_and_not_the_page(curve, tmp_path):
    run = write_small_run(tmp_path / "run", seed=9)
    (run / REFERENCE_FILE).write_text("{", encoding="utf-8")
    assert reference_chapter(read_run(run)) is None
