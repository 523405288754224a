r"""Rows come in; the same table as Markdown, LaTeX or JSON lines goes out.

    | model | forward |              \begin{tabular}{lr}            {"model": "small", "median_ms": 12.1}
    | :---- | ------: |              model & forward \\
    | small | 12.1 ms |              small & 12.1 ms \\

Tables are for people and papers and hold text; JSON lines are for programs and hold every figure in full.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from scratchlm.config import Config
from scratchlm.runtime import write_text_atomically

FORMATS = ("table", "markdown", "latex", "jsonl")
"""How a command can print what it found; "table" is for a terminal."""
SUFFIXES = {".md": "markdown", ".tex": "latex", ".jsonl": "jsonl"}
"""Ending of a file -> how it is written."""

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


Status = Literal["measured", "out of memory", "not here", "too slow", "failed"]
"""What became of a row."""


class Table(NamedTuple):
    """Text in rows and columns."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    """How many columns at the left are words; the others are figures and aligned to the right."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells that are set in bold."""


def markdown(tables: Iterable[Table]) -> str:
    """Return the tables as Markdown, columns aligned in the source too."""
    return "\n".join(_markdown(table) for table in tables)


def latex(tables: Iterable[Table]) -> str:
    """Return the tables as LaTeX; they need the package booktabs."""
    return "\n".join(_latex(table) for table in tables)


def json_lines(results: Iterable[Config], extra: dict[str, object]) -> str:
    """Return one JSON object a line: a case, its result, and `extra`, what all have in common."""
    records = []
    for result in results:
        found = result.model_dump(mode="json")
        records.append(found.pop("case") | found | extra)
    return "".join(json.dumps(record) + "\n" for record in records)


def format_of(path: Path) -> str:
    """Return how a file with this ending is written.

    Raises:
        ValueError: The ending is none of SUFFIXES.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown ending; name the file .md, .tex or .jsonl.")
    return SUFFIXES[path.suffix]


def written(form: str, tables: Iterable[Table], results: Iterable[Config], extra: dict[str, object]) -> str:
    """Return the text in one of the formats "markdown", "latex", "jsonl"."""
    if form == "jsonl":
        return json_lines(results, extra)
    return markdown(tables) if form == "markdown" else latex(tables)


def write(
    paths: Iterable[Path], tables: list[Table], results: list[Config], extra: dict[str, object]
) -> None:
    """Write everything found so far to each file, in the form that its ending says."""
    for path in paths:
        write_text_atomically(path, written(format_of(path), tables, results, extra))


def milliseconds(value: float) -> str:
    """Return a time in ms with three digits: 0.01234 -> "0.012", 12.34 -> "12.3", 1234.5 -> "1,234"."""
    return f"{value:,.{places_of(value)}f}"


def places_of(value: float) -> int:
    """Return how many places behind the point a figure needs for three digits, at most 3."""
    value = abs(value)
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3


def size(num_bytes: float) -> str:
    """Return bytes in powers of 1000: 1_234_567 -> "1.23 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= 0.9995 * limit:
            return f"{num_bytes / limit:,.{min(2, places_of(num_bytes / limit))}f} {unit}"
    return f"{num_bytes:.0f} B"


def _markdown(table: Table) -> str:
    rows = _marked(table, "**{}**")
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [table.header, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(table.header))]

    def line(row: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < table.labels else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        ":" + "-" * (width - 1) if column < table.labels else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    title = f"**{table.title}**\n\n" if table.title else ""
    return title + "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])]) + "\n"


def _latex(table: Table) -> str:
    def line(row: list[str]) -> str:
        return "  " + " & ".join(row) + r" \\"

    plain = table._replace(rows=[[_escaped(cell) for cell in row] for row in table.rows])
    rows = [line(row) for row in _marked(plain, r"\textbf{{{}}}")]
    alignment = "l" * table.labels + "r" * (len(table.header) - table.labels)
    caption = [rf"\caption{{{_escaped(table.title)}}}"] if table.title else []
    body = [
        r"\begin{table}",
        r"\centering",
        *caption,
        rf"\begin{{tabular}}{{{alignment}}}",
        r"  \toprule",
        line([_escaped(cell) for cell in table.header]),
        r"  \midrule",
        *rows,
        r"  \bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(body) + "\n"


def _marked(table: Table, form: str) -> list[list[str]]:
    return [
        [form.format(cell) if (number, column) in table.best else cell for column, cell in enumerate(row)]
        for number, row in enumerate(table.rows)
    ]


def _escaped(text: str) -> str:
    special = text.replace("+-", "\0")
    return "".join(_LATEX.get(character, character) for character in special).replace("\0", r"$\pm$")
