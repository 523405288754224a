"""Claims about results.md: no row is lost, and it stays a readable table."""

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from scratchlm.study import append_result, result_of
from scratchlm.study.results import COLUMNS

ROW = {
    "name": "demo",
    "optimizer": "adamw",
    "attention": "auto",
    "parameters": 2_164_416,
    "tokens": 4_915_200,
    "best_valid_loss": 1.31415,
    "perplexity": 3.7216,
    "bits_per_byte": 0.4632,
}


def table_of(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def add_rows(path: Path, worker: int, num_rows: int) -> None:
    for index in range(num_rows):
        append_result(path, {**ROW, "name": f"worker-{worker}-{index}"})


def test_first_row_makes_the_table(tmp_path):
    path = tmp_path / "deep" / "results.md"
    append_result(path, {**ROW, "timestamp": "2026-11-20 12:00:00"})
    headings, rule, row = table_of(path)
    assert headings == list(COLUMNS.values())
    assert all(set(cell) <= {"-", ":"} for cell in rule)
    assert row == [
        "2026-11-20 12:00:00",
        "demo",
        "adamw",
        "auto",
        "2,164,416",
        "4,915,200",
        "1.3141",
        "3.7216",
        "0.4632",
    ]


def test_columns_are_aligned_after_every_row(tmp_path):
    path = tmp_path / "results.md"
    for name in ("a", "a-much-longer-name", "b"):
        append_result(path, {**ROW, "name": name})
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, character in enumerate(line) if character == "|") for line in lines}) == 1


def test_timestamp_is_now_unless_given(tmp_path):
    append_result(tmp_path / "results.md", ROW)
    assert table_of(tmp_path / "results.md")[2][0].startswith("20")


def test_unknown_and_infinite_figures_have_their_place(tmp_path):
    append_result(
        tmp_path / "results.md", {"name": "diverged", "perplexity": float("inf"), "optimizer": None}
    )
    row = table_of(tmp_path / "results.md")[2]
    assert row[1:] == ["diverged", "-", "-", "-", "-", "-", "inf", "-"]


def test_bars_and_line_breaks_in_a_name_do_not_break_the_table(tmp_path):
    path = tmp_path / "results.md"
    append_result(path, {**ROW, "name": "a|b\nc\\"})
    append_result(path, ROW)
    rows = table_of(path)
    assert len(rows) == 4
    assert rows[2][1] == "a\\|b c\\\\"
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_text_around_the_table_stays(tmp_path):
    path = tmp_path / "results.md"
    append_result(path, ROW)
    path.write_text(
        f"# My runs\n\nNotes.\n\n{path.read_text(encoding='utf-8')}\nMore notes.\n", encoding="utf-8"
    )
    append_result(path, {**ROW, "name": "second"})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# My runs\n\nNotes.\n")
    assert text.endswith("\nMore notes.\n")
    assert [row[1] for row in table_of(path)[2:]] == ["demo", "second"]


def test_file_without_a_table_gets_one_at_its_end(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("# Mine\n", encoding="utf-8")
    append_result(path, ROW)
    assert path.read_text(encoding="utf-8").startswith("# Mine\n\n| timestamp")


def test_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown column 'perplexty'\. Did you mean 'perplexity'"):
        append_result(tmp_path / "results.md", {"perplexty": 3.0})
    assert not (tmp_path / "results.md").exists()


def test_four_threads_lose_no_row(tmp_path):
    path = tmp_path / "results.md"
    workers = [threading.Thread(target=add_rows, args=(path, worker, 8)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {row[1] for row in table_of(path)[2:]} == {f"worker-{w}-{i}" for w in range(4) for i in range(8)}


def test_four_processes_lose_no_row(tmp_path):
    path = tmp_path / "results.md"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_rows, args=(path, worker, 8)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {worker.exitcode for worker in workers} == {0}
    assert {row[1] for row in table_of(path)[2:]} == {f"worker-{w}-{i}" for w in range(4) for i in range(8)}
    assert not list(tmp_path.glob("*.tmp"))


def test_row_of_a_run_has_its_summary_figures(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    row = result_of(run_folder)
    assert {key: row[key] for key in ROW} == {key: summary[key] for key in ROW}


def test_row_of_a_run_without_a_summary_is_made_from_its_settings(run_folder):
    (run_folder / "summary.json").unlink()
    row = result_of(run_folder)
    assert (row["name"], row["optimizer"], row["attention"], row["perplexity"]) == (
        "demo",
        "adamw",
        "auto",
        None,
    )
