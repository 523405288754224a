"""Claims about report.html: it stands alone, tells the run's figures, and no run folder can break it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import CONFIG, FLOOR, SUMMARY, write_rows

from scratchlm.study import write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, visible text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.open, self.mistakes = [], "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def change_summary(folder: Path, **values) -> None:
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **values}), encoding="utf-8")


def test_report_lies_in_the_run_folder_and_every_tag_is_closed(whole_run_folder):
    path = write_report(whole_run_folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == whole_run_folder / "report.html"
    assert (page.open, page.mistakes) == ([], [])


def test_report_loads_nothing_from_outside_and_has_no_script(whole_run_folder):
    path = write_report(whole_run_folder)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?://|//\w+\.|@import|@font-face|javascript:", html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "image"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "action"):
            assert attributes.get(name, "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_all_targets_exist(whole_run_folder):
    html = write_report(whole_run_folder).read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', html)) <= set(ids)


def test_header_shows_the_figures_of_the_summary(run_folder):
    page = page_of(run_folder)
    assert f"{SUMMARY['valid_loss']:.3f}" in page.text
    assert f"{SUMMARY['bits_per_byte']:.3f}" in page.text
    assert f"{SUMMARY['perplexity']:.2f}" in page.text
    assert "30.5 k tokens/s" in page.text
    assert "2 min 41 s" in page.text
    assert f"{math.exp(-SUMMARY['valid_loss']):.0%}".replace("%", " %") in page.text


def test_effective_batch_tokens_epochs_and_tokens_per_parameter_are_shown(run_folder):
    change_summary(run_folder, epochs=2.5)
    html = write_report(run_folder).read_text(encoding="utf-8")
    shown = dict(re.findall(r"<div><dt>([^<]*)</dt><dd[^>]*>([^<]*)</dd></div>", html))
    assert shown["effective batch"] == f"{CONFIG['train']['batch_tokens']:,} tokens"
    assert shown["tokens seen"] == "4,915,200"
    assert shown["epochs"] == "2.50"
    assert shown["tokens per parameter"] == "2.3"


def test_floor_and_distance_to_it_are_shown(run_folder):
    page = page_of(run_folder)
    assert f"{SUMMARY['valid_loss'] - FLOOR:.3f} above the floor of {FLOOR:.3f}" in page.text
    assert f"floor {FLOOR:.3f}: no model can do better" in page.text
    guessing = math.log(SUMMARY["tokenizer"]["vocab_size"])
    assert (
        f"{(guessing - SUMMARY['valid_loss']) / (guessing - FLOOR):.0%}".replace("%", " % of the way")
        in page.text
    )


def test_corpus_without_a_known_floor_has_no_floor_in_the_report(run_folder):
    change_summary(run_folder, floor_loss=None, floor_bits_per_byte=None, corpus="files")
    page = page_of(run_folder)
    assert "above the floor" not in page.text
    assert "no model can" not in page.text
    assert "of the way" not in page.text


def test_samples_colour_each_token_by_its_probability(run_folder):
    write_rows(
        run_folder / "samples.jsonl",
        [{"step": 5, "prompt": "Once", "text": "Once a b",
          "consistency": {"num_facts": 8, "num_consistent": 6},
          "tokens": [{"text": " a", "probability": 0.97}, {"text": " b", "probability": 0.0123}]}],
    )  # fmt: skip
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert '<b class="prompt" title="the prompt">Once</b>' in html
    assert '<span class="p0" title="97 %"> a</span><span class="p4" title="1.2 %"> b</span>' in html
    assert "6 of its 8 checkable statements are consistent (75 %)." in html


def test_first_middle_and_last_sample_are_shown(run_folder):
    page = page_of(run_folder)
    titles = ["First sample", "In the middle", "Last sample"]
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    assert "step 600 " in page.text
    assert "step 300 " not in page.text


HOSTILE = "</span></style><script>alert(1)</script><img src=x onerror=alert(1)>&lt;\" '{{ 7 * 7 }}"


def test_hostile_text_is_shown_and_never_interpreted(run_folder):
    tokens = [{"text": HOSTILE, "probability": 0.5}]
    write_rows(
        run_folder / "samples.jsonl", [{"step": 1, "prompt": HOSTILE, "text": HOSTILE, "tokens": tokens}]
    )
    (run_folder / "config.json").write_text(
        json.dumps({**CONFIG, "name": HOSTILE, "description": HOSTILE, HOSTILE: HOSTILE}), encoding="utf-8"
    )
    (run_folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    change_summary(
        run_folder,
        name=HOSTILE,
        corpus=HOSTILE,
        device=HOSTILE,
        tokenizer={"vocab_size": 9, "longest": [HOSTILE]},
    )
    page = page_of(run_folder)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert (page.open, page.mistakes) == ([], [])
    assert page.text.count(HOSTILE) >= 7


def test_characters_that_html_forbids_become_visible(run_folder):
    text = "a\x00b\x1b[31m\x7f\u0085\ud800 \u2028"
    (run_folder / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": "", "text": text, "tokens": [{"text": text, "probability": 1.0}]}),
        encoding="utf-8",
    )
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert (
        "a\N{SYMBOL FOR NULL}b\N{SYMBOL FOR ESCAPE}[31m\N{SYMBOL FOR DELETE}\N{REPLACEMENT CHARACTER}?"
        in html
    )
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)


FILES = ["config.json", "environment.json", "metrics.jsonl", "samples.jsonl", "summary.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, None) for name in FILES),
        *((name, "{") for name in FILES),
        ("metrics.jsonl", ""),
        ("config.json", "[]"),
    ],
)
def test_missing_or_broken_file_costs_its_chapter_and_says_so(run_folder, name, content):
    (run_folder / name).unlink()
    if content is not None:
        (run_folder / name).write_text(content, encoding="utf-8")
    page = page_of(run_folder)
    assert (page.open, page.mistakes) == ([], [])
    assert name in page.text
    assert "How to go on" in page.text


def test_running_run_shows_the_figures_of_its_last_rows(run_folder):
    (run_folder / "summary.json").unlink()
    page = page_of(run_folder)
    assert "summary.json is missing in this run folder." in page.text
    assert f"{SUMMARY['valid_loss']:.3f}" in page.text
    assert "1,200 steps" in page.text
    assert "2 min 41 s" in page.text


def test_line_cut_off_by_a_kill_is_left_out(run_folder):
    with (run_folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 12')
    page = page_of(run_folder)
    assert "1 line of metrics.jsonl could not be read, left out here." in page.text
    assert "loss, nats per token" in page.text


def test_diverged_run_is_drawn_as_far_as_it_went(run_folder):
    with (run_folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"kind": "train", "step": 1300, "tokens": 5_000_000, "loss": math.nan, "lr": 0.1})
            + "\n"
        )
    change_summary(run_folder, valid_loss=math.nan, perplexity=math.nan, bits_per_byte=math.inf)
    page = page_of(run_folder)
    assert "not a finite number in 1 row of metrics.jsonl" in page.text
    assert "not a number" in page.text


def test_values_of_the_wrong_type_do_not_stop_the_report(run_folder):
    (run_folder / "summary.json").write_text(
        json.dumps({key: {"a": 1} if key == "seconds" else "x" for key in SUMMARY}), encoding="utf-8"
    )
    (run_folder / "config.json").write_text(
        json.dumps({"model": {"d_model": "wide", "norm": 3}, "train": [], "optimizer": None}),
        encoding="utf-8",
    )
    write_rows(
        run_folder / "samples.jsonl",
        [{"step": 1, "tokens": "x"},
         {"step": 2, "tokens": [3, {"text": 4, "probability": "x"}], "consistency": 7},
         {"step": "y"}, {"text": "no step"}],
    )  # fmt: skip
    write_rows(
        run_folder / "metrics.jsonl", [{"kind": "train", "step": 1, "loss": "high"}, {"kind": "valid"}]
    )
    page = page_of(run_folder)
    assert (page.open, page.mistakes) == ([], [])
    assert "No loss was recorded" in page.text


def test_single_row_makes_a_report(run_folder):
    rows = [{"kind": "train", "step": 1, "tokens": 10, "loss": 5.0, "lr": 0.0, "grad_norm": 0.0}]
    write_rows(run_folder / "metrics.jsonl", rows)
    assert "loss, nats per token" in page_of(run_folder).text


def test_tokenizer_chapter_has_lengths_and_longest_tokens(whole_run_folder):
    html = write_report(whole_run_folder).read_text(encoding="utf-8")
    assert "bytes in the token" in html
    assert "<code>\N{OPEN BOX}basket</code>" in html
    assert "&lt;|endoftext|&gt;" in html


def test_without_a_tokenizer_file_the_summary_tells_the_longest_tokens(run_folder):
    page = page_of(run_folder)
    assert "tokenizer.scratchlm.json is missing in this run folder." in page.text
    assert "\N{OPEN BOX}something" in page.text


def test_model_chapter_counts_the_parameters_by_component(run_folder):
    from scratchlm.model.accounting import count_parameters
    from scratchlm.model.config import ModelConfig

    page = page_of(run_folder)
    counts = count_parameters(
        ModelConfig(**{**CONFIG["model"], "vocab_size": SUMMARY["tokenizer"]["vocab_size"]})
    )
    for value in counts.values():
        assert not value or f"{value:,}" in page.text


def test_commands_to_go_on_name_the_folder(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent.parent)
    page = page_of(run_folder)
    assert 'scratchlm generate runs/demo "Once upon a time"' in page.text
    assert "scratchlm train runs/demo train.steps=2400" in page.text
    assert "--resume" not in page.text
    change_summary(run_folder, stopped_early=True)
    assert "scratchlm train runs/demo --resume" in page_of(run_folder).text


def test_same_run_gives_the_same_bytes(whole_run_folder):
    first = write_report(whole_run_folder).read_bytes()
    assert write_report(whole_run_folder).read_bytes() == first


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no run folder, it holds none of config\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
