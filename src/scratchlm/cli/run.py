"""`scratchlm demo`, `run` and `train`: the whole way from text to a model, watched live."""

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from scratchlm.cli.run_folders import choose, state_of
from scratchlm.cli.sources import Plugin, load_plugins, split_settings

if TYPE_CHECKING:
    from scratchlm.distributed.process import Processes
    from scratchlm.train.config import RunConfig

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings over the recipe's, such as train.steps=200."),
]
Folder = Annotated[Path | None, typer.Option("--folder", "-o", help="Run folder.", show_default=False)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, or a finished one with more steps.")
]
AllowChanges = Annotated[
    bool,
    typer.Option("--allow-changes", help="Resume although settings of optimizer or schedule have changed."),
]
Restartable = Annotated[
    bool,
    typer.Option(
        "--restartable",
        help="Begin, or go on if interrupted, or do nothing if done: one command for a cluster.",
    ),
]


def _recipe_names(incomplete: str) -> list[str]:
    """Complete the names of the shipped recipes in the shell, without importing them."""
    folder = Path(__file__).parents[1] / "recipes"
    files = [path for path in folder.iterdir() if path.suffix in (".toml", ".json")]
    return sorted(path.stem for path in files if path.stem.startswith(incomplete))


CompareTo = Annotated[
    str | None,
    typer.Option(
        "--compare-to",
        metavar="CURVE",
        help="Say whether the loss is normal: a shipped curve, a file, or another run's folder.",
        show_default=False,
    ),
]


class Request(NamedTuple):
    """What was typed: the command with everything that a repetition with --resume needs."""

    name: str
    words: list[str]
    settings: list[str] | None
    folder: Path | None
    resume: bool = False
    allow_changes: bool = False
    compare_to: str | None = None
    restartable: bool = False
    plugins: Sequence[Path] = ()

    def repeated(self, folder: Path) -> list[str]:
        """The words of a command that begins this run in `folder`, goes on with it, or does nothing."""
        options = ["--folder", str(folder), "--restartable"]
        options += ["--allow-changes"] if self.allow_changes else []
        options += ["--compare-to", self.compare_to] if self.compare_to else []
        options += [word for path in self.plugins for word in ("--plugin", str(path))]
        return [self.name, *self.words, *(self.settings or []), *options]

    def again(self, folder: Path) -> str:
        """The command line that goes on with the run in `folder`, or begins it where nothing is there yet."""
        return f"{self.command(folder)} --resume" if state_of(folder) != "free" else self.command(folder)

    def command(self, folder: Path | None) -> str:
        """The command line for a run in `folder`."""
        where = ["--folder", str(folder)] if folder is not None and str(folder) != "demo" else []
        return shlex.join(["scratchlm", self.name, *self.words, *(self.settings or []), *where])


def demo(
    settings: Settings = None,
    folder: Folder = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    restartable: Restartable = False,
) -> None:
    """Make a small model in front of your eyes: the embedded stories, a few minutes on two CPU cores."""
    from scratchlm.config import choices_first
    from scratchlm.train import recipes

    settings = choices_first(settings or ())
    request = Request("demo", [], settings, folder, resume, allow_changes, restartable=restartable)
    chosen = _go(request, folder or Path("demo"), lambda: recipes.read("demo", settings))
    _print_end(
        chosen,
        [
            f'scratchlm generate {shlex.quote(str(chosen))} "Once upon a time"',
            "scratchlm run YOUR-OWN-TEXT.txt",
            "scratchlm train demo model.num_layers=4 train.steps=900",
        ],
    )


def run(
    text: Annotated[
        list[str],
        typer.Argument(metavar="TEXT... [key=value ...]", help="Your files and folders, then settings."),
    ],
    folder: Folder = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    restartable: Restartable = False,
    plugin: Plugin = None,
) -> None:
    """Train on your own files and folders; sizes follow the amount of text."""
    from scratchlm.config import choices_first
    from scratchlm.train import recipes

    load_plugins(plugin)
    names, _ = split_settings(text)
    settings = choices_first(word for word in text if word not in names)
    if not names:
        raise ValueError("no text named; give files or folders: scratchlm run book.txt notes/")
    config = recipes.for_text([Path(name) for name in names], settings)
    options = {"restartable": restartable, "plugins": plugin or ()}
    request = Request("run", names, settings, folder, resume, allow_changes, **options)
    _print_end(_go(request, folder or Path("runs") / config.name, lambda: config))


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A shipped recipe, a .toml or .json file, or a run folder.", autocompletion=_recipe_names
        ),
    ],
    settings: Settings = None,
    folder: Folder = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
    compare_to: CompareTo = None,
    restartable: Restartable = False,
    plugin: Plugin = None,
) -> None:
    """Train as a recipe says, with key=value settings over it.

    nproc=N starts N processes that share the work; torchrun -m scratchlm train does so on many machines.
    """
    from scratchlm.config import choices_first

    load_plugins(plugin)
    settings = choices_first(settings or ())
    config = read_recipe(recipe, settings)
    base = folder or (Path(recipe) if resume and Path(recipe).is_dir() else Path("runs") / config.name)
    request = Request(
        "train",
        [recipe],
        settings,
        folder,
        resume,
        allow_changes,
        compare_to,
        restartable,
        plugins=plugin or (),
    )
    _print_end(_go(request, base, lambda: config))


