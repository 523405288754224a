"""Tables: aligned Markdown, LaTeX that compiles, JSON lines that read back."""

import json
from pathlib import Path

import pytest

from scratchlm.bench import tables
from scratchlm.bench.tables import Table
from scratchlm.config import Config

TABLE = Table("a & b", ["name", "time"], [["x|y", "1 +- 2 ms"], ["50 %", "10 ms"]], 1, frozenset({(1, 1)}))


class Case(Config):
    model: str


class Result(Config):
    case: Case
    median_ms: float | None


def test_markdown_is_aligned_marks_the_best_and_keeps_bars_out():
    assert tables.markdown([TABLE]) == (
        "**a & b**\n"
        "\n"
        "| name |      time |\n"
        "| :--- | --------: |\n"
        "| x\\|y | 1 +- 2 ms |\n"
        "| 50 % | **10 ms** |\n"
    )


def test_latex_escapes_what_is_special_there():
    text = tables.latex([TABLE])
    assert r"\caption{a \& b}" in text
    assert r"  x|y & 1 $\pm$ 2 ms \\" in text
    assert r"  50 \% & \textbf{10 ms} \\" in text
    assert r"\begin{tabular}{lr}" in text


def test_a_line_of_json_holds_case_result_and_machine_side_by_side():
    measured = {"small": 0.1 + 0.2, "xl": None}
    results = [Result(case=Case(model=name), median_ms=value) for name, value in measured.items()]
    lines = tables.json_lines(results, {"device": "here"}).splitlines()
    assert json.loads(lines[0]) == {"model": "small", "median_ms": 0.1 + 0.2, "device": "here"}
    assert json.loads(lines[1])["median_ms"] is None


def test_the_ending_of_a_file_decides(tmp_path):
    results = [Result(case=Case(model="small"), median_ms=1.0)]
    paths = [tmp_path / "a.md", tmp_path / "a.tex", tmp_path / "sub" / "a.jsonl"]
    tables.write(paths, [TABLE], results, {})
    assert paths[0].read_text(encoding="utf-8").startswith("**a & b**")
    assert r"\toprule" in paths[1].read_text(encoding="utf-8")
    assert json.loads(paths[2].read_text(encoding="utf-8")) == {"model": "small", "median_ms": 1.0}
    with pytest.raises(ValueError, match=r"a\.txt: unknown ending; name the file \.md, \.tex or \.jsonl"):
        tables.format_of(Path("a.txt"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1,234")],
)
def test_times_have_three_digits(value, text):
    assert tables.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 B"), (1500, "1.50 kB"), (999_600, "1.00 MB"), (77_546_652, "77.5 MB"), (2.5e12, "2.50 TB")],
)
def test_sizes_have_three_digits(value, text):
    assert tables.size(value) == text
