"""`scratchlm sft`, `dpo`, `grpo` and `distill`: from a base model to an assistant, watched live."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.run import (
    AllowChanges,
    Folder,
    Request,
    Restartable,
    Resume,
    Settings,
)
from scratchlm.cli.run_folders import choose, state_of
from scratchlm.cli.sources import Plugin, load_plugins

if TYPE_CHECKING:
    from scratchlm.posttrain.config import PosttrainConfig


def _recipe_names(incomplete: str) -> list[str]:
    """Complete the names of the shipped recipes in the shell, without importing them."""
    folder = Path(__file__).parents[1] / "recipes" / "posttrain"
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem.startswith(incomplete))


Recipe = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe, a .toml or .json file, or a run folder.", autocompletion=_recipe_names
    ),
]


def _command(name: str, about: str) -> Callable[..., None]:
    """A command that trains by the stage of this name; all have the same options."""

    def teach(
        recipe: Recipe,
        settings: Settings = None,
        folder: Folder = None,
        resume: Resume = False,
        allow_changes: AllowChanges = False,
        restartable: Restartable = False,
        plugin: Plugin = None,
    ) -> None:
        options = (folder, resume, allow_changes, None, restartable, plugin or ())
        _post_train(Request(name, [recipe], settings, *options))

    teach.__name__, teach.__doc__ = name, about
    return teach


sft = _command(
    "sft",
    """Teach a base model by conversations: supervised fine-tuning of all weights or of an adapter.

    base=RUN says which run to go on from.
    """,
)
dpo = _command(
    "dpo",
    """Teach a model to prefer the better one of two answers: DPO, IPO, KTO's loss, SimPO.

    base=RUN says which run to go on from; it is also the reference.
    """,
)
grpo = _command(
    "grpo",
    """Teach a model by rewards that a program can check: GRPO and its relatives.

    base=RUN says which run to go on from.
    """,
)
distill = _command(
    "distill",
    """Teach a small model to answer as a larger one does: by its probabilities, or by answers that it writes.

    base=RUN says which run to go on from, teacher=RUN which one to learn from.
    """,
)


def merge(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN[=WEIGHT]...", help="Runs with adapters on one base.")
    ],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="The new run folder.")] = Path("merged"),
) -> None:
    """Add the adapters of one or several runs to their base, each by its weight (1 by default)."""
    from scratchlm.cli.console import out
    from scratchlm.posttrain.merge import merge_runs

    weights: dict[Path, float] = {}
    for word in runs:
        place, _, weight = word.partition("=")
        try:
            weights[Path(place)] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{word}: the weight behind = is a number, such as 0.5.") from None
    made = merge_runs(weights, folder)
    out().print(f"{made}: {len(weights)} adapters on one base; try scratchlm chat {shlex.quote(str(made))}")


def _post_train(request: Request) -> None:
    """Do the whole run, report it, and say what to try next."""
    from scratchlm.cli.console import out
    from scratchlm.config import choices_first
    from scratchlm.posttrain import run as posttrain
    from scratchlm.posttrain.config import ONE_PROCESS
    from scratchlm.study.report import write_report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun's
        raise ValueError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: {ONE_PROCESS}")
    load_plugins(list(request.plugins))
    recipe, words = request.words[0], choices_first(request.settings or ())
    config = posttrain.read(request.name, recipe, words)
    own = request.resume and Path(recipe).is_dir()
    base = request.folder or (Path(recipe) if own else Path("runs") / config.name)
    folder, state = choose(
        base,
        resume=request.resume,
        restartable=request.restartable,
        command=request.command(request.folder),
        steps_of=lambda finished: posttrain.read(request.name, str(finished), words).train.steps,
    )
    if state == "interrupted":
        config = posttrain.read(request.name, str(folder), words)
    if state != "finished":
        _follow(config, folder, request._replace(resume=state == "interrupted"))
    console, place = out(), shlex.quote(str(folder))
    console.print(f"\nThe report: {write_report(folder)}", style="bold")
    console.print("What to try next:")
    for command in (f"scratchlm chat {place}", f"scratchlm evaluate {place}"):
        console.print(f"  {command}", style="cyan")


def _follow(config: "PosttrainConfig", folder: Path, request: Request) -> None:
    """Run and draw; then add the row to results.md.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is there.
    """
    from scratchlm.cli.console import err
    from scratchlm.cli.errors import Interrupted, naming
    from scratchlm.cli.live import watch
    from scratchlm.cli.run import remove_untrained
    from scratchlm.posttrain import run as posttrain
    from scratchlm.study.results import append_result, result_of

    fresh, lonely = not request.resume and state_of(folder) == "free", not folder.parent.exists()
    try:
        with naming(folder), watch(f"{config.name} -> {folder}") as on_event:
            summary = posttrain.run(
                request.name,
                config,
                folder,
                resume=request.resume,
                allow_changes=request.allow_changes,
                on_event=on_event,
            )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; go on with: {request.again(folder)}") from None
    except ValueError:
        if fresh and not (folder / "checkpoints").exists():
            remove_untrained(folder, lonely=lonely)
        elif any((folder / "checkpoints").glob("step-*")):
            err().print(f"What was learnt is kept; go on with: {request.again(folder)}")
        raise
    if summary.get("stopped_early"):
        text = f"stopped after step {summary['steps']:,}; go on with: {request.again(folder)}"
        raise Interrupted(text, by=summary["stopped_by"] or "SIGTERM")
    append_result(folder.parent / "results.md", result_of(folder))
