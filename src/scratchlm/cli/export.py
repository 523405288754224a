"""`scratchlm export`: a trained model as files that other programs open."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins

app = typer.Typer(no_args_is_help=True, help="Take a model elsewhere: transformers, llama.cpp.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


@app.command()
def hf(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made for the files.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Format of the numbers.")
    ] = "float32",
    checkpoint: CheckpointOption = "newest",
    plugin: Plugin = None,
) -> None:
    """Write a folder for transformers: weights, tokenizer, chat template, model card."""
    from scratchlm.cli.console import out
    from scratchlm.interop.hf import export_hf
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    table = export_hf(load_run(run, device="cpu", checkpoint=checkpoint), folder, dtype=dtype)
    out().print(f"{folder}: {table['architectures'][0]}, {dtype}", style="bold")
    out().print(f"AutoModelForCausalLM.from_pretrained({str(folder)!r}) opens it.")
