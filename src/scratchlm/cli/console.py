"""The terminal: two consoles and how numbers are written for people."""

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

MINUTE = 60
HOUR = 3600


def out() -> "Console":
    """Console for results: colours on a terminal, plain text anywhere else."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def err() -> "Console":
    """Console for errors, warnings and progress; never mixed with results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def show_warnings() -> None:
    """Show what the library logs as a warning: one line each on stderr."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from rich.text import Text

            message = " ".join(record.getMessage().split())
            err().print(Text.assemble((f"{record.levelname.lower()}: ", "bold yellow"), message))

    logging.getLogger("scratchlm").handlers[:] = [Lines(logging.WARNING)]


def table(*columns: str, numbers: tuple[str, ...] = ()) -> "Table":
    """An empty table without frames; the columns in `numbers` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", show_header=any(columns))
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def print_table(made: "Table", *, spare: Sequence[str] = ()) -> None:
    """Print a table: as wide as the terminal, and as wide as it needs in a file or pipe.

    Args:
        made: From `table`.
        spare: Columns that a narrow terminal can do without, those to leave out first in front.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if width is None:
        console.print(_fitted(made, console.width, spare))
        return
    with console.capture() as capture:
        console.print(made)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _fitted(made: "Table", width: int, spare: Sequence[str]) -> "Table":
    """Make a table narrow enough: smaller gaps, columns left out, lines broken, but not in figures."""
    if _needs(made, 3) <= width:
        return made
    left = list(spare)
    while left and _needs(made, 2, broken=True) > width:
        made = _without(made, left.pop(0))
    made.padding = (0, 2, 0, 0)
    widest = [_width(column, broken=False) for column in made.columns]
    least = [_width(column, broken=True) for column in made.columns]
    available = width - 2 * (len(made.columns) - 1)
    if sum(least) > available:
        return made  # rich folds what nothing else helps
    while sum(widest) > available:  # from the widest of those that can still be broken
        chosen = max(range(len(widest)), key=lambda number: (widest[number] > least[number], widest[number]))
        widest[chosen] -= 1
    for column, fitting in zip(made.columns, widest, strict=True):
        column.width = fitting
    return made


def _without(made: "Table", name: str) -> "Table":
    """The same table without a column."""
    kept = [column for column in made.columns if column.header != name]
    numbers = tuple(str(column.header) for column in kept if column.justify == "right")
    fewer = table(*(str(column.header) for column in kept), numbers=numbers)
    for cells in zip(*(column.cells for column in kept), strict=True):
        fewer.add_row(*cells)
    return fewer


def _needs(made: "Table", gap: int, *, broken: bool = False) -> int:
    return sum(_width(column, broken=broken) + gap for column in made.columns) - gap


def _width(column: "Column", *, broken: bool) -> int:
    """Of the longest line; `broken`: with breaks between words, in figures only behind "," and "/"."""
    from rich.cells import cell_len

    header, *cells = [str(cell) for cell in (column.header, *column.cells)]
    lines = [header, *cells]
    if broken:
        pattern = r"[^,/]+[,/]?" if column.justify == "right" else r"^\s*\S+|\S+"  # a label keeps its indent
        parts = [part for cell in cells for part in re.findall(pattern, cell)]
        lines = [*header.split(), *(part.strip() if column.justify == "right" else part for part in parts)]
    return max((cell_len(line) for line in lines), default=0)


def write_text(text: str) -> None:
    """Write a text as it is, at once; on a terminal without its control characters."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Replace control characters that a terminal would obey: a model's text must not move the cursor.

    Example: an escape character becomes U+FFFD; newlines and tabs stay.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def count(number: float) -> str:
    """A number for people: 950 -> "950", 12_345 -> "12,345", 1_234_567 -> "1.23 M"."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:,.0f}"


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000: 1_500_000 -> "1.5 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(num_bytes) >= limit:
            return f"{num_bytes / limit:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people: 4.21 -> "4.2 s", 75 -> "1 min 15 s", 7300 -> "2 h 1 min"."""
    if seconds != seconds or seconds in (float("inf"), float("-inf")):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
