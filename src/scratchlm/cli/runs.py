"""`scratchlm runs`: which runs there are, what each was, how they differ, how their losses fell."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from scratchlm.study.compare import Facts, Status

app = typer.Typer(no_args_is_help=True, help="Look at runs: list, show, compare and plot them.")

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Run folders; a folder of runs stands for all of them.")
]
COLUMNS = (
    "run", "status", "loss", "bits/byte", "tokens", "steps", "parameters", "tokens/s", "time", "changed",
)  # fmt: skip
EXPENDABLE = ("parameters", "bits/byte", "changed", "time", "steps", "tokens/s")
"""What a narrow terminal does without, in this order."""
STYLES: "dict[Status, str]" = {"finished": "green", "running": "bold cyan", "interrupted": "yellow"}


class Over(StrEnum):
    """What curves are drawn over."""

    tokens = "tokens"
    step = "step"
    seconds = "seconds"


@app.command(name="list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, three folders deep.")] = Path("."),
) -> None:
    """List the runs below a folder, the newest first."""
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.study.compare import facts, find_runs
    from scratchlm.study.run_record import read_run

    found = find_runs(folder)
    if not found:
        out().print(f"No runs in {folder} yet; make one with: scratchlm demo")
        return
    names = [str(run.relative_to(folder)) if run != folder else str(run) for run in found]
    rows = [_line(name, facts(read_run(run))) for name, run in zip(names, found, strict=True)]
    columns = _fitting({name: [str(row[index]) for row in rows] for index, name in enumerate(COLUMNS)})
    made = table(*columns, numbers=COLUMNS[2:-1])
    for row in rows:
        made.add_row(*(cell for cell, name in zip(row, COLUMNS, strict=True) if name in columns))
    print_table(made)


@app.command()
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Show one run: its result, what it saw, what it was made with."""
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.study.compare import facts
    from scratchlm.study.run_record import read_run
    from scratchlm.study.run_sheet import sheet

    record = read_run(run)
    out().print(_title(record.name, facts(record).status, record.config.get("description")))
    made = table("", "", "")
    for title, rows in sheet(record).items():
        made.add_row()
        made.add_row(_dim(title))
        for name, value, detail in rows:
            made.add_row(f"  {name}", value, _dim(detail))
    print_table(made)


@app.command()
def compare(runs: Runs) -> None:
    """Show runs side by side: their figures, then every setting that differs."""
    from scratchlm.cli.console import out, print_table
    from scratchlm.study.compare import differences, facts, read_runs, short_names

    records = read_runs(runs)
    if len(records) < 2:
        raise ValueError(
            f"{runs[0]}: one run alone; name another to compare it with, or: scratchlm runs show."
        )
    names = short_names([record.folder for record in records])
    print_table(_figures([facts(record) for record in records], names))
    found = differences([record.config for record in records])
    out().print()
    if not found:
        out().print("All settings are the same.")
        return
    made = _columns("setting", names)
    for difference in found:
        made.add_row(difference.key, *(_value(value) for value in difference.values))
    print_table(made)


@app.command()
def plot(
    runs: Runs,
    out_file: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("runs.png"),
    over: Annotated[Over, typer.Option(help="What the curves are drawn over.")] = Over.tokens,
    compare_to: Annotated[
        str | None, typer.Option(help="Draw what is expected behind: a recipe, a curve's file or a run.")
    ] = None,
) -> None:
    """Draw the losses of runs into one PNG; runs that differ by their seed alone become one line."""
    from scratchlm.cli.console import out
    from scratchlm.study.compare import read_runs
    from scratchlm.study.reference_curve import open_reference
    from scratchlm.study.run_curves import plot_runs

    if out_file.suffix != ".png":
        raise ValueError(f"{out_file}: a plot is a PNG; choose a name that ends with .png.")
    reference = open_reference(compare_to) if compare_to else None
    plot_runs(out_file, read_runs(runs), over=over.value, reference=reference)
    out().print(str(out_file))


