"""`scratchlm study`: answer a question with runs, list and show studies, write their report."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli import study_list, study_scaling
from scratchlm.cli.sources import Plugin, load_plugins

if TYPE_CHECKING:
    from scratchlm.lab.analysis import Analysis
    from scratchlm.lab.runner import Outcome
    from scratchlm.lab.spec import Study

app = typer.Typer(no_args_is_help=True, help="Answer a question with many runs: sweeps, ablations, laws.")
app.command(name="list")(study_list.list_studies)
app.command()(study_scaling.fit)


class Size(StrEnum):
    """In which size a study is run."""

    cpu = "cpu"
    gpu = "gpu"


def _study_names(incomplete: str) -> list[str]:
    """Complete the names of the shipped studies in the shell."""
    folder = Path(__file__).parents[1] / "recipes" / "studies"
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem.startswith(incomplete))


Name = Annotated[
    str, typer.Argument(metavar="STUDY", help="A shipped study or a .toml file.", autocompletion=_study_names)
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings of every run, or of the study: seeds=[1,2]."),
]
Scale = Annotated[Size, typer.Option("--scale", help="cpu: minutes on two cores; gpu: full size.")]


@app.command()
def run(
    study: Name,
    settings: Settings = None,
    scale: Scale = Size.cpu,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Runs at once.", show_default=False)
    ] = None,
    folder: Annotated[Path | None, typer.Option("--folder", "-o", help="Where.", show_default=False)] = None,
    plugin: Plugin = None,
) -> None:
    """Run what is missing of a study; the same command goes on after an interruption."""
    from scratchlm.cli.console import out
    from scratchlm.cli.errors import Interrupted, naming
    from scratchlm.cli.study_live import watch_study
    from scratchlm.lab.report import write_reports
    from scratchlm.lab.runner import run_study
    from scratchlm.lab.spec import read_study

    load_plugins(plugin)
    read = read_study(study, scale.value, settings or ())
    place = folder or default_folder(read.name, scale)
    with naming(place), watch_study(f"{read.name} ({scale.value}) -> {place}") as watch:
        outcome = run_study(read, place, scale.value, jobs=jobs, plugins=plugin or (), watch=watch)
    if outcome.stopped_by is not None:
        words = ["scratchlm", "study", "run", study, *(settings or ()), "--scale", scale.value]
        words += ["--folder", str(folder)] if folder else []
        words += ["--jobs", str(jobs)] if jobs else []
        words += [word for path in plugin or () for word in ("--plugin", str(path))]
        text = f"stopped, {outcome.num_left} runs are left; go on with: {shlex.join(words)}"
        raise Interrupted(text, by=outcome.stopped_by)
    analysis, page = write_reports(place)
    _print_analysis(read, analysis)
    _print_errors(outcome)
    out().print()
    out().print(f"The report: {page}", style="bold")
    if any(result.state == "failed" for result in outcome.results):
        raise typer.Exit(2)


@app.command()
def show(study: Name, settings: Settings = None, scale: Scale = Size.cpu, plugin: Plugin = None) -> None:
    """Show which runs a study would make, their tokens, and how long they would take here."""
    from scratchlm.cli.console import count, duration, out, print_table, table
    from scratchlm.lab.batch_sizes import batch_sizes
    from scratchlm.lab.runner import default_jobs
    from scratchlm.lab.shipped import cells_with_needs
    from scratchlm.lab.spec import read_study

    load_plugins(plugin)
    read = read_study(study, scale.value, settings or ())
    made = table(
        "cell", "settings", "steps", "tokens", "FLOPs", "time", numbers=("steps", "tokens", "FLOPs", "time")
    )
    found = cells_with_needs(read)
    for label, words, need in found:
        seconds = "-" if need.seconds is None else duration(need.seconds)
        tokens = count(need.tokens) if need.tokens else "-"
        made.add_row(label, " ".join(words), f"{need.steps:,}", tokens, f"{need.flops:.2g}", seconds)
    out().print(read.question, style="bold")
    print_table(made)
    if read.rows is not None:
        out().print(f"Batch sizes end there: {batch_sizes(read).end}")
    runs = len(found) * len(read.seeds)
    known = [need.seconds for _, _, need in found if need.seconds is not None]
    if not known:
        out().print(f"{runs} runs; how long they take is known when the first has ended.")
        return
    total = sum(known) * len(read.seeds)
    seeds = f"seed {read.seeds[0]}" if len(read.seeds) == 1 else f"seeds {', '.join(map(str, read.seeds))}"
    out().print(
        f"{runs} runs ({seeds}): about {duration(total)} of training one after the other, by formula; "
        f"{default_jobs()} at once here. Validation, samples and start-up come on top."
    )


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Write report.html and report.md of a study, finished or going on."""
    from scratchlm.cli.console import out
    from scratchlm.lab.report import write_reports
    from scratchlm.lab.runner import open_study

    analysis, page = write_reports(folder)
    _print_analysis(open_study(folder)[0], analysis)
    out().print()
    out().print(f"The report: {page}", style="bold")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a study that has been run.")],
    experiment: Annotated[
        Path, typer.Argument(help="Folder in a repository, such as experiments/2026-11-learning-rate.")
    ],
) -> None:
    """Make an experiment for a repository: README.md, rows.csv, small pictures, no machine paths."""
    from scratchlm.cli.console import out
    from scratchlm.cli.errors import naming
    from scratchlm.lab.export import export_study

    with naming(experiment):
        made = export_study(folder, experiment)
    names = ", ".join(path.name for path in made.figures)
    out().print(f"{made.readme.parent}: {made.readme.name}, rows.csv ({made.num_rows} runs), {names}")
    if made.decision_kept:
        out().print("Your decision was kept.")
    else:
        out().print(f'What follows from it is yours to say: "## Decision" in {made.readme}')


def default_folder(name: str, scale: Size) -> Path:
    """Where a study goes when nobody says."""
    return Path("runs") / "studies" / f"{name}-{scale.value}"


def _print_analysis(study: "Study", analysis: "Analysis") -> None:
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.lab.analysis import figure

    made = table("cell", analysis.unit, "spread", "against the base", numbers=(analysis.unit, "spread"))
    for line in analysis.lines:
        known = line.metric
        mean = "-" if known is None else figure(known.mean)
        deviation = "-" if known is None or known.deviation is None else f"{known.deviation:.4f}"
        made.add_row(line.label, mean, deviation, line.words)
    out().print()
    out().print(study.question, style="bold")
    print_table(made)
    out().print(analysis.conclusion)


def _print_errors(outcome: "Outcome") -> None:
    from scratchlm.cli.errors import show as show_error

    for result in outcome.results:
        if result.state == "failed":
            show_error(f"{result.label}, seed {result.seed}: {result.error}")
