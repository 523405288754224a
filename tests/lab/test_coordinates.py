"""Claims about the coordinate check and the studies of widths: what is measured, said and drawn."""

import json

import pytest
from synthetic_study import row, write_study

from scratchlm.lab.cells import COORDINATES, resolve
from scratchlm.lab.coordinates import coordinate_words, measure_coordinates, series_of
from scratchlm.lab.report import write_reports
from scratchlm.lab.search import points
from scratchlm.lab.spec import Study, read_study
from scratchlm.model.accounting import num_parameters
from scratchlm.train import recipes
from scratchlm.train.run import run

SMALL = (
    "corpus={ name = 'stories', num_train = 20, num_valid = 2, seed = 1 }",
    "tokenizer='chars'",
    "model={ name = 'transformer', context_length = 32, d_model = 16, num_layers = 1, num_heads = 2 }",
    "train={ steps = 2, batch_tokens = 256, compile = false, device = 'cpu' }",
    "sampling.max_new_tokens=4",
)


def rows():
    """Usual runs move four times as far at four times the width, fitted ones as far."""
    found = []
    for base in (None, 16):
        for width in (16, 64):
            overrides = {"model.d_model": width} | ({"model.mup_width": base} if base else {})
            far = 0.5 if base else width / 32
            moved = {"moved_scores": far, "moved_stream": 2 * far, "moved_logits": 3 * far}
            found += [row(f"{width}, {base}", seed, 4.0, overrides=overrides, **moved) for seed in (1, 2)]
    return found


def test_a_run_tells_how_far_it_moved_its_model_and_one_without_steps_length_did_not(tmp_path):
    moved = []
    for rate in ("1e-9", "1e-2"):
        config = recipes.read("demo", [*SMALL, f"optimizer={{ name = 'adamw', lr = {rate} }}"])
        run(config, tmp_path / rate)
        measure_coordinates(config, tmp_path / rate)
        moved.append(json.loads((tmp_path / rate / COORDINATES).read_text(encoding="utf-8")))
    assert set(moved[0]) == {"moved_scores", "moved_stream", "moved_logits"}
    assert all(moved[0][name] < 1e-4 < 1e-3 < moved[1][name] for name in moved[0])


def test_runs_are_sorted_by_width_and_by_what_else_they_share():
    usual, fitted = series_of([*reversed(rows()[:4]), *rows()[4:], row("failed", 1, None)])
    assert (usual.name, usual.widths, usual.moved["stream"]) == ("usual", [16, 64], [1.0, 4.0])
    assert (fitted.name, fitted.growth("logits")) == ("model.mup_width=16", 1.0)


def test_words_say_how_much_farther_wide_models_move():
    assert coordinate_words(rows()) == (
        "From width 16 to 64 the same steps move the scores 4, the stream 4 and the logits 4 times as far "
        "(usual); the scores 1, the stream 1 and the logits 1 times as far (model.mup_width=16)."
    )
    assert coordinate_words([row("a", 1, 2.0)]) == ""


@pytest.mark.slow
def test_the_report_has_a_section_with_table_and_drawing(tmp_path):
    study = Study(name="made-up", question="So?", cells=tuple({"label": r.label} for r in rows()[::2]))
    write_study(tmp_path, study, rows())
    analysis, page = write_reports(tmp_path)
    assert "From width 16 to 64 the same steps move" in analysis.conclusion
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| usual, width 64 | 2 | 4 | 6 |" in text
    assert (tmp_path / "figures" / "coordinates.svg").is_file()
    assert 'id="coordinates"' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_shapes_are_compared_at_equal_parameters(scale):
    study = read_study("depth-width", scale, ["seeds=[1]"])
    vocab_size = 1024 if scale == "cpu" else 10_000
    sizes = [
        num_parameters(cell.config.model.with_vocabulary(vocab_size))
        for cell in resolve(study, points(study, {}))
    ]
    assert max(sizes) / min(sizes) < 1.004


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_both_parametrisations_are_asked_the_same_and_have_one_width_in_common(scale):
    usual, fitted = (
        [cell.config.model for cell in resolve(study, points(study, {}))]
        for study in (read_study(name, scale, ["seeds=[1]"]) for name in ("width", "width-mup"))
    )
    same = [one.model_copy(update={"mup_width": None}) for one in fitted]
    assert same == usual
    assert {one.width_ratio for one in usual} == {1}
    assert 1 in {one.width_ratio for one in fitted}
    assert max(one.width_ratio for one in fitted) >= 4
