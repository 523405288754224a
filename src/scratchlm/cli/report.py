"""`scratchlm report`: one self-contained page about a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="Run folder.")] = Path("demo")) -> None:
    """Write report.html into a run folder: curves, samples, tokenizer, settings."""
    from scratchlm.cli.console import out
    from scratchlm.study.report import write_report

    out().print(f"{write_report(folder)}")
