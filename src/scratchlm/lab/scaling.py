"""Runs of several budgets come in; scaling laws, a prediction that was checked, and a conclusion come out.

    smaller budgets -> fit -> states the losses of the largest budget's runs -> compared with what they were
    all budgets     -> fit -> what the page shows, and what larger budgets need

A fit is kept in scaling.json with its date, so a statement about runs that do not exist yet can be checked
once they do.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from scratchlm.lab.chinchilla import Chinchilla, fit_chinchilla, from_json
from scratchlm.lab.isoflop import IsoFlop, Range, fit_isoflop
from scratchlm.lab.scaling_runs import SAME_BUDGET, Trained, groups_of
from scratchlm.runtime import write_text_atomically

ENOUGH_BUDGETS = 4
"""From as many on the largest is held out by itself: three or more remain for the lines."""


class Check(NamedTuple):
    """One run: what was stated before, and what it was."""

    run: Trained
    stated: Range

    @property
    def is_inside(self) -> bool:
        """Whether the measured loss lies in the stated interval."""
        low, high = self.stated.low, self.stated.high
        return low is not None and high is not None and low <= self.run.loss <= high


class HeldOut(NamedTuple):
    """Runs that were predicted without being seen."""

    source: str
    """What the statement was fitted to, in words."""
    budgets: list[float]
    checks: list[Check]
    best: list[tuple[float, Range, Range | None]]
    """Budget, its best size as stated, and as its own runs have it (None where they have no bottom)."""

    @property
    def num_inside(self) -> int:
        """How many runs came out as stated."""
        return sum(check.is_inside for check in self.checks)


class Outlook(NamedTuple):
    """What a budget needs, and what it is said to reach."""

    flops: float
    parameters: Range
    tokens: Range
    loss: Range | None


class Scaling(NamedTuple):
    """Everything that page and terminal say."""

    isoflop: IsoFlop
    chinchilla: Chinchilla | None
    problem: str
    """Why there is no L(N, D)."""
    held_out: HeldOut | None
    outlooks: list[Outlook]
    conclusion: list[str]


def fit_scaling(
    runs: Sequence[Trained], *, at: Sequence[float] = (), hold_out: int | None = None, seed: int = 0
) -> Scaling:
    """Fit both laws, with a checked prediction where there are budgets enough.

    Args:
        runs: That came to their end.
        at: Budgets to look ahead to, in FLOPs.
        hold_out: How many of the largest budgets are predicted from the others first; by default one, if
            three others remain.
        seed: Of the bootstraps.

    Raises:
        ValueError: The runs are too few, or too alike.
    """
    groups = groups_of(runs)
    isoflop = fit_isoflop(groups, seed=seed)
    chinchilla, problem = _try_chinchilla(runs, seed)
    if hold_out is None:
        hold_out = int(len(groups) >= ENOUGH_BUDGETS)
    if not 0 <= hold_out <= len(groups) - 2:
        raise ValueError(
            f"hold_out={hold_out}: with {len(groups)} budgets choose 0 to {len(groups) - 2}; two must remain."
        )
    held = None
    if hold_out and chinchilla is not None:
        seen = [run for group in groups[:-hold_out] for run in group.runs]
        stated = fit_chinchilla(seen, seed=seed)
        law = fit_isoflop(groups[:-hold_out], seed=seed)
        words = f"the {len(groups) - hold_out} smaller budgets"
        held = _checked(stated, law, isoflop, groups[-hold_out:], words)
    outlooks = [_outlook(isoflop, chinchilla, flops) for flops in at]
    conclusion = _conclusion(isoflop, chinchilla, held)
    return Scaling(isoflop, chinchilla, problem, held, outlooks, conclusion)


def check_statement(isoflop: IsoFlop, runs: Sequence[Trained], path: Path) -> HeldOut:
    """Compare what an earlier scaling.json states with the runs that are larger than those it was fitted to.

    Raises:
        ValueError: The file is none, or no run is larger.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        stated, largest, date = from_json(read["chinchilla"]), float(read["largest_budget"]), read["date"]
        sizes = {float(flops): Range(*map(float, numbers)) for flops, numbers in read["best_sizes"].items()}
    except OSError:
        raise ValueError(f"{path}: no such file; give the scaling.json of an earlier fit.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no scaling.json with a fit of L(N, D) ({error}).") from None
    larger = [group for group in groups_of(runs) if group.budget > SAME_BUDGET * largest]
    if not larger:
        raise ValueError(f"{path}: it was fitted up to {largest:.3g} FLOPs; no run here is larger.")
    checks = [Check(run, stated.predict(run.parameters, run.tokens)) for g in larger for run in g.runs]
    best = [
        (group.budget, size, _measured(isoflop, group.budget))
        for group in larger
        for flops, size in sizes.items()
        if max(flops / group.budget, group.budget / flops) < SAME_BUDGET
    ]
    return HeldOut(f"what was written on {date}", [group.budget for group in larger], checks, best)


