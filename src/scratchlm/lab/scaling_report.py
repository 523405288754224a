"""Fitted scaling laws come in; scaling.html, scaling.md and scaling.json come out.

scaling.html stands alone like a study's report: styles and drawings inside, no script, no address.
"""

from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.lab import markdown
from scratchlm.lab.figures import look
from scratchlm.lab.isoflop import Range
from scratchlm.lab.scaling import HeldOut, Scaling, ranged, write_statement
from scratchlm.lab.scaling_figures import (
    agreement_figure,
    growth_figure,
    held_words_of,
    isoflop_figure,
    short,
)
from scratchlm.runtime import write_text_atomically
from scratchlm.study import pages
from scratchlm.study.plots import VARIABLES

HTML, MARKDOWN, STATEMENT, FIGURES = "scaling.html", "scaling.md", "scaling.json", "figures"


class Grid(NamedTuple):
    """A table as text."""

    title: str
    head: list[str]
    rows: list[list[str]]


def write_scaling(scaling: Scaling, folder: Path, *, name: str, num_left_out: int = 0) -> Path:
    """Write page, Markdown and statement into `folder`; return the page's path."""
    from markupsafe import Markup

    draws = {"isoflop": lambda shape: isoflop_figure(scaling.isoflop, shape)}
    draws["growth"] = lambda shape: growth_figure(scaling.isoflop, shape)
    if scaling.chinchilla is not None:
        draws["agreement"] = lambda shape: agreement_figure(scaling, shape)
    wide = {key: draw("wide") for key, draw in draws.items()}
    values: dict[str, Any] = {
        "name": name,
        "sentences": scaling.conclusion,
        "figures": {key: [Markup(wide[key].svg), Markup(draw("narrow").svg)] for key, draw in draws.items()},
        "legend": [
            (VARIABLES[str(look(index)[0])], index >= 8, short(valley.group.budget))
            for index, valley in enumerate(scaling.isoflop.valleys)
        ],
        "grids": {grid.title: grid for grid in grids(scaling)},
        "held_words": held_words_of(scaling.held_out),
        "problem": scaling.problem,
        "num_left_out": num_left_out,
    }
    write_statement(scaling, folder / STATEMENT)
    for key, drawn in wide.items():
        drawn.write(folder / FIGURES, key)
    write_text_atomically(folder / MARKDOWN, _markdown(scaling, name, list(wide)))
    write_text_atomically(folder / HTML, pages.rendered("scaling.html.j2", values))
    return folder / HTML


def grids(scaling: Scaling) -> list[Grid]:
    """The tables of terminal, page and Markdown."""
    found = [
        Grid(
            "Budgets",
            ["FLOPs", "runs", "best parameters", "best tokens", "tokens per parameter", "lowest loss"],
            [
                [short(valley.group.budget), str(len(valley.group.runs)), *_best(valley)]
                for valley in scaling.isoflop.valleys
            ],
        )
    ]
    law = scaling.isoflop
    lines = [
        ["a: best parameters ~ C^a", ranged(law.parameters.exponent)],
        ["b: best tokens ~ C^b", ranged(law.tokens.exponent)],
    ]
    if scaling.chinchilla is not None:
        lines += [[name, ranged(value, ".4g")] for name, value in scaling.chinchilla.numbers.items()]
        lines.append(["beta / (alpha + beta)", ranged(scaling.chinchilla.size_exponent)])
    found.append(Grid("Numbers", ["number", "value and 95 % interval"], lines))
    if scaling.held_out is not None:
        found += _held_grids(scaling.held_out)
    if scaling.outlooks:
        head = ["FLOPs", "best parameters", "best tokens", "loss"]
        rows = [
            [
                short(one.flops),
                _sized(one.parameters),
                _sized(one.tokens),
                "-" if one.loss is None else ranged(one.loss),
            ]
            for one in scaling.outlooks
        ]
        found.append(Grid("Outlook", head, rows))
    return found


def _held_grids(held: HeldOut) -> list[Grid]:
    rows = [
        [
            short(check.run.parameters),
            short(check.run.tokens),
            ranged(check.stated),
            f"{check.run.loss:.3f}",
            "yes" if check.is_inside else "no",
        ]
        for check in held.checks
    ]
    found = [Grid("Predicted", ["parameters", "tokens", "stated loss", "measured", "inside"], rows)]
    if held.best:
        sizes = [
            [short(budget), _sized(stated), "no lowest point" if measured is None else _sized(measured)]
            for budget, stated, measured in held.best
        ]
        found.append(Grid("Predicted size", ["FLOPs", "stated best parameters", "measured"], sizes))
    return found


def _best(valley: Any) -> list[str]:
    if valley.parameters is None or valley.tokens is None or valley.loss is None:
        return [valley.problem, "-", "-", "-"]
    ratio = valley.tokens.value / valley.parameters.value
    return [_sized(valley.parameters), _sized(valley.tokens), f"{ratio:.3g}", f"{valley.loss:.3f}"]


def _sized(value: Range) -> str:
    if value.low is None or value.high is None:
        return short(value.value)
    return f"{short(value.value)} ({short(value.low)} to {short(value.high)})"


def _markdown(scaling: Scaling, name: str, figures: list[str]) -> str:
    parts = [f"# Scaling laws: {name}", "\n".join(f"* {sentence}" for sentence in scaling.conclusion)]
    parts += [f"![{key}]({FIGURES}/{key}.svg)" for key in figures]
    for grid in grids(scaling):
        words = range(len(grid.head))
        parts.append(f"## {grid.title}\n\n{markdown.table(grid.head, grid.rows, words=words)}")
    return "\n\n".join(parts) + "\n"