def _go(request: Request, base: Path, fresh: "Callable[[], RunConfig]") -> Path | None:
    """Train in `base` or one of its numbered relatives; return the folder, or None where nothing is told.

    Args:
        request: What was typed.
        base: The folder asked for.
        fresh: The settings of a new run.
    """
    from scratchlm.cli.processes import start, started_by_launcher
    from scratchlm.distributed.process import Processes

    if started_by_launcher():
        return _take_part(request, base, fresh)
    chosen, state = _choose(request, base)
    folder, request = Path(chosen), request._replace(resume=state == "interrupted")
    if state == "finished":
        return folder
    config = _saved(folder, request.settings) if request.resume else fresh()
    if config.nproc > 1:
        start(request.repeated(folder), config, folder, again=partial(request.again, folder))
        return None
    _follow(config, folder, request, Processes())
    return folder


def _take_part(request: Request, base: Path, fresh: "Callable[[], RunConfig]") -> Path | None:
    """Be one of several processes; only the first tells."""
    import warnings

    from scratchlm.cli.errors import Interrupted
    from scratchlm.cli.processes import end_launcher_later, follow_launcher, share, versions
    from scratchlm.distributed.process import Processes

    warnings.simplefilter("ignore", FutureWarning)  # torch's, about our calls: nothing that a user can change
    follow_launcher()
    processes = Processes.from_environment(timeout_seconds=fresh().wait_seconds)
    try:
        with processes.telling(quiet=Interrupted):
            processes.agree("version", versions())
            # looked for once: the first process makes it
            chosen, state = processes.from_first(_choose(request, base) if processes.first else None)
            folder, request = Path(chosen), request._replace(resume=state == "interrupted")
            if state != "finished":
                config = _saved(folder, request.settings) if request.resume else fresh()
                share(config, processes)
                _follow(config, folder, request, processes)
    finally:
        if processes.store_lost and processes.local_world_size < processes.world_size:
            end_launcher_later(processes.timeout_seconds)
        processes.close()
    return folder if processes.first else None


def _choose(request: Request, base: Path) -> tuple[str, str]:
    folder, state = choose(
        base,
        resume=request.resume,
        restartable=request.restartable,
        command=request.command(request.folder),
        steps_of=lambda finished: _saved(finished, request.settings).train.steps,
    )
    return str(folder), state


def read_recipe(recipe: str, settings: list[str] | None) -> "RunConfig":
    """The settings of a recipe by name, of a file, or of an earlier run's folder; a name wins.

    Raises:
        ValueError: There is no such recipe, or a setting is wrong.
    """
    from scratchlm.train import recipes

    folder = Path(recipe)
    if recipe not in recipes.names() and (folder / "config.json").is_file():
        return _saved(folder, settings)
    return recipes.read(recipe, settings or ())


def _saved(folder: Path, settings: list[str] | None) -> "RunConfig":
    from scratchlm.config import load
    from scratchlm.train.config import RunConfig

    return load(RunConfig, folder / "config.json", settings or ())


def _follow(config: "RunConfig", folder: Path, request: Request, processes: "Processes") -> None:
    """Run and draw; then add the row to results.md.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is there.
    """
    from scratchlm.cli.compare import comparing
    from scratchlm.cli.errors import Interrupted, naming
    from scratchlm.cli.live import watch
    from scratchlm.study.results import append_result, result_of
    from scratchlm.train.events import ignore
    from scratchlm.train.run import run as run_all

    resume = request.resume
    compare = comparing(request.compare_to, folder, config)
    fresh, lonely = not resume and state_of(folder) == "free", not folder.parent.exists()
    watching = watch(f"{config.name} -> {folder}") if processes.first else contextlib.nullcontext(ignore)
    try:
        with naming(folder), watching as on_event:
            summary = run_all(
                config,
                folder,
                resume=resume,
                allow_changes=request.allow_changes,
                on_event=compare(on_event),
                processes=processes,
            )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; go on with: {request.again(folder)}") from None
    except ValueError:
        if processes.first and fresh and not (folder / "checkpoints").exists():
            remove_untrained(folder, lonely=lonely)
        raise
    if summary.get("stopped_early"):
        processes.barrier()  # a launcher ends all when one has left; the summary shall be there by then
        text = f"stopped after step {summary['steps']:,}; go on with: {request.again(folder)}"
        raise Interrupted(text, by=summary["stopped_by"] or "SIGTERM")
    if processes.first:
        append_result(folder.parent / "results.md", result_of(folder))


def remove_untrained(folder: Path, *, lonely: bool) -> None:
    """Remove a run folder of ours in which nothing was trained, and its parent if we made that too."""
    shutil.rmtree(folder, ignore_errors=True)
    if lonely:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _print_end(folder: Path | None, commands: Iterable[str] = ()) -> None:
    """Write the report, say where it is and what to try next; None: another process does."""
    from scratchlm.cli.console import out

    if folder is None:
        return
    console, place = out(), shlex.quote(str(folder))
    report = _write_report(folder)
    console.print()
    console.print(f"The report: {report}", style="bold")
    console.print("What to try next:")
    for command in commands or (f"scratchlm generate {place}", f"scratchlm evaluate {place}"):
        console.print(f"  {command}", style="cyan")


def _write_report(folder: Path) -> Path:
    from scratchlm.study.report import write_report

    return write_report(folder)
