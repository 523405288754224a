"""`scratchlm export`: a trained model as files that other programs open."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins

app = typer.Typer(no_args_is_help=True, help="Take a model elsewhere: transformers, llama.cpp, onnxruntime.")

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


@app.command()
def gguf(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to make.")],
    dtype: Annotated[
        Literal["f32", "f16", "q8_0"],
        typer.Option(help="Format of the matrices; q8_0 has 8.5 bits a number."),
    ] = "f16",
    checkpoint: CheckpointOption = "newest",
    plugin: Plugin = None,
) -> None:
    """Write one file for llama.cpp: weights, tokenizer, chat template."""
    from scratchlm.cli.console import out, size
    from scratchlm.interop.llama_cpp import export_gguf
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    fields = export_gguf(load_run(run, device="cpu", checkpoint=checkpoint), file, format=dtype)
    out().print(
        f"{file}: {fields['general.architecture']}, {dtype}, {size(file.stat().st_size)}", style="bold"
    )
    out().print(f"llama-cli -m {shlex.quote(str(file))} opens it.")


@app.command()
def onnx(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="File to make.")],
    checkpoint: CheckpointOption = "newest",
    plugin: Plugin = None,
) -> None:
    """Write the graph of the model, token ids to logits, for onnxruntime; needs the extra onnx."""
    from scratchlm.cli.console import out, size
    from scratchlm.interop.onnx_file import export_onnx
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    export_onnx(load_run(run, device="cpu", checkpoint=checkpoint), file)
    out().print(f"{file}: token_ids -> logits, {size(file.stat().st_size)}", style="bold")