@app.command()
def curve(
    runs: Runs,
    out_file: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.", show_default=False)],
) -> None:
    """Make a reference curve of finished runs that differ by their seed alone."""
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.study.compare import read_runs
    from scratchlm.study.reference_curve import ReferenceCurve

    made = ReferenceCurve.from_runs(read_runs(runs))
    made.save(out_file)
    seeds = ", ".join(map(str, made.seeds))
    out().print(f"{made.name}: expected loss from seeds {seeds}; normal is {made.basis}.")
    rows = table(
        "step", "tokens", "loss", "normal within", numbers=("step", "tokens", "loss", "normal within")
    )
    for at in made.expected:
        rows.add_row(f"{at.step:,}", f"{at.tokens:,}", f"{at.mean:.3f}", f"+- {at.tolerance:.3f}")
    print_table(rows)
    out().print(f"{out_file}")


def _fitting(columns: dict[str, list[str]]) -> list[str]:
    """The columns that a terminal has room for; a file or pipe has room for all."""
    from scratchlm.cli.console import out

    kept = list(columns)
    room = out().width if sys.stdout.isatty() else sys.maxsize
    for name in EXPENDABLE:
        if sum(3 + max(map(len, (column, *columns[column]))) for column in kept) - 3 > room:
            kept.remove(name)
    return kept


def _line(name: str, one: "Facts") -> "list[str | Text]":
    """The cells of one run in the list, in the order of COLUMNS."""
    from scratchlm.cli.console import count, duration

    steps = "-" if one.steps is None else f"{one.steps:,}"
    if one.status != "finished" and one.planned_steps:
        steps = f"{one.steps or 0:,} of {one.planned_steps:,}"
    return [
        name,
        _styled(one.status, STYLES[one.status]),
        _decimal(one.loss),
        _decimal(one.bits_per_byte),
        _shown(one.tokens, count),
        steps,
        _shown(one.parameters, count),
        _shown(one.tokens_per_second, count),
        _shown(one.seconds, duration),
        _styled(_when(one.changed), "dim"),
    ]


def _figures(runs: "Sequence[Facts]", names: Sequence[str]) -> "Table":
    """Figures side by side; where less or more is better, the best is bold."""
    from scratchlm.cli.console import count, duration

    made = _columns("", names, numbers=True)
    made.add_row("status", *(_styled(run.status, STYLES[run.status]) for run in runs))
    losses = {"validation loss": "loss", "best on the way": "best_loss", "bits per byte": "bits_per_byte"}
    for title, key in losses.items():
        values = [getattr(run, key) for run in runs]
        best = min([value for value in values if value is not None], default=None)
        made.add_row(title, *(_styled(_decimal(value), "bold" if value == best else "") for value in values))
    speeds = [run.tokens_per_second for run in runs]
    fastest = max([speed for speed in speeds if speed is not None], default=None)
    made.add_row("tokens/s", *(_styled(_shown(v, count), "bold" if v == fastest else "") for v in speeds))
    made.add_row("time", *(_shown(run.seconds, duration) for run in runs))
    made.add_row("tokens seen", *(_shown(run.tokens, count) for run in runs))
    made.add_row("epochs", *(_decimal(run.epochs, 2) for run in runs))
    made.add_row("parameters", *(_shown(run.parameters, count) for run in runs))
    made.add_row("tokens per parameter", *(_decimal(run.tokens_per_parameter, 1) for run in runs))
    return made


def _columns(first: str, names: Sequence[str], *, numbers: bool = False) -> "Table":
    """A table with a column for each run; two runs may bear one name."""
    from scratchlm.cli.console import table

    made = table(first)
    for name in names:
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    made.show_header = True
    return made


def _title(name: str, status: "Status", description: object) -> "Text":
    from rich.text import Text

    return Text.assemble(
        (name, "bold"), "  ", (status, STYLES[status]), (f"\n{description}" if description else "", "dim")
    )


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _decimal(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _shown(value: float | None, how: Any) -> str:
    return "-" if value is None else how(value)


def _when(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else "-"


def _dim(text: str) -> "Text":
    return _styled(text, "dim")


def _styled(text: str, style: str) -> "Text":
    from rich.text import Text

    return Text(text, style)
