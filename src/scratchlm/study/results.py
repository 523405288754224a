"""A finished run comes in, a row at the end of `results.md` comes out: one Markdown table of all runs.

Several runs may end at once: a lock file beside the table lets one at a time read it, add its row and
replace it atomically, so no row is lost and a reader never sees half a table. Text around the table stays
as it is.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scratchlm.registry import unknown
from scratchlm.runtime import write_text_atomically
from scratchlm.study import units
from scratchlm.study.run_record import number, read_run, section

COLUMNS = {
    "timestamp": "timestamp",
    "name": "name",
    "optimizer": "optimizer",
    "attention": "attention",
    "parameters": "parameters",
    "tokens": "tokens",
    "best_valid_loss": "best validation loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}
"""Key of a row -> its heading, in the table's order."""

NUMBERS = ("parameters", "tokens", "best_valid_loss", "perplexity", "bits_per_byte")


def append_result(path: Path, row: Mapping[str, Any]) -> None:
    """Add one run to the table in `path`, which is made when it is missing.

    Args:
        path: The Markdown file, usually results.md beside the run folders.
        row: Any of the keys of `COLUMNS`; a missing one becomes "-", a missing timestamp is the present.

    Raises:
        ValueError: A key is none of the columns.
    """
    for key in row:
        if key not in COLUMNS:
            raise ValueError(f"a row of {path.name}: {unknown('column', key, COLUMNS)}")
    stamped = {"timestamp": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"), **row}
    cells = [_cell(key, stamped.get(key)) for key in COLUMNS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_name(f".{path.name}.lock")):
        text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
        write_text_atomically(path, _with_row(text, cells))


def result_of(run_folder: Path) -> dict[str, Any]:
    """The row of a finished run, for `append_result`, from its config.json and summary.json.

    Raises:
        ValueError: `run_folder` is no run folder.
    """
    record = read_run(run_folder)
    optimizer = record.summary.get("optimizer") or section(record.config, "optimizer").get("name")
    attention = record.summary.get("attention") or section(record.config, "model").get("attention")
    return {
        "name": record.name,
        "optimizer": optimizer,
        "attention": attention,
        **{key: number(record.summary, key) for key in NUMBERS},
    }


def _cell(key: str, value: object) -> str:
    if value is None or value == "":
        return "-"
    if key in NUMBERS and isinstance(value, int | float):
        if not math.isfinite(value):
            return str(float(value))
        if key in ("parameters", "tokens"):
            return f"{round(value):,}"
        return units.decimal(value, places=4)
    # a bar or a line break inside a name would end the cell
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def _with_row(text: str, cells: list[str]) -> str:
    """Return the Markdown `text` with `cells` added to the table that has our headings, columns aligned."""
    lines = text.rstrip("\n").split("\n")
    headings = list(COLUMNS.values())
    start = next((i for i, line in enumerate(lines) if _split(line) == headings), None)
    if start is None:
        table, before, after = [], [*lines, ""], []
    else:
        end = start
        while end < len(lines) and lines[end].lstrip().startswith("|"):
            end += 1
        table = [_split(line) for line in lines[start + 2 : end]]
        before, after = lines[:start], lines[end:]
    table = [(row + ["-"] * len(headings))[: len(headings)] for row in table]
    return "\n".join([*before, *_aligned(headings, [*table, cells]), *after]).lstrip("\n") + "\n"


def _split(line: str) -> list[str]:
    """The cells of one line of a table; an escaped bar belongs to its cell."""
    cells, cell, escaped = [], "", False
    for character in line.strip().removeprefix("|"):
        if character == "|" and not escaped:
            cells.append(cell.strip())
            cell = ""
        else:
            cell += character
        escaped = character == "\\" and not escaped
    return cells


def _aligned(headings: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(3, *(len(cell) for cell in cells)) for cells in zip(headings, *rows, strict=True)]
    numeric = [key in NUMBERS for key in COLUMNS]

    def line(cells: list[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return [line(headings), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one thread of one process at a time into this context; the file stays: removing it would race."""
    import fcntl  # POSIX only; everything else in this file runs anywhere

    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets the next one in, also when this process dies
