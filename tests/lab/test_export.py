"""Claims about exported studies: complete, small, no machine paths, and what the author wrote stays."""

import io
import math
import re

import pytest
from PIL import Image
from synthetic_study import row, write_study

from scratchlm.lab import export
from scratchlm.lab.export import DECISION, command_of, export_study, without_paths
from scratchlm.lab.rows import read_rows
from scratchlm.lab.spec import Study, read_study
from scratchlm.study.drawing import MAX_PNG_BYTES, to_png
from scratchlm.study.plots import ACCENT, INK, MUTED, PAPER, SERIES, new_figure, style


@pytest.fixture
def folder(tmp_path):
    cells = tuple({"label": label} for label in ("short", "long"))
    study = Study(
        name="made-up", question="Does length help?", about="Two lengths.", seeds=(1, 2), cells=cells,
        settings=("corpus.path=/home/ada/books/moby.txt",),
    )  # fmt: skip
    rows = [row(label, seed, 1.0 + 0.1 * seed) for label in ("short", "long") for seed in (1, 2)]
    rows.append(row("long", 3, math.nan, error="/home/ada/runs/x/model.bin: no space left"))
    write_study(tmp_path / "study", study, rows)
    return tmp_path / "study"


def test_an_experiment_is_whole_and_small_and_the_authors_decision_stays(folder, tmp_path, monkeypatch):
    (folder / "scaling.md").write_text(
        "# Scaling laws\n\n* L\n\n![g](figures/learning.svg)\n", encoding="utf-8"
    )
    place = tmp_path / "experiments" / "2026-01-length"
    made = export_study(folder, place)
    text = made.readme.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ .*", text, flags=re.MULTILINE)
    wanted = ["# Does length help?", "## Question", "## Setup", "## Result"]
    wanted += ["### What did not come to its end", "### Scaling laws", "## Decision"]
    assert [title for title in titles if title in wanted] == wanted
    assert [title for title in titles if title.startswith("## ")] == [*wanted[1:4], wanted[-1]]
    assert not made.decision_kept
    assert "| short | 1.150 | 0.0707 | 2 |" in text
    linked = re.findall(r"\]\(([^)]*)\)", text)
    assert sorted(set(linked)) == [path.name for path in made.figures] == ["final.png", "learning.png"]
    for path in made.figures:
        assert 5_000 < path.stat().st_size <= MAX_PNG_BYTES
    assert "moby.txt" in text
    rows = (place / "rows.csv").read_text(encoding="utf-8")
    assert "model.bin: no space left" in rows
    assert "/home" not in text + rows
    assert [one.final_loss for one in read_rows(place / "rows.csv")[:2]] == [1.1, 1.2]

    monkeypatch.setattr(export, "write_reports", lambda folder: None)  # the same again: seconds
    made.readme.write_text(text.replace(DECISION, "## Decision\nLength does not help."), encoding="utf-8")
    assert export_study(folder, place).decision_kept
    assert made.readme.read_text(encoding="utf-8").endswith("## Decision\nLength does not help.\n")
    made.readme.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("README.md: was not written by an export")):
        export_study(folder, place)
    assert made.readme.read_text(encoding="utf-8") == "# Mine\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"corpus.path": "/home/ada/books/moby.txt"}', '{"corpus.path": "moby.txt"}'),
        ("~/books/moby.txt: no such file", "moby.txt: no such file"),
        ("tokens/s, 10/20, https://a.org/b/c.html", "tokens/s, 10/20, https://a.org/b/c.html"),
        ("runs/studies/x/rows.csv, CPU/GPU", "runs/studies/x/rows.csv, CPU/GPU"),
    ],
)
def test_of_an_absolute_path_only_the_last_part_is_left(text, left):
    assert without_paths(text) == left


def test_the_command_of_a_shipped_study_says_what_was_changed():
    words = ["seeds=[1,2]", "budget.tokens=2000", "model.qk_norm=true"]
    study = read_study("lr-sweep", "cpu", words)
    assert command_of(study, "cpu") == (
        "scratchlm study run lr-sweep model.qk_norm=true 'seeds=[1,2]' budget.tokens=2000 --scale cpu"
    )
    assert command_of(read_study("lr-sweep"), "cpu") == "scratchlm study run lr-sweep --scale cpu"
    assert command_of(study.model_copy(update={"name": "mine"}), "cpu") == ""
    assert command_of(study.model_copy(update={"grid": {"optimizer.lr": [1.0]}}), "cpu") == ""


def test_a_picture_has_the_pages_colours_and_no_stand_in():
    figure, (axes,) = new_figure("narrow", rows=1, columns=1, height=2.0)
    axes.plot([0, 1], [0, 1], "o-", color=SERIES[1], linewidth=6)
    axes.fill_between([0, 1], [0, 0], [0, 1], color=ACCENT, alpha=0.5)
    axes.annotate("on its own ground", (0.1, 0.8), bbox={"facecolor": PAPER, "edgecolor": INK}, color=MUTED)
    style(axes, "a title", num_ticks=3)
    with Image.open(io.BytesIO(to_png(figure))) as picture:
        colours = {colour[:3] for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(0xFC, 0xFC, 0xFA), (0xC2, 0x57, 0x1A)} <= colours
    assert not {(10, 10, number) for number in range(1, 7)} & colours
    assert not {(10, 0xB0, number) for number in range(1, 9)} & colours
