"""What was measured: rows go into files as they come, tables to the terminal at the end."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm.cli.bench_options import words

if TYPE_CHECKING:
    import torch

    from scratchlm.bench.tables import Table
    from scratchlm.config import Config


def collect(
    measure: "Callable[..., Iterable[Config]]",
    tables: "Callable[[list[Any]], list[Table]]",
    total: int,
    device: "torch.device",
    form: str,
    paths: Sequence[Path] | None,
) -> None:
    """Write each result as it comes, print all at the end, and why a row has no figures."""
    from scratchlm.bench.tables import FORMATS, format_of, write, written
    from scratchlm.cli.console import write_text

    words(form, "--format", FORMATS)
    for path in paths or ():
        format_of(path)
    extra, results = machine(device), []
    try:
        with _progress(total) as show:
            for result in measure(starting=lambda case: show(str(case))):
                results.append(result)
                write(paths or (), tables(results), results, extra)
    finally:  # whoever stops it sees what has been measured
        if form == "table":
            _print_results(tables(results), results, extra)
        else:
            write_text(written(form, tables(results), results, extra))


def machine(device: "torch.device") -> dict[str, object]:
    """Return what every row of a file should tell about where it was measured."""
    import time

    from scratchlm import hardware, runtime

    here = runtime.environment()
    kept = ("torch", "scratchlm", "commit", "threads")
    return {"device": hardware.device_name(device), "date": time.strftime("%Y-%m-%d")} | {
        key: here[key] for key in kept
    }


def print_tables(tables: "Iterable[Table]") -> None:
    """Print tables on the terminal, the best of each row in bold."""
    from rich.text import Text

    from scratchlm.cli.console import out, print_table, table

    for number, found in enumerate(tables):
        if number:
            out().print()
        out().print(found.title, style="bold")
        shown = table(*found.header, numbers=tuple(found.header[found.labels :]))
        for row, cells in enumerate(found.rows):
            styled = (
                Text(cell, "bold green" if (row, column) in found.best else _style(cell))
                for column, cell in enumerate(cells)
            )
            shown.add_row(*styled)
        print_table(shown, spare=("backend",))  # the title has it, too


def _style(cell: str) -> str:
    return "yellow" if cell.startswith(("out of memory", "too slow", "not here", "failed")) else ""


def _print_results(tables: "list[Table]", results: list[Any], extra: dict[str, object]) -> None:
    from scratchlm.cli.console import err

    print_tables(tables)
    lost = ("not here", "failed")
    reasons = {result.note: None for result in results if getattr(result, "status", "") in lost}
    for note in reasons:
        err().print(note, style="dim")
    if results:
        err().print(f"on {extra['device']}, torch {extra['torch']}", style="dim")


@contextlib.contextmanager
def _progress(total: int) -> "Iterator[Callable[[str], None]]":
    """A line on the terminal with the number of the row and what it is."""
    from scratchlm.cli.console import err

    if not err().is_terminal:
        yield lambda text: None
        return
    with err().status("") as status:
        done = 0

        def show(text: str) -> None:
            nonlocal done
            done += 1
            status.update(f"{done} of {total}: {text}")

        yield show
