"""A study's folder comes in, report.html and report.md come out: question, setup, curves, table, conclusion.

report.html stands alone: styles and drawings inside, no script, no address; it has the look of a run's report
and follows light and dark. report.md is the same for a repository, with its figures beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.lab import markdown
from scratchlm.lab.analysis import Analysis, analyse, figure
from scratchlm.lab.beyond_report import beyond_section, write_beyond
from scratchlm.lab.cells import StudyFolder, experiment_of
from scratchlm.lab.coordinates_report import coordinates_section, write_coordinates
from scratchlm.lab.figures import (
    OVER,
    Learning,
    Over,
    axis_figure,
    ends_figure,
    learning_figure,
    look,
    read_learning,
)
from scratchlm.lab.gains_report import gains_section, write_gains
from scratchlm.lab.rows import Result, read_rows
from scratchlm.lab.runner import open_study
from scratchlm.lab.samples import OPEN_CELLS, Written, read_samples, samples_markdown
from scratchlm.lab.search import shown
from scratchlm.lab.soon import equal_over, soon_markdown, soon_section
from scratchlm.lab.spec import Study
from scratchlm.lab.tuning_report import tuning_section, write_tuning
from scratchlm.runtime import write_text_atomically
from scratchlm.study import pages, units
from scratchlm.study.plots import VARIABLES

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


class TableRow(NamedTuple):
    """One label in the final table, as text."""

    label: str
    settings: str
    mean: str
    deviation: str
    seeds: str
    difference: str
    words: str
    kind: str
    """The verdict, for the style."""


class Tab(NamedTuple):
    """The learning curves over one thing."""

    name: str
    title: str
    drawings: list[Any]


def write_reports(folder: Path) -> tuple[Analysis, Path]:
    """Write both reports; return what they say and the page's path.

    Raises:
        ValueError: The folder holds no study, or no run of it has ended.
    """
    study, scale = open_study(folder)
    results = read_rows(StudyFolder(folder).rows)
    experiment = experiment_of(study)
    unit = experiment.unit if study.metric == "loss" else study.numbers
    analysis = analyse(study, results, unit)
    drawn = analysis.tuning.winners if analysis.tuning else [result.label for result in results]
    curves = read_learning(folder, [result for result in results if result.label in drawn], study.metric)
    values = _values(study, scale, results, analysis, curves, unit)
    values["tuning"] = tuning_section(analysis.tuning, unit)
    values["beyond"] = beyond_section(folder, results)
    values["coordinates"] = coordinates_section(results)
    values["gains"] = gains_section(analysis.gains, unit)
    values["samples"] = read_samples(folder, results, study.metric)
    values["fold_samples"] = len(values["samples"]) > OPEN_CELLS
    write_text_atomically(folder / HTML, pages.rendered("study.html.j2", values))
    _write_markdown(folder, study, scale, results, analysis, curves, unit)
    return analysis, folder / HTML


def _values(
    study: Study,
    scale: str,
    results: Sequence[Result],
    analysis: Analysis,
    curves: Sequence[Learning],
    unit: str,
) -> dict[str, Any]:
    """Everything the template names."""
    from markupsafe import Markup

    def both(draw: Any) -> list[Any]:
        return [Markup(draw("wide").svg), Markup(draw("narrow").svg)]

    floor = _floor(study, results)
    tabs = [
        Tab(over, words, both(lambda shape, over=over: learning_figure(curves, over, floor, unit, shape)))
        for over, words in OVER.items()
        if curves and max(float(curve.places[over][-1]) for curve in curves) > 0
    ]
    ended = any(line.metric is not None for line in analysis.lines)
    axis = analysis.axis
    finals = []
    if ended and axis is not None:
        finals = both(lambda shape: axis_figure(analysis, axis, results, study.metric, shape))
    elif ended and analysis.tuning is None:
        finals = both(lambda shape: ends_figure(analysis, results, study.metric, shape))
    return {
        "study": study,
        "scale": scale,
        "analysis": analysis,
        "sentences": [part for part in analysis.conclusion.replace(". ", ".\n").split("\n") if part],
        "floor": floor,
        "tabs": tabs,
        "equal": equal_over(curves),
        "soon": soon_section(curves, _rival(analysis, curves), study.target, unit),
        "legend": [
            (VARIABLES[str(look(index)[0])], index >= 8, curve.label, curve.diverged)
            for index, curve in enumerate(curves)
        ],
        "finals": finals,
        "table": table_rows(analysis, results),
        "setup": setup_of(study, scale, results),
        "failures": [result for result in results if result.error],
        "seeds": len(study.seeds),
        "has_texts": experiment_of(study).on_texts,
    }


def table_rows(analysis: Analysis, results: Sequence[Result]) -> list[TableRow]:
    """The final table."""
    import json

    found = []
    for line in analysis.lines:
        own = next(result for result in results if result.label == line.label)
        settings = ", ".join(f"{key}={shown(value)}" for key, value in json.loads(own.overrides).items())
        known, difference = line.metric, line.difference
        noise = ""
        if difference is not None:
            width = difference.half_width
            noise = f"{difference.mean:+.3f}" + ("" if width is None else f" \N{PLUS-MINUS SIGN} {width:.3f}")
        lost = f", {line.num_diverged} diverged" if line.num_diverged else ""
        lost += f", {line.num_failed} failed" if line.num_failed else ""
        found.append(
            TableRow(
                line.label,
                settings or "the study's own settings",
                "\N{EN DASH}" if known is None else figure(known.mean),
                "\N{EN DASH}" if known is None or known.deviation is None else f"{known.deviation:.4f}",
                f"{known.count if known else 0}{lost}",
                noise.replace("-", "\N{MINUS SIGN}"),
                line.words.replace("+-", "\N{PLUS-MINUS SIGN}"),
                line.verdict.replace(" ", "-"),
            )
        )
    return found


def setup_of(study: Study, scale: str, results: Sequence[Result]) -> list[tuple[str, str]]:
    """What was run, as pairs of words."""
    tokens = sorted({result.tokens for result in results if result.tokens})
    parameters = sorted({result.parameters for result in results if result.parameters})
    seconds = sum(result.seconds or 0.0 for result in results)
    pairs = [
        ("starts from", _start(study)),
        ("settings over it", "  ".join(study.settings) or "none"),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("size", scale),
        ("parameters", _range(parameters)),
        ("tokens in a run", _range(tokens)),
        ("training time, all runs", units.duration(seconds)),
        ("hardware", "; ".join(sorted({result.hardware for result in results if result.hardware}))),
        ("made with", "; ".join(sorted({f"{r.versions}, commit {r.commit}" for r in results if r.versions}))),
        ("date", " to ".join(sorted({min(r.date for r in results)[:10], max(r.date for r in results)[:10]}))),
    ]
    return [(name, value) for name, value in pairs if value]


def _write_markdown(
    folder: Path,
    study: Study,
    scale: str,
    results: Sequence[Result],
    analysis: Analysis,
    curves: Sequence[Learning],
    unit: str,
) -> None:
    figures, drawings = folder / FIGURES, []
    floor = _floor(study, results)
    if curves:
        usual: Over = "tokens" if max(float(curve.places["tokens"][-1]) for curve in curves) > 0 else "step"
        over = equal_over(curves) or usual
        drawn = learning_figure(curves, over, floor, unit, "wide")
        drawn.write(figures, "learning")
        drawings.append(f"![Validation loss over {OVER[over]}]({FIGURES}/learning.svg)")
        drawings.append(
            f"Lines: {', '.join(_named(index, curve.label) for index, curve in enumerate(curves))}."
        )
    if any(line.metric is not None for line in analysis.lines) and analysis.tuning is None:
        axis = analysis.axis
        drawn = (
            ends_figure(analysis, results, study.metric, "wide")
            if axis is None
            else axis_figure(analysis, axis, results, study.metric, "wide")
        )
        drawn.write(figures, "final")
        drawings.append(f"![Final numbers]({FIGURES}/final.svg)")
    sections = [
        write_tuning(analysis.tuning, analysis.unit, figures),
        write_gains(analysis.gains, unit, figures),
        write_beyond(folder, figures, results),
        write_coordinates(figures, results),
        soon_markdown(soon_section(curves, _rival(analysis, curves), study.target, unit)),
        samples_markdown(_told(read_samples(folder, results, study.metric), analysis), unit),
    ]
    setup = "\n".join(f"* {name}: {value}" for name, value in setup_of(study, scale, results))
    rows = [
        [row.label, row.mean, row.deviation, row.seeds, row.words] for row in table_rows(analysis, results)
    ]
    head = ["cell", analysis.unit, "spread", "runs", f"against {analysis.against}"]
    errors = [f"* {r.label}, seed {r.seed}: {' '.join(r.error.split())}" for r in results if r.error]
    parts = [
        f"# {study.question}",
        f"## Conclusion\n{analysis.conclusion}",
        f"## Setup\n{study.about}\n\n{setup}".replace("\n\n\n", "\n\n"),
        "## Result\n" + markdown.table(head, rows, words=(0, 4)),
        *drawings,
        *(section for section in sections if section),
        *(["## What did not come to its end\n" + "\n".join(errors)] if errors else []),
    ]
    write_text_atomically(folder / MARKDOWN, "\n\n".join(parts) + "\n")


def _told(samples: Sequence[Written], analysis: Analysis) -> list[Written]:
    """The texts for a reader of Markdown, where nothing folds: of tuned groups the best cells' alone."""
    winners = {group.winner for group in analysis.tuning.groups} if analysis.tuning is not None else None
    return [one for one in samples if winners is None or one.label in winners]


def _rival(analysis: Analysis, curves: Sequence[Learning]) -> str:
    """The cell whose end the others shall reach: the base, or if it has no curve the first that has one.

    Of a tuned study all are compared, so it is the highest of them: what all reach.
    """
    if analysis.tuning is not None:
        return max(analysis.tuning.groups, key=lambda group: group.metric.mean).winner
    labels = [curve.label for curve in curves]
    return analysis.base if analysis.base in labels or not labels else labels[0]


def _floor(study: Study, results: Sequence[Result]) -> float | None:
    """The least possible number, where all cells have the same."""
    floors = {floor for result in results if (floor := result.floor(study.metric)) is not None}
    return floors.pop() if len(floors) == 1 else None


def _start(study: Study) -> str:
    """A recipe's name, or the last two parts of its file's path."""
    path = Path(study.recipe)
    return f"{path.parent.name}/{path.name}" if path.suffix else study.recipe or study.experiment


def _named(index: int, label: str) -> str:
    colours = ("teal", "orange", "violet", "pink", "blue", "green", "brown", "grey")
    return f"{label} ({colours[index % 8]}{', dashed' if index >= 8 else ''})"


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    low, high = units.count(values[0]), units.count(values[-1])
    return low if low == high else f"{low} to {high}"
