"""`scratchlm evaluate`: how well a trained model predicts a split, or a text of yours; what it knows."""

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

TASKS_PANEL = "Questions"
AGAINST_PANEL = "Answers against another model's"


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CORPUS|FILES... key=value ...]",
            help="Other text to measure on; the run's own by default.",
        ),
    ] = None,
    split: Annotated[Literal["train", "valid"] | None, typer.Option(help="Which split; else valid.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after about this many tokens.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows computed at once; by default what fits into memory.")
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens read at once, also more than in training; by default as in training. "
            "With --against, by each model.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE],...",
            help="Ask questions instead: hellaswag, mmlu, gsm8k ... (scratchlm help task).",
            rich_help_panel=TASKS_PANEL,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' files.", rich_help_panel=TASKS_PANEL)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many questions, drawn by --seed.", rich_help_panel=TASKS_PANEL),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Solved questions in front; else the usual.", rich_help_panel=TASKS_PANEL),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed asks the same questions; else 0.", rich_help_panel=TASKS_PANEL),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in a conversation.", rich_help_panel=TASKS_PANEL)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=TASKS_PANEL)] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write each single answer, too.", rich_help_panel=TASKS_PANEL),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Whose answers are better? `base`: what the run began with.",
            rich_help_panel=AGAINST_PANEL,
        ),
    ] = None,
    judge: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Judges by log-probability; else both do.", rich_help_panel=AGAINST_PANEL
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines or lines of text, all or --limit; else what the run's data held out.",
            rich_help_panel=AGAINST_PANEL,
        ),
    ] = None,
    against_checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Which of the other run: newest, best or a step; --checkpoint is of this one.",
            rich_help_panel=AGAINST_PANEL,
        ),
    ] = None,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Measure loss, perplexity and bits per byte over a whole split, or what a model knows (--tasks)."""
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    if tasks is not None and against is not None:
        raise ValueError("evaluate: --tasks and --against are two measurements; ask for one after the other.")
    given = {
        "texts": {"source": source, "split": split, "max-tokens": max_tokens, "rows": rows},
        "tasks": {"tasks": tasks, "data": data, "shots": shots, "chat": chat},
        "against": {
            "against": against,
            "judge": judge,
            "questions": questions,
            "against-checkpoint": against_checkpoint,
        },
        "tasks or against": {"limit": limit, "seed": seed, "json": as_json, "save": save},
    }
    purpose = "tasks" if tasks is not None else "texts" if against is None else "against"
    _check_options(purpose, given)
    run = load_run(folder, device=device, checkpoint=checkpoint, context_length=context_length)
    own = run.model.config.context_length
    if purpose != "texts" and (context_length or own) < own:
        raise ValueError(
            f"--context-length={context_length}: {folder} reads {own} tokens; give more, or none."
        )
    if against is not None:
        from scratchlm.cli.evaluate_against import AgainstOptions, evaluate_against

        about = (against, judge or (), questions, limit, seed or 0, against_checkpoint, context_length)
        evaluate_against(run, AgainstOptions(*about, device, as_json, save))
    elif tasks is not None:
        from scratchlm.cli.evaluate_tasks import TaskOptions, evaluate_tasks

        evaluate_tasks(run, TaskOptions(tasks, data, limit, shots, seed or 0, chat, as_json, save))
    else:
        _evaluate_text(
            run, source, split or "valid", max_tokens=max_tokens, rows=rows, context_length=context_length
        )


def _check_options(purpose: str, given: dict[str, dict[str, object]]) -> None:
    """Refuse options that would be ignored: those of other purposes than the one that was chosen."""
    needed = {
        "texts": "neither --tasks nor --against",
        "tasks": "--tasks NAME",
        "against": "--against RUN",
        "tasks or against": "--tasks NAME or --against RUN",
    }
    for owner, options in given.items():
        for name, value in options.items():
            if purpose not in owner and value not in (None, False, []):
                what = "a text" if name == "source" else f"--{name}"
                raise ValueError(f"evaluate: {what} goes together with {needed[owner]}.")


def _evaluate_text(
    run: "LoadedRun",
    source: list[str] | None,
    split: Literal["train", "valid"],
    *,
    max_tokens: int | None,
    rows: int | None,
    context_length: int | None,
) -> None:
    from scratchlm import runtime
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.evaluate.likelihood import evaluate_split

    length = context_length or run.config.model.context_length
    runtime.set_threads()
    with _dataset(run, source, split) as dataset:
        found = evaluate_split(
            run.model,
            dataset,
            context_length=length,
            rows_per_batch=rows,
            device=run.device,
            autocast=run.autocast,
            max_tokens=max_tokens,
            documents=run.config.train.document_mask,
        )
    of_run = not source and split == "valid"
    floor = run.summary.get("floor_loss") if of_run else None
    floor_bits = run.summary.get("floor_bits_per_byte") if of_run else None
    name = " ".join(source) if source else split
    rows_of = f", {length:,} at once" if context_length else ""
    out().print(
        f"{run.folder.path} at step {run.step:,} on {name}: {found.num_tokens:,} tokens{rows_of}",
        style="bold",
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
