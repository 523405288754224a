"""Claims about `scratchlm visualize`: one page that stands alone, whatever the text and the tokens are."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_settings import TINY, TINY_STORIES

from scratchlm.study.visualize import embeddings, figures, lens, page, passes

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' ${7*7} {{ 7*7 }} \x1b[31m\u202e"
VOID = {"meta", "link", "br", "img", "hr", "input", "circle", "rect", "path", "use"}


class Page(HTMLParser):
    """The page's tags, attributes and texts, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.mistakes, self.tags, self.attributes, self.text = [], [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.mistakes.append(tag)

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def looked_at(path):
    """The page, after checking that it is well made, fetches nothing and runs no script but its own."""
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert (found.open, found.mistakes) == ([], [])
    assert found.tags.count("script") == 2
    assert not {"img", "iframe", "link", "object", "b onload"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert not [value for name, value in found.attributes if name == "href" and not value.startswith("#")]
    assert not re.search(r"https?:|@import|#0a0[ab]0", html)
    return found


def test_a_run_is_shown_on_one_page_with_its_drawings_beside_it(cli, finished_run):
    files = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()}
    result = cli("visualize", finished_run, "Once upon a time", "-o", "seen", "--rows", 4)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == str(Path("seen") / "inside.html")
    found = looked_at(Path("seen/inside.html"))
    assert {path.name for path in Path("seen").iterdir()} == {
        "inside.html", "loss-by-place.svg", "loss-by-layer.svg", "weights.svg", "activations.svg",
        "gradients.svg", "tokens.svg", "attention-block-1.png",
    }  # fmt: skip
    for heading in ("How likely each token was", "What each layer would say", "Where each head looks"):
        assert heading in found.text
    assert found.tags.count("canvas") == 2
    assert "step 2" in found.text, "an earlier checkpoint"
    assert {path: path.stat().st_mtime_ns for path in files} == files, "the run is read only"


def test_hostile_texts_and_tokens_stay_text(cli, finished_run, monkeypatch):
    for module in (page, passes, lens, embeddings):
        if hasattr(module, "token_text"):
            monkeypatch.setattr(module, "token_text", lambda tokenizer, id: f"{HOSTILE}{id}")
    monkeypatch.setattr(figures, "to_svg", lambda *_: "<svg></svg>")  # those hold numbers and our own words
    assert cli("visualize", finished_run, HOSTILE, "-o", "seen", "--rows", 2).code == 0
    found = looked_at(Path("seen/inside.html"))
    assert "alert(1)" in found.text
    assert "\x1b" not in found.text
    svg = Path("seen/tokens.svg").read_text(encoding="utf-8")
    assert "<script" not in svg


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "gone: no run folder"),
        (["RUN", ""], "the text is empty"),
        (["RUN", "--word", "Constantinople"], "--word 'Constantinople': is no single token"),
        (["RUN", "--checkpoint", "7"], "the checkpoint of step 7 is not there"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(cli, finished_run, words, message):
    assert message in cli("visualize", *[finished_run if word == "RUN" else word for word in words]).error


def test_a_model_without_layers_is_shown_as_far_as_it_goes(cli, monkeypatch):
    monkeypatch.setattr(figures, "to_svg", lambda *_: "<svg></svg>")
    words = ["train", "demo", *TINY, *TINY_STORIES, "model.name=bigram", "--folder", "bigram"]
    assert cli(*words).code == 0
    assert cli("visualize", "bigram", "Once upon", "--rows", 2).code == 0
    found = Page(Path("bigram/inside/inside.html").read_text(encoding="utf-8"))
    assert (found.open, found.mistakes) == ([], [])
    assert "How likely each token was" in found.text
    assert not {"canvas", "script"} & set(found.tags)


def test_a_report_holds_the_inside_or_links_to_it(cli, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "to_svg", lambda *_: "<svg></svg>")
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert cli("report", run).code == 0
    plain = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Inside the model" not in plain.text
    assert f"scratchlm report {run.name} --inside" in plain.text
    assert cli("report", run, "--inside").code == 0
    held = looked_at(run / "report.html")
    for heading in ("What it writes", "Inside the model", "Where each head looks", "How to go on"):
        assert heading in held.text
    ids = [value for name, value in held.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in held.attributes if name == "href"} <= set(ids)
    (run / "inside").mkdir()
    (run / "inside" / "inside.html").write_text("the page", encoding="utf-8")
    assert cli("report", run).code == 0
    linked = Page((run / "report.html").read_text(encoding="utf-8"))
    assert ("href", "inside/inside.html") in linked.attributes
    assert "script" not in linked.tags