def write_statement(scaling: Scaling, path: Path) -> None:
    """Keep the fit with its date."""
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    law = scaling.isoflop
    read = {
        "date": moment,
        "largest_budget": max(valley.group.budget for valley in law.valleys),
        "conclusion": scaling.conclusion,
        "parameters": {"coefficient": law.parameters.coefficient, "exponent": law.parameters.exponent},
        "tokens": {"coefficient": law.tokens.coefficient, "exponent": law.tokens.exponent},
        "chinchilla": None if scaling.chinchilla is None else scaling.chinchilla.to_json(),
        "best_sizes": {
            repr(one.flops): one.parameters for one in scaling.outlooks if one.parameters.low is not None
        },
    }
    write_text_atomically(path, json.dumps(read) + "\n")


def _try_chinchilla(runs: Sequence[Trained], seed: int) -> tuple[Chinchilla | None, str]:
    try:
        return fit_chinchilla(runs, seed=seed), ""
    except ValueError as error:  # the parabolas stand without it
        return None, str(error)


def _checked(stated: Chinchilla, law: IsoFlop, measured: IsoFlop, groups: Sequence, source: str) -> HeldOut:
    checks = [Check(run, stated.predict(run.parameters, run.tokens)) for g in groups for run in g.runs]
    best = [(g.budget, law.parameters.at(g.budget), _measured(measured, g.budget)) for g in groups]
    return HeldOut(source, [group.budget for group in groups], checks, best)


def _measured(isoflop: IsoFlop, budget: float) -> Range | None:
    return next(valley.parameters for valley in isoflop.valleys if valley.group.budget == budget)


def _outlook(isoflop: IsoFlop, chinchilla: Chinchilla | None, flops: float) -> Outlook:
    parameters, tokens = isoflop.parameters.at(flops), isoflop.tokens.at(flops)
    loss = None if chinchilla is None else chinchilla.predict(parameters.value, tokens.value)
    return Outlook(flops, parameters, tokens, loss)


def ranged(value: Range, form: str = ".3f") -> str:
    """A number with its interval.

    Example: Range(0.5, 0.48, 0.53) -> "0.500 (0.480 to 0.530)".
    """
    if value.low is None or value.high is None:
        return f"{value.value:{form}}"
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"


def _conclusion(isoflop: IsoFlop, chinchilla: Chinchilla | None, held: HeldOut | None) -> list[str]:
    """Sentences for people who read nothing else."""
    size, length = isoflop.parameters.exponent, isoflop.tokens.exponent
    said = [
        f"The best number of parameters grows with compute to the power {ranged(size)}, the best number of "
        f"tokens to the power {ranged(length)}."
    ]
    if chinchilla is not None:
        other, floor = chinchilla.size_exponent, chinchilla.floor
        known = f", whose entropy is {floor:.3f}" if floor > 0 else ""
        said.append(
            f"The fit of L(N, D) to all runs says {ranged(other)} for the parameters, and that no model of "
            f"this kind gets below a loss of {ranged(chinchilla.numbers['E'])} on this text{known}."
        )
    if held is not None:
        said.append(held_words(held))
    lacking = [valley for valley in isoflop.valleys if valley.parameters is None]
    if lacking:
        names = "; ".join(f"{valley.group.budget:.3g} FLOPs: {valley.problem}" for valley in lacking)
        said.append(f"Without a lowest point, so in no line: {names}.")
    return said


def held_words(held: HeldOut) -> str:
    """How a prediction came out."""
    worst = max(held.checks, key=lambda check: abs(check.stated.value - check.run.loss))
    off = worst.stated.value - worst.run.loss
    side = "high" if off > 0 else "low"
    far = f"{abs(off):.3f} too {side}" if abs(off) >= 5e-4 else "right to three places"
    budgets = ", ".join(f"{budget:.3g}" for budget in held.budgets)
    return (
        f"Stated from {held.source} and then checked at {budgets} FLOPs: {held.num_inside} of "
        f"{len(held.checks)} losses lie in their 95 % interval; the farthest was "
        f"stated {far}."
    )
