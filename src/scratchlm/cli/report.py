"""`scratchlm report`: one self-contained page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from scratchlm.cli.sources import Plugin, load_plugins


def report(
    folder: Annotated[Path, typer.Argument(help="Run folder.")] = Path("demo"),
    inside: Annotated[
        bool, typer.Option("--inside", help="With attention, layers, embeddings, gradients of the model.")
    ] = False,
    plugin: Plugin = None,
) -> None:
    """Write report.html into a run folder: curves, samples, tokenizer, settings."""
    from scratchlm.cli.console import out
    from scratchlm.study.report import write_report

    load_plugins(plugin)
    chapters = None
    if inside:
        from scratchlm.cli.visualize import look
        from scratchlm.study.visualize.page import chapters_of

        chapters = chapters_of(look(folder))
    out().print(f"{write_report(folder, chapters)}")
