"""Shipped studies come in, what a list says of each comes out; and what a study's cells will need."""

from typing import NamedTuple

from scratchlm.config import load
from scratchlm.lab.analysis import analyse
from scratchlm.lab.cells import experiment_of, resolve
from scratchlm.lab.experiments import Estimate
from scratchlm.lab.rows import read_rows
from scratchlm.lab.search import points
from scratchlm.lab.spec import RESULTS, ScaleName, Study, find, names, read_study


class Shipped(NamedTuple):
    """One study in the list."""

    name: str
    question: str
    cells: str
    """How many, in words."""
    conclusions: dict[str, str]
    """Size -> what was measured, from the rows that ship with the package."""


def shipped() -> list[Shipped]:
    """All studies of the package."""
    return [_describe(load(Study, find(name))) for name in names()]


def cells_with_needs(study: Study) -> list[tuple[str, tuple[str, ...], Estimate]]:
    """Label, settings and needs of each cell that is known before the first result; seeds are not repeated.

    Raises:
        ValueError: A cell's settings are wrong.
    """
    found = points(study, {})
    one_seed = study.model_copy(update={"seeds": study.seeds[:1]})
    cells = resolve(one_seed, found)
    experiment = experiment_of(study)
    return [
        (point.label, point.settings, experiment.estimate(cell.config, timed=True))
        for point, cell in zip(found, cells, strict=True)
    ]


def _describe(study: Study) -> Shipped:
    sizes: list[ScaleName] = [name for name, scale in study.scales if scale is not None] or ["cpu"]
    words, conclusions = [], {}
    for size in sizes:
        scaled = read_study(study.name, size)
        many = len(points(scaled, {}))
        seeds = "1 seed" if len(scaled.seeds) == 1 else f"{len(scaled.seeds)} seeds"
        words.append(f"{size}: {many} cells, {seeds}")
        unit = experiment_of(scaled).unit if scaled.metric == "loss" else scaled.numbers
        path = RESULTS / f"{study.name}-{size}.csv"
        if path.is_file():
            conclusions[size] = analyse(scaled, read_rows(path), unit).conclusion
    return Shipped(study.name, study.question, "; ".join(words), conclusions)
