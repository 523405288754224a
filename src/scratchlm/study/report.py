"""A run folder comes in, `report.html` comes out: one page, alone, that tells a newcomer how the run went.

    run folder -> run_record (its files) -> chapters (values for people), plots (SVG) -> templates/ -> page

The page holds its styles and drawings, needs no network, and follows the reader's light or dark mode. It has
a script only with the chapters about the inside of the model (study/visualize): for the attention maps. Texts
of the model and of the configuration are untrusted: jinja2 escapes everything but our own drawings. A file
that is missing costs its chapter and not the page.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm.runtime import write_text_atomically
from scratchlm.study import chapters, pages, plots, units
from scratchlm.study.posttrain_chapter import PosttrainChapter, posttrain_chapter, posttrain_commands
from scratchlm.study.reference_chapter import ReferenceChapter, reference_chapter
from scratchlm.study.run_record import Row, RunRecord, column, number, read_run, section
from scratchlm.study.run_sheet import data_seen
from scratchlm.study.sample_chapter import LEVELS, sample_views

if TYPE_CHECKING:
    from scratchlm.study.visualize.page import Chapters

FILE_NAME = "report.html"
INSIDE = Path("inside") / "inside.html"
"""Where `scratchlm visualize` writes its page in a run folder."""


def write_report(run_folder: Path, inside: "Chapters | None" = None) -> Path:
    """Write the report of the run in `run_folder` and return its path.

    Args:
        run_folder: A run's folder, finished, stopped or still going; see train/folder.py for its files.
        inside: Chapters about the inside of the model; without them, a page of them beside is linked to.

    Raises:
        ValueError: The folder is no run folder.
    """
    record = read_run(run_folder)
    path = run_folder / FILE_NAME
    write_text_atomically(path, render_report(record, inside))
    return path


def render_report(record: RunRecord, inside: "Chapters | None" = None) -> str:
    """The report's HTML."""
    beside = INSIDE.as_posix() if (record.folder / INSIDE).is_file() else ""
    values = {**_values(record), "inside": inside, "beside": beside}
    return pages.rendered("report.html.j2", values, powers=_powers)


def _powers(text: str) -> Any:
    """A sentence in which e^-1.31 is written as a power."""
    from markupsafe import Markup, escape

    return Markup(
        re.sub(r"e\^(\S?[\d.]*\d)", "e<sup>\\1</sup>", str(escape(text)).replace("e^-", "e^\N{MINUS SIGN}"))
    )


def _values(record: RunRecord) -> dict[str, Any]:
    """Everything the template names."""
    facts = chapters.tokenizer_facts(record)
    floor = number(record.summary, "floor_loss")
    reference, posttrain = reference_chapter(record), posttrain_chapter(record)
    learning = posttrain.learning if posttrain else chapters.learning_of(record)
    return {
        "record": record,
        "lead": _lead(record, posttrain),
        "headlines": _headlines(record, posttrain),
        "progress": chapters.progress_of(record),
        "floor": floor,
        "perplexity": None if posttrain else number(record.summary, "perplexity"),
        "learning": learning,
        "data_seen": [] if posttrain else data_seen(record),
        "learning_plots": _learning_plots(record, floor, learning),
        "step_plots": _step_plots(record),
        "posttrain": posttrain,
        "posttrain_plots": [plot for row in posttrain.panels for plot in _panels(row)] if posttrain else [],
        "reference": reference,
        "reference_plots": _reference_plots(reference),
        "num_diverged": _num_not_finite(record.train) + _num_not_finite(record.valid),
        "levels": [name for _, name in LEVELS],
        "samples": sample_views(record),
        "tokenizer": section(record.summary, "tokenizer"),
        "facts": facts,
        "length_plots": _both(lambda shape: plots.length_bars(facts.lengths, shape)) if facts.lengths else [],
        "components": chapters.model_components(record),
        "parameters": number(record.summary, "parameters"),
        "model": chapters.model_facts(record),
        "settings": chapters.settings_of(record.config),
        "environment": chapters.environment_facts(record),
        "commands": posttrain_commands(record.folder) if posttrain else chapters.next_commands(record),
    }


def _headlines(record: RunRecord, posttrain: PosttrainChapter | None) -> list[chapters.Headline]:
    """The header's figures: what post-training changed stands before what it cost."""
    found = chapters.headlines(record)
    if posttrain is None:
        return found
    speed, seconds = found[2:]
    tokens = number(record.summary, "tokens")
    read = "" if tokens is None else f"{units.count(tokens)} tokens went through the model in training."
    return [*posttrain.headlines, speed, seconds._replace(explanation=read)]


def _lead(record: RunRecord, posttrain: PosttrainChapter | None) -> str:
    """One sentence: what was trained on what."""
    parameters, tokens = number(record.summary, "parameters"), number(record.summary, "tokens")
    if posttrain is not None:
        return f"An assistant with {units.count(parameters)} parameters. {posttrain.lead}"
    corpus = record.summary.get("corpus") or section(record.config, "corpus").get("name")
    words = "A language model"
    if parameters is not None:
        words += f" with {units.count(parameters)} parameters"
    words += f", trained from scratch on {_corpus(str(corpus))}" if corpus else ", trained from scratch"
    if tokens is not None:
        words += f" ({units.count(tokens)} tokens)"
    return words + "."


def _corpus(name: str) -> str:
    known = {"stories": "the embedded stories", "files": "your own text files"}
    return known.get(name, name)


def _both(draw: Callable[[plots.Shape], str]) -> list[Any]:
    """One drawing in both shapes, marked as markup: its text is ours and numbers, nothing needs escaping."""
    from markupsafe import Markup

    return [Markup(draw("wide")), Markup(draw("narrow"))]


def _curve(rows: list[Row], key: str) -> plots.Curve:
    return plots.Curve(column(rows, "tokens"), column(rows, key))


def _learning_plots(record: RunRecord, floor: float | None, learning: chapters.Learning) -> list[Any]:
    train, valid = _curve(record.train, learning.in_training), _curve(record.valid, learning.in_validation)
    if not len(train.finite().tokens) and not len(valid.finite().tokens):
        return []
    return _both(lambda shape: plots.learning_curves(train, valid, floor, shape, learning.title))


def _step_plots(record: RunRecord) -> list[Any]:
    panels = [
        plots.Panel(title, _curve(record.train, key))
        for title, key in (
            ("learning rate", "lr"),
            ("gradient norm", "grad_norm"),
            ("tokens per second", "tokens_per_second"),
        )
    ]
    return _panels([panel for panel in panels if len(panel.curve.finite().tokens)])


def _panels(panels: list[plots.Panel]) -> list[Any]:
    return _both(lambda shape: plots.step_curves(panels, shape)) if panels else []


def _reference_plots(reference: ReferenceChapter | None) -> list[Any]:
    if reference is None or len(reference.points) < 2:
        return []
    tokens, differences, tolerances = zip(*reference.points, strict=True)
    return _both(lambda shape: plots.distance_from_expected(tokens, differences, tolerances, shape))


def _num_not_finite(rows: list[Row]) -> int:
    """Rows whose loss is recorded and no finite number: the run diverged there."""
    return sum(1 for row in rows if (loss := number(row, "loss")) is not None and not math.isfinite(loss))
