"""`scratchlm import`: models of other programs become runs."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Take in models of other programs.")


@app.callback()
def _root() -> None:
    """Take in models of other programs."""


@app.command()
def hf(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With config.json, safetensors and the tokenizer.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to make.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT... key=value ...]", help="Files to train it on further, settings."),
    ] = None,
) -> None:
    """Make a run of a GPT-2, Llama or Qwen 3 model in Hugging Face's form; it generates and trains on."""
    from scratchlm.cli.console import count, out
    from scratchlm.cli.sources import split_settings
    from scratchlm.interop.hf_read import import_hf

    names, _ = split_settings(text or [])
    settings = [word for word in text or [] if word not in names]
    found, _ = import_hf(folder, run, [Path(name) for name in names], settings)
    parameters = sum(tensor.numel() for tensor in found.tensors.values())
    out().print(f"{run}: {found.kind}, {count(parameters)} parameters", style="bold")
    place = shlex.quote(str(run))
    out().print(f"  scratchlm generate {place}", style="cyan")
    if names:
        out().print(f"  scratchlm train {place} --resume", style="cyan")
