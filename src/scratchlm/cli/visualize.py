"""`scratchlm visualize`: what happens inside a trained model, as a page and as pictures."""

from pathlib import Path
from typing import Annotated

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins


def visualize(
    folder: Annotated[Path, typer.Argument(help="Run folder.")] = Path("demo"),
    text: Annotated[
        str | None, typer.Argument(help="Text to read; the first validation document by default.")
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="Token whose nearest neighbours are shown; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Validation rows for the loss by place.")] = 256,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; inside/ in the run by default.")
    ] = None,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Look inside a trained model: tokens, attention, layers, gradients, on one page."""
    from functools import partial

    from scratchlm import runtime
    from scratchlm.cli.console import out
    from scratchlm.study.visualize.page import look_inside, write_inside
    from scratchlm.study.visualize.passes import loss_of
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    run = load_run(folder, device=device, checkpoint=checkpoint)
    where = next(run.model.parameters()).device
    precision = runtime.choose_precision(run.config.train.precision, where)
    runtime.set_threads()
    inside = look_inside(
        run,
        text,
        words=word or (),
        max_rows=rows,
        autocast=partial(runtime.autocast, where, precision.name),
    )
    page = write_inside(inside, output or folder / "inside")
    loss = float(loss_of(inside.text).mean())
    out().print(f"{folder} at step {run.step:,}: the text has {loss:.3f} nats per token.")
    out().print(f"{page}")
