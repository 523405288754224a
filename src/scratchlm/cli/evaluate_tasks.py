"""`scratchlm evaluate --tasks`: what a trained model knows, by questions from files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scratchlm.evaluate.questions import Asked
    from scratchlm.evaluate.run_task import TaskResult
    from scratchlm.evaluate.tasks.task import Task
    from scratchlm.train.folder import LoadedRun


class TaskOptions(NamedTuple):
    """What is asked, and how."""

    tasks: Sequence[str]
    """Words "hellaswag,mmlu" and "gsm8k=FILE"."""
    data: Path | None
    limit: int | None
    shots: int | None
    seed: int
    chat: bool
    as_json: bool
    save: Path | None


def evaluate_tasks(run: "LoadedRun", options: TaskOptions) -> None:
    """Ask a model the questions of each task and print a table, or JSON.

    Raises:
        ValueError: There is no such task or file; said before the first question is asked.
    """
    from scratchlm import runtime
    from scratchlm.cli.progress import Bar
    from scratchlm.evaluate.run_task import run_task

    chosen = list(_asked(options))
    runtime.set_threads()
    results = []
    for task, asked in chosen:
        with Bar(task.name) as bar:
            found = run_task(
                run.model,
                run.tokenizer,
                task,
                asked,
                device=run.device,
                autocast=run.autocast,
                chat=options.chat,
                progress=bar.update,
            )
        results.append(found)
    if options.save is not None:
        runtime.write_text_atomically(options.save, _json(run, options, results, answers=True))
    if options.as_json:
        print(_json(run, options, results, answers=False), end="")
    else:
        _print(run, results)


def _asked(options: TaskOptions) -> "Iterator[tuple[Task, Asked]]":
    from scratchlm.evaluate.questions import ask, find_files
    from scratchlm.evaluate.tasks import TASKS

    words = [word.strip() for several in options.tasks for word in several.split(",") if word.strip()]
    if not words:
        raise ValueError(f"--tasks: names none; there are {', '.join(TASKS.names())}.")
    for word in words:
        name, _, file = word.partition("=")
        task = TASKS.build(name)
        if options.chat and not task.is_asked:
            raise ValueError(f"{name}: compares texts and asks nothing; it cannot be put into a chat.")
        place = Path(file) if file else options.data
        if place is None:
            raise ValueError(f"{name}: where is its file? --data FOLDER, or --tasks {name}=FILE.")
        if file and not place.is_file():
            raise ValueError(f"{place}: no such file (task {name}).")
        files = find_files(name, place)
        yield task, ask(task, files, limit=options.limit, shots=options.shots, seed=options.seed)


def _json(run: "LoadedRun", options: TaskOptions, results: "Sequence[TaskResult]", *, answers: bool) -> str:
    found: dict[str, Any] = {
        "run": str(run.folder.path),
        "step": run.step,
        "context_length": run.model.config.context_length,
        "seed": options.seed,
        "chat": options.chat,
        "results": [result.as_json(answers=answers) for result in results],
    }
    return json.dumps(found, indent=1) + "\n"


def _print(run: "LoadedRun", results: "Sequence[TaskResult]") -> None:
    from scratchlm.cli.console import duration, err, out, print_table, table

    seconds = duration(sum(result.seconds for result in results))
    out().print(f"{run.folder.path} at step {run.step:,}, {seconds}", style="bold")
    numbers = ("value", "low", "high", "chance", "questions", "shots")
    shown = table("  task", "metric", *numbers, numbers=numbers)
    for result in results:
        name, shots = f"  {result.task}", str(result.shots)
        asked = f"{result.num_questions:,}"
        if result.num_questions < result.num_all:
            asked += f" of {result.num_all:,}"
        for metric, estimate in result.metrics.items():
            is_share = metric != "perplexity"
            values = [f"{100 * value:.1f} %" if is_share else f"{value:.4g}" for value in estimate]
            chance = f"{100 * result.chance:.1f} %" if is_share and result.chance is not None else ""
            shown.add_row(name, metric, *values, chance, asked, shots)
            name = asked = shots = ""
    print_table(shown, spare=("shots", "questions", "chance"))
    out().print("  low to high: the true value, with 95 % confidence", style="dim")
    for result in results:
        if result.num_cut:
            length = run.model.config.context_length
            err().print(
                f"warning: {result.task}: {result.num_cut:,} of {result.num_questions:,} questions do "
                f"not fit into the {length:,} tokens that the model sees, with room for an answer; their "
                "beginning was cut off."
            )
