"""A finished study's folder comes in, an experiment for a repository comes out: README.md, rows.csv, figures.

    STUDY/report.md, scaling.md    ->  README.md    question, setup, result; the decision is the author's
    STUDY/rows.csv                 ->  rows.csv     without paths of this machine
    STUDY/figures/*.png            ->  *.png        small

The study's own reports are written anew first and then rearranged, so whatever a report says and draws is in
the experiment too. Exported again, all is replaced but what the author wrote from "## Decision" on.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from scratchlm.config import load
from scratchlm.lab.report import FIGURES, MARKDOWN, write_reports
from scratchlm.lab.rows import read_rows, write_rows
from scratchlm.lab.runner import open_study
from scratchlm.lab.scaling_report import MARKDOWN as SCALING
from scratchlm.lab.spec import Study, find, names
from scratchlm.runtime import replace_atomically, write_text_atomically

README, ROWS = "README.md", "rows.csv"
MARK = "<!-- Up to here written by scratchlm study export, from here on by you; exporting again keeps it. -->"
DECISION = "## Decision\nTo be written: what follows from this, and what was not asked."
PATH = re.compile(r"(?<![\w.:/~-])~?(?:/[^\s/\"',;:]+)+/([^\s/\"',;:]+)")
"""An absolute path of at least two parts; its last part alone may leave the machine."""


class Exported(NamedTuple):
    """What an experiment's folder holds now."""

    readme: Path
    figures: list[Path]
    num_rows: int
    decision_kept: bool
    """Whether the author had written a decision before."""


def export_study(folder: Path, experiment: Path) -> Exported:
    """Write the experiment of a study.

    Args:
        folder: Of a study that has been run.
        experiment: Where it goes, such as experiments/2026-11-learning-rate; made when missing.

    Raises:
        ValueError: The folder holds no study, or the experiment's README.md is somebody's own.
    """
    readme = experiment / README
    decision = _decision(readme)
    write_reports(folder)
    study, scale = open_study(folder)
    results = [
        row._replace(error=without_paths(row.error), overrides=without_paths(row.overrides))
        for row in read_rows(folder / ROWS)
    ]
    write_rows(experiment / ROWS, results)
    figures = []
    for picture in sorted((folder / FIGURES).glob("*.png")):
        with replace_atomically(experiment / picture.name) as temporary:
            shutil.copyfile(picture, temporary)
        figures.append(experiment / picture.name)
    texts = [folder / name for name in (MARKDOWN, SCALING) if (folder / name).is_file()]
    reports = [_sections(path.read_text(encoding="utf-8")) for path in texts]
    parts = [_written(study, scale, reports), MARK, decision or DECISION]
    write_text_atomically(readme, "\n\n".join(parts) + "\n")
    return Exported(readme, figures, len(results), decision is not None)


def without_paths(text: str) -> str:
    """Leave of each absolute path its last part.

    Example: "corpus.path": "/home/ada/books/moby.txt" -> "corpus.path": "moby.txt".
    """
    return PATH.sub(r"\1", text)


def command_of(study: Study, scale: str) -> str:
    """The command that runs a study like this one; empty where it is nobody's but the author's."""
    if study.name not in names():
        return ""
    shipped = load(Study, find(study.name)).scaled(scale)  # type: ignore[arg-type]
    words = [word for word in study.settings if word not in shipped.settings]
    if study.seeds != shipped.seeds:
        words.append(f"seeds=[{','.join(map(str, study.seeds))}]")
    if study.budget != shipped.budget and study.budget is not None:
        words += [f"budget.{name}={value:g}" for name, value in study.budget if value is not None]
    said = {"settings", "seeds", "budget", "recipe", "start", "scales"}
    changed = [
        name
        for name in Study.model_fields
        if name not in said and getattr(study, name) != getattr(shipped, name)
    ]
    if changed or _links(study) != _links(shipped):
        return ""
    return shlex.join(["scratchlm", "study", "run", study.name, *words, "--scale", scale])


def _links(study: Study) -> list[tuple[str, str, tuple[str, ...]]]:
    """What a study starts with, wherever its files lie."""
    return [(link.do, Path(link.recipe).name, link.settings) for link in study.start]


def _decision(readme: Path) -> str | None:
    """What the author wrote below the mark; None where there is nothing yet.

    Raises:
        ValueError: The file was not written here.
    """
    if not readme.exists():
        return None
    _, mark, rest = readme.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(
            f"{readme}: was not written by an export, and would be lost; choose another folder, or rename it."
        )
    return None if rest.strip() in ("", DECISION) else rest.strip()


def _sections(markdown: str) -> dict[str, str]:
    """The parts of a report by their titles; the first one's is "" and holds the report's own title."""
    found = {}
    for part in re.split(r"^## ", "## \n" + markdown, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        found[title.strip()] = body.strip()
    return found


def _written(study: Study, scale: str, reports: list[dict[str, str]]) -> str:
    """Everything above the mark."""
    first, *others = reports
    command = command_of(study, scale)
    how = f"\n\n```\n{without_paths(command)}\n```" if command else ""
    result = [first.pop("Conclusion"), first.pop("Result")]
    setup = first.pop("Setup").removeprefix(study.about).strip()
    first.pop("")
    result += [f"### {title}\n{body}" for title, body in first.items()]
    for report in others:
        head, _, body = report.pop("").partition("\n")
        result.append(f"###{head.removeprefix('#')}\n{body.strip()}")
        result += [f"#### {title}\n{body}" for title, body in report.items()]
    text = [
        f"# {study.question}",
        f"## Question\n{study.about or study.question}",
        f"## Setup\n{setup}{how}\n\nOne row for each run: `{ROWS}`.",
        "## Result\n" + "\n\n".join(result),
    ]
    linked = re.sub(rf"\]\({FIGURES}/([\w-]+)\.svg\)", r"](\1.png)", "\n\n".join(text))
    return without_paths(linked)
