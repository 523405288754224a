"""Claims about losses beyond the training context: measured once a run, told in words, table and drawing."""

import json
import math
import re

import pytest
from synthetic_study import row, write_study

from scratchlm.lab.beyond import beyond_words, measure_beyond, read_beyond
from scratchlm.lab.beyond_report import table_of
from scratchlm.lab.cells import BEYOND, StudyFolder, resolve, state_of
from scratchlm.lab.report import write_reports
from scratchlm.lab.rows import read_rows, result_of
from scratchlm.lab.search import points
from scratchlm.lab.spec import Study
from scratchlm.train import recipes
from scratchlm.train.run import run

SMALL = (
    "corpus={ name = 'stories', num_train = 20, num_valid = 2, seed = 1 }",
    "tokenizer='chars'",
    "model={ name = 'transformer', context_length = 32, d_model = 16, num_layers = 1, num_heads = 2 }",
    "train={ steps = 2, batch_tokens = 256, compile = false, device = 'cpu' }",
    "sampling.max_new_tokens=4",
)
KNOWN = {
    "RoPE": {"loss_1x": 2.0, "loss_2x": 3.0, "loss_4x": 3.903},
    "ALiBi": {"loss_1x": 2.0, "loss_2x": 2.0, "loss_4x": 1.99},
    "learned": {"loss_1x": 2.125},
}


def made_up(label):
    return row(label, 1, 2.0, **KNOWN[label])


def test_a_run_is_measured_place_by_place_and_learned_positions_end(tmp_path):
    lengths = {}
    for name in ("rope", "learned"):
        config = recipes.read("demo", [*SMALL, f"model.position={name}"])
        run(config, tmp_path / name)
        measure_beyond(config, tmp_path / name)
        found = json.loads((tmp_path / name / BEYOND).read_text(encoding="utf-8"))
        lengths[name] = len(found["places"]), sorted(key for key in found if key.startswith("loss_"))
        assert found["context_length"] == 32
        assert all(0 < loss < 10 for loss in found["losses"])
    assert lengths == {"rope": (16, ["loss_1x", "loss_2x", "loss_4x"]), "learned": (4, ["loss_1x"])}


def test_a_run_has_ended_only_when_it_is_measured(tmp_path):
    study = Study(
        name="far",
        question="How far?",
        recipe="demo",
        settings=SMALL,
        cells=({"label": "RoPE"},),
        beyond_context=True,
    )
    (cell,), folder = resolve(study, points(study, {})), StudyFolder(tmp_path)
    (plain,) = resolve(study.model_copy(update={"beyond_context": False}), points(study, {}))
    assert plain.key == cell.key, "what is measured afterwards does not make another run"
    path = folder.cell(cell)
    path.mkdir(parents=True)
    (path / "config.json").write_text(cell.config.to_json(), encoding="utf-8")
    (path / "summary.json").write_text('{"valid_loss": 2.5}', encoding="utf-8")
    assert (state_of(folder, plain), state_of(folder, cell)) == ("finished", "interrupted")
    (path / BEYOND).write_text('{"loss_1x": 2.5, "loss_4x": 3.5}', encoding="utf-8")
    found = result_of(study, "cpu", folder, cell)
    assert (found.state, found.loss_1x, found.loss_2x, found.loss_4x) == ("finished", 2.5, None, 3.5)


def test_words_say_who_reads_on():
    rows = [made_up(label) for label in KNOWN]
    assert beyond_words(rows) == (
        "At 2 to 4 times the training context the loss changes: ALiBi -0.010, RoPE +1.903; learned ends "
        "there."
    )
    assert beyond_words([row("RoPE", 1, 2.0)]) == ""
    assert beyond_words([made_up("learned")]) == "At 2 to 4 times the training context learned ends there."
    assert "RoPE +nan" in beyond_words([row("RoPE", 1, 2.0, loss_1x=2.0, loss_4x=math.nan)])


def test_the_table_has_a_dash_where_positions_end():
    assert table_of([made_up(label) for label in KNOWN])[2] == (
        "learned",
        ["2.125", "\N{EN DASH}", "\N{EN DASH}"],
    )
    assert table_of([row("RoPE", 1, 2.0)]) == []


def test_the_report_has_a_section_with_table_and_drawing(tmp_path):
    study = Study(name="far", question="How far?", cells=tuple({"label": label} for label in KNOWN))
    rows = [made_up(label) for label in KNOWN]
    write_study(tmp_path, study, rows)
    for result in rows:
        places = list(range(2, 32 if result.label == "learned" else 128, 4))
        note = {"context_length": 32, "places": places, "losses": [2.0] * len(places)}
        (tmp_path / "cells" / result.cell / BEYOND).write_text(json.dumps(note), encoding="utf-8")
    analysis, page = write_reports(tmp_path)
    html, text = page.read_text(encoding="utf-8"), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "At 2 to 4 times the training context the loss changes: ALiBi" in analysis.conclusion
    assert len(re.findall('aria-label="Loss over the place in a row', html)) == 2
    assert "| RoPE | 2.000 | 3.000 | 3.903 |" in text
    assert (tmp_path / "figures" / "beyond.svg").is_file()
    assert [curve.losses.shape for curve in read_beyond(tmp_path, rows)] == [(1, 32), (1, 32), (1, 8)]
    assert read_rows(tmp_path / "rows.csv")[0].loss_4x == 3.903


def test_what_trains_no_model_cannot_be_measured_so():
    with pytest.raises(ValueError, match="beyond_context=true is for models; quadratic trains none"):
        Study(name="x", question="y", experiment="quadratic", grid={"lr": [1.0]}, beyond_context=True)
