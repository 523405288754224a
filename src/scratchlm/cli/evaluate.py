"""`scratchlm evaluate`: how well a trained model predicts a split, or a text of yours."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, load_plugins, open_corpus, split_settings

if TYPE_CHECKING:
    from scratchlm.data.shards import TokenDataset
    from scratchlm.train.folder import LoadedRun


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CORPUS|FILES... key=value ...]",
            help="Other text to measure on; the run's own by default.",
        ),
    ] = None,
    split: Annotated[Literal["train", "valid"], typer.Option(help="Which split.")] = "valid",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after about this many tokens.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows computed at once; by default what fits into memory.")
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens read at once, also more than in training; by default as in training."
        ),
    ] = None,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Measure loss, perplexity and bits per byte over a whole split; the same numbers every time."""
    from functools import partial

    from scratchlm import runtime
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.evaluate.likelihood import evaluate_split
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    run = load_run(folder, device=device, checkpoint=checkpoint, context_length=context_length)
    length = context_length or run.config.model.context_length
    where = next(run.model.parameters()).device
    precision = runtime.choose_precision(run.config.train.precision, where)
    runtime.set_threads()
    with _dataset(run, source, split) as dataset:
        found = evaluate_split(
            run.model,
            dataset,
            context_length=length,
            rows_per_batch=rows,
            device=where,
            autocast=partial(runtime.autocast, where, precision.name),
            max_tokens=max_tokens,
            documents=run.config.train.document_mask,
        )
    of_run = not source and split == "valid"
    floor = run.summary.get("floor_loss") if of_run else None
    floor_bits = run.summary.get("floor_bits_per_byte") if of_run else None
    name = " ".join(source) if source else split
    rows_of = f", {length:,} at once" if context_length else ""
    out().print(
        f"{folder} at step {run.step:,} on {name}: {found.num_tokens:,} tokens{rows_of}", style="bold"
    )
    shown = table("", "model", *(["floor", "above it"] if floor is not None else []))
    for label, value, least in (
        ("  loss, nats per token", found.loss, floor),
        ("  perplexity", found.perplexity, None if floor is None else math.exp(floor)),
        ("  bits per byte", found.bits_per_byte, floor_bits),
    ):
        more = (
            []
            if floor is None
            else [f"{least:.4f}", f"{value - least:.4f}"]
            if least is not None
            else ["", ""]
        )
        shown.add_row(label, f"{value:.4f}", *more)
    print_table(shown)


@contextmanager
def _dataset(
    run: "LoadedRun", source: list[str] | None, split: Literal["train", "valid"]
) -> "Iterator[TokenDataset]":
    """The run's own shards, or shards of another text in a folder that goes away."""
    from scratchlm.data.prepare import prepare
    from scratchlm.data.shards import TokenDataset

    if not source:
        yield TokenDataset.open(run.folder.shards(split), tokenizer_fingerprint=run.tokenizer.fingerprint)
        return
    with tempfile.TemporaryDirectory(prefix="scratchlm-evaluate-") as place:
        names, _ = split_settings(source)
        extra = {}
        if all(Path(name).exists() for name in names):  # files: all of their text is measured
            split, rest = "valid", Path(place) / "training-text.txt"
            rest.write_text("A corpus needs some training text; nobody reads this.", encoding="utf-8")
            extra = {"paths": (str(rest),), "valid_paths": tuple(names)}
        target = Path(place) / split
        prepare(open_corpus(source, **extra), run.tokenizer, target, split=split)
        yield TokenDataset.open(target, tokenizer_fingerprint=run.tokenizer.fingerprint)
