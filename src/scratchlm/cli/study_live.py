"""The live view of a study: snapshots come in, a table is drawn; without a terminal, lines of text."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scratchlm.cli.console import duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from scratchlm.lab.runner import CellView, OnChange, Snapshot

BAR = 24
MAX_ENDED = 12
"""Ended runs that stay in the table; the others are counted."""
STYLES = {"finished": "green", "diverged": "yellow", "failed": "red", "running": "bold cyan"}


@contextlib.contextmanager
def watch_study(title: str) -> "Iterator[OnChange]":
    """Yield the `watch` of a study: a live table on a terminal, plain lines anywhere else."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield PlainLines(title).take
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda snapshot: live.update(draw(title, snapshot), refresh=True)


class PlainLines:
    """Prints a line for every run that starts or ends."""

    def __init__(self, title: str) -> None:
        """Start with the title."""
        self.known: dict[str, str] = {}
        self.preparing = 0
        print(title, flush=True)

    def take(self, snapshot: "Snapshot") -> None:
        """Print what has changed."""
        if snapshot.preparing and not self.preparing:
            print("preparing tokenizer and data", flush=True)
        self.preparing = snapshot.preparing
        for view in snapshot.cells:
            before = self.known.setdefault(view.cell.key, "missing")
            if view.state != before:
                self.known[view.cell.key] = str(view.state)
                print(f"{view.cell.label}, seed {view.cell.seed}: {view.state}", flush=True)


def draw(title: str, snapshot: "Snapshot") -> "RenderableType":
    """The table: what has ended, what runs, how much is left."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ended = [view for view in snapshot.cells if view.state in ("finished", "diverged", "failed")]
    running = [view for view in snapshot.cells if view.state == "running"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("cell", "seed", "state", "progress", "loss", "left"):
        table.add_column(name, justify="right" if name in ("seed", "loss", "left") else "left", no_wrap=True)
    for view in [*ended[-MAX_ENDED:], *running]:
        table.add_row(
            view.cell.label,
            str(view.cell.seed),
            Text(str(view.state), STYLES[str(view.state)]),
            *_cells(view),
        )
    left = len(snapshot.cells) - len(ended) - len(running)
    note = f"{len(ended)} of {len(snapshot.cells)} runs ended, {left} waiting"
    note += ", preparing tokenizer and data" if snapshot.preparing else ""
    return Group(Text(title, "bold"), table, Text(note, "dim"))


def _cells(view: "CellView") -> "list[str | Text]":
    from rich.text import Text

    progress = view.progress
    if view.state != "running" or not progress.get("total"):
        return [str(progress.get("phase", "")) if view.state == "running" else "", "", ""]
    done = min(BAR, round(BAR * progress["step"] / progress["total"]))
    bar = Text.assemble(("=" * done, "cyan"), ("-" * (BAR - done), "bright_black"))
    bar.append(f"  {progress['step']:,} / {progress['total']:,}", "dim")
    return [bar, f"{progress['loss']:.3f}", duration(progress["seconds_left"])]
