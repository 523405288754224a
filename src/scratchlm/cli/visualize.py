"""`scratchlm visualize`: what happens inside a trained model, as a page and as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins

if TYPE_CHECKING:
    from scratchlm.study.visualize.page import Inside

ROWS = 256
"""Validation rows for the loss by place: tens of thousands of tokens, seconds for the demo's model."""


def visualize(
    folder: Annotated[Path, typer.Argument(help="Run folder.")] = Path("demo"),
    text: Annotated[
        str | None, typer.Argument(help="Text to read; the first validation document by default.")
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="Token whose nearest neighbours are shown; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Validation rows for the loss by place.")] = ROWS,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; inside/ in the run by default.")
    ] = None,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Look inside a trained model: tokens, attention, layers, gradients, on one page."""
    from scratchlm.cli.console import out
    from scratchlm.study.visualize.page import write_inside
    from scratchlm.study.visualize.passes import loss_of

    load_plugins(plugin)
    inside = look(folder, text, words=word or (), rows=rows, checkpoint=checkpoint, device=device)
    page = write_inside(inside, output or folder / "inside")
    loss = float(loss_of(inside.text).mean())
    out().print(f"{folder} at step {inside.run.step:,}: the text has {loss:.3f} nats per token.")
    out().print(f"{page}")


def look(
    folder: Path,
    text: str | None = None,
    *,
    words: Sequence[str] = (),
    rows: int = ROWS,
    checkpoint: str = "newest",
    device: str = "auto",
) -> "Inside":
    """Load a run and measure what its page shows."""
    from scratchlm import runtime
    from scratchlm.study.visualize.page import look_inside
    from scratchlm.train.folder import load_run

    run = load_run(folder, device=device, checkpoint=checkpoint)
    runtime.set_threads()
    return look_inside(run, text, words=words, max_rows=rows, autocast=run.autocast)
