"""`scratchlm generate`: a trained model continues a text, token by token."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins

if TYPE_CHECKING:
    from rich.text import Text

    from scratchlm.generate.engine import Piece


def generate(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; empty: the beginning of a document.")] = "",
    number: Annotated[int, typer.Option("-n", min=1, help="How many texts.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1: likelier tokens; 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens that have this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Only tokens with this share of the likeliest one's.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what occurred gets less likely.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="The most tokens to add.")] = 256,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the output; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Colour tokens by probability.")
    ] = False,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Let a trained model write, streaming to the terminal."""
    from scratchlm.cli.console import out, write_text
    from scratchlm.config import validate
    from scratchlm.generate.engine import stream
    from scratchlm.generate.sampling import SamplingConfig
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "stop": tuple(stop or ()),
    }
    configs = [validate(SamplingConfig, {**settings, "seed": seed + index}) for index in range(number)]
    run = load_run(folder, device=device, checkpoint=checkpoint)
    console = out()
    for index, config in enumerate(configs):
        if number > 1:
            console.print(f"{'' if index == 0 else chr(10)}seed {config.seed}", style="dim")
        write_text(prompt)
        for piece in stream(run.model, run.tokenizer, prompt, config):
            if probabilities and console.is_terminal:
                console.print(_coloured(piece), end="")
                sys.stdout.flush()
            else:
                write_text(piece.text)
        write_text("\n")


def _coloured(piece: "Piece") -> "Text":
    """A piece on a background from red (unlikely) to none (certain)."""
    from rich.text import Text

    from scratchlm.cli.console import printable

    surprise = 1 - piece.probability
    return Text(printable(piece.text), style=f"on rgb({round(150 * surprise)},{round(40 * surprise)},0)")
