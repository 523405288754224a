"""Claims about a study's report: it stands alone, shows its figures, and says what was weighed."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_study import row, write_study

from scratchlm.lab.figures import Learning, learning_figure, read_learning
from scratchlm.lab.report import write_reports
from scratchlm.lab.spec import Study

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Whether every tag is closed, and the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.mistakes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


@pytest.fixture(params=["along one setting", "by name"])
def folder(request, tmp_path):
    rates = {"0.1": 0.1, "0.01": 0.01, "0.001": 0.001, "0.5": 0.5}
    along = request.param == "along one setting"
    study = Study(
        name="made-up",
        question="Is it <b>so</b>?",
        about="Because.",
        seeds=(1, 2),
        cells=tuple({"label": label} for label in rates),
        base="0.01",
    )
    rows = [
        row(
            label,
            seed,
            math.nan if rate == 0.5 else 1.0 + 0.2 * (math.log10(rate) + 2) ** 2 + 0.01 * seed,
            overrides={"optimizer.lr": rate} if along else {"model.name": label},
        )
        for label, rate in rates.items()
        for seed in (1, 2)
    ]
    write_study(tmp_path, study, rows)
    return tmp_path


def test_the_page_stands_alone_and_every_tag_is_closed(folder):
    analysis, path = write_reports(folder)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert (page.open, page.mistakes) == ([], [])
    assert not re.search(r"https?:|//[a-z]|<script|@import|<link|src=", html)
    assert "Is it <b>so</b>?" in page.text, "escaped, so a reader sees the tags"
    assert "it broke <here>" in page.text
    assert all(sentence in page.text for sentence in analysis.conclusion.replace("+-", "±").split(". ")[:1])


def test_the_page_has_curves_over_four_things_and_the_final_numbers_in_two_shapes(folder):
    html = write_reports(folder)[1].read_text(encoding="utf-8")
    names = re.findall(r'<svg class="plot (\w+)"[^>]*aria-label="([^"]*)"', html)
    assert len(names) == 2 * (4 + 1)
    for what in ("steps", "tokens seen", "floating-point operations", "seconds of training"):
        assert ("wide", f"Validation loss over {what}, a line for each cell") in names
    assert not re.search(r"#0a0[ab]0", html), "every stand-in colour became a variable of the page"


def test_the_markdown_has_its_figures_beside_it(folder):
    write_reports(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((figures/\w+\.svg)\)", text):
        svg = (folder / name).read_text(encoding="utf-8")
        assert svg.startswith("<svg ")
        assert "var(--" not in svg
    assert text.count("](figures/") == 2
    assert "| 0.1 | 1.215 | 0.0071 | 2 | worse by 0.200" in text


def test_a_study_of_changes_shows_their_gains_and_what_the_models_write(tmp_path):
    settings = {name: [f"model.{name}=true"] for name in ("bias", "tied", "qk_norm")}
    study = Study(
        name="made-up",
        question="?",
        seeds=(1, 2),
        metric="bits_per_byte",
        changes=tuple({"label": name, "settings": words} for name, words in settings.items()),
    )
    losses = {"none": 2.0, "all": 1.6}
    losses |= {f"+ {name}": 2.0 - gain for name, gain in zip(settings, (0.1, 0.2, 0.3), strict=True)}
    losses |= {f"all but {name}": 1.6 + gain for name, gain in zip(settings, (0.3, 0.2, 0.1), strict=True)}
    rows = [row(label, seed, loss + seed / 100) for label, loss in losses.items() for seed in (1, 2)]
    write_study(tmp_path, study, rows)
    facts = {"num_facts": 3, "num_consistent": 2}
    sample = {"step": 9, "prompt": "Once", "text": "Once *there*\0 was" + 400 * " a", "consistency": facts}
    (tmp_path / "cells" / rows[1].cell / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")
    analysis, path = write_reports(tmp_path)
    html, text = path.read_text("utf-8"), (tmp_path / "report.md").read_text("utf-8")
    assert Page(html).mistakes == []
    assert [gain.among.mean for gain in analysis.gains] == pytest.approx([0.15, 0.1, 0.05]), "bits are half"
    found = re.findall(r'<tr><th scope="row">(\w+)</th><td class="number">(.\d.\d+)', html)
    expected = [("bias", "+0.050"), ("tied", "+0.100"), ("qk_norm", "+0.150")]
    assert found == expected, "what brings most on top of the others first"
    assert "What each change brings, in bits per byte" in html
    assert "loss, bits per byte" in html, "curves are in the metric, since tokens may differ"
    assert (tmp_path / "figures" / "gains.svg").is_file()
    assert "| bias | +0.050 \N{PLUS-MINUS SIGN} 0.000 | +0.150 \N{PLUS-MINUS SIGN} 0.000 |" in text
    assert '<b class="prompt">Once</b> *there*\u2400 was a' in html
    assert "1.010 bits per byte, 2 of 3 facts agree" in html
    assert "> Once \\*there\\*\u2400 was a" in text, "a control character would make the file a binary one"
    assert html.count('class="side-by-side"') == 1
    assert " a ..." in text, "a long text is cut"


def test_a_folder_without_a_study_is_told(tmp_path):
    with pytest.raises(ValueError, match=re.escape("no study (study.json is missing)")):
        write_reports(tmp_path)


def test_what_diverged_squeezes_no_other_curve_together():
    steps = np.array([100.0, 200.0, 300.0])
    places = {"step": steps, "tokens": steps, "flops": steps, "seconds": steps}
    good = Learning("good", places, np.array([[2.0, 1.5, 1.2]]), False)
    broken = Learning("broken", places, np.array([[8.0, 7.0, 7.0]]), True)
    (axes,) = learning_figure([good, broken], "step", None, "nats", "wide").figure.axes
    assert axes.get_ylim()[1] < 2.2
    (axes,) = learning_figure([broken], "step", None, "nats", "wide").figure.axes
    assert axes.get_ylim()[1] > 7


def test_a_label_s_curve_is_that_of_the_seeds_that_came_to_their_end(tmp_path):
    study = Study(name="made-up", question="?", seeds=(1, 2), cells=({"label": "a"},))
    rows = [row("a", 1, 1.0), row("a", 2, math.nan)]
    write_study(tmp_path, study, rows)
    (curve,) = read_learning(tmp_path, rows)
    assert curve.losses.shape[0] == 1
    assert curve.losses[0, -1] < 1.2
    assert curve.diverged
