"""`scratchlm study fit`: fit scaling laws to runs, state what larger ones will reach, check it later."""

from pathlib import Path
from typing import Annotated

import typer


def fit(
    file: Annotated[
        Path,
        typer.Argument(help="A study's folder, a rows.csv, or isoflops_curves.json.", show_default=False),
    ],
    at: Annotated[
        list[float] | None, typer.Option("--at", help="Look ahead to this many FLOPs.", show_default=False)
    ] = None,
    hold_out: Annotated[
        int | None,
        typer.Option(
            "--hold-out",
            help="How many of the largest budgets are predicted first; one, if three others remain.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Check an earlier scaling.json on larger runs.", show_default=False),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--folder", "-o", help="Where.", show_default=False)] = None,
) -> None:
    """Fit scaling laws: a parabola per budget, power laws, and the loss over parameters and tokens."""
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.cli.errors import naming
    from scratchlm.lab.scaling import check_statement, fit_scaling, held_words
    from scratchlm.lab.scaling_report import grids, write_scaling
    from scratchlm.lab.scaling_runs import read_runs

    for flops in at or ():
        if not 0 < flops < float("inf"):
            raise ValueError(f"--at {flops:g}: give a number of FLOPs above 0.")
    read = read_runs(file)
    scaling = fit_scaling(read.runs, at=at or (), hold_out=hold_out)
    if check is not None:
        held = check_statement(scaling.isoflop, read.runs, check)
        said = [line for line in scaling.conclusion if not line.startswith("Stated from")]
        scaling = scaling._replace(held_out=held, conclusion=[*said, held_words(held)])
    place = folder or (file if file.is_dir() else file.parent / f"{file.stem}-scaling")
    with naming(place):
        page = write_scaling(scaling, place, name=file.name, num_left_out=read.num_left_out)
    for grid in grids(scaling):
        made = table(*grid.head)
        for row in grid.rows:
            made.add_row(*row)
        out().print(grid.title, style="bold")
        print_table(made)
        out().print()
    for sentence in scaling.conclusion:
        out().print(sentence)
    if scaling.problem:
        out().print(f"No L(N, D): {scaling.problem}")
    out().print(f"The report: {page}", style="bold")
