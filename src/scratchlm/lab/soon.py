"""Learning curves come in; where all cells end alike, and how soon each reaches a number, go out.

    soon    the first place where the mean of the seeds is at or below the target, by a straight line between
            two validations: in steps, tokens, operations and seconds

Cells that cost the same in one thing may differ in all others: with equal operations a larger vocabulary
sees fewer tokens, with equal tokens larger steps take fewer seconds. Final numbers are compared where the
cells end alike; the other way round, a number is fixed and its price is compared.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchlm.lab import markdown
from scratchlm.lab.figures import OVER, Learning, Over
from scratchlm.study import units

SAME = 0.02
"""Ends that differ by less are the same: a budget pays for whole steps only, and few runs have under 50."""


class Soon(NamedTuple):
    """What a cell spends until it reaches the target."""

    label: str
    places: dict[Over, float] | None
    """None where it never does."""


def equal_over(curves: Sequence[Learning]) -> Over | None:
    """The thing of which all cells have spent the same at their ends, tokens before others; or None."""
    for over in ("tokens", "flops", "step"):
        ends = [float(curve.places[over][-1]) for curve in curves]  # type: ignore[index]
        if ends and min(ends) > 0 and max(ends) <= (1 + SAME) * min(ends):
            return over  # type: ignore[return-value]
    return None


def target_of(curves: Sequence[Learning], base: str, asked: float | None) -> float | None:
    """The number that shall be reached: what was asked for, or what the base has at its end."""
    ends = [float(curve.losses[:, -1].mean()) for curve in curves if curve.label == base]
    return asked if asked is not None else ends[0] if ends and np.isfinite(ends[0]) else None


def how_soon(curves: Sequence[Learning], target: float) -> list[Soon]:
    """What each cell spends until the mean of its seeds is at the target."""
    return [Soon(curve.label, _reached(curve, target)) for curve in curves]


def _reached(curve: Learning, target: float) -> dict[Over, float] | None:
    mean = curve.losses.mean(axis=0)
    below = np.flatnonzero(mean <= target)
    if not len(below):
        return None
    last = int(below[0])
    if last == 0:
        return {over: float(places[0]) for over, places in curve.places.items()}
    before, after = float(mean[last - 1]), float(mean[last])
    share = (before - target) / (before - after) if np.isfinite(before) else 1.0
    return {
        over: float(places[last - 1] + share * (places[last] - places[last - 1]))
        for over, places in curve.places.items()
    }


def soon_section(
    curves: Sequence[Learning], base: str, asked: float | None, unit: str
) -> dict[str, Any] | None:
    """What the page's template names; None for a single cell, or where no target is known."""
    target = target_of(curves, base, asked)
    if target is None or len(curves) < 2:
        return None
    used = [over for over in OVER if max(float(curve.places[over][-1]) for curve in curves) > 0]
    of_base = "" if asked is not None else f", what {base} has at its end"
    return {
        "words": f"{target:.3f} {unit}{of_base}",
        "headings": [OVER[over] for over in used],
        "rows": [
            (one.label, [_shown(over, one.places) for over in used]) for one in how_soon(curves, target)
        ],
    }


def soon_markdown(section: dict[str, Any] | None) -> str:
    """The same as Markdown; empty where there is none."""
    if section is None:
        return ""
    lines = [
        "## How soon",
        f"What each cell spends until it reaches {section['words']}.\n",
        markdown.table(
            ["cell", *section["headings"]], [[label, *numbers] for label, numbers in section["rows"]]
        ),
    ]
    return "\n".join(lines)


def _shown(over: Over, places: dict[Over, float] | None) -> str:
    if places is None:
        return "not reached"
    if over == "seconds":
        return units.duration(places[over])
    return f"{places[over]:.2g}".replace("e+", "e") if over == "flops" else units.count(round(places[over]))
