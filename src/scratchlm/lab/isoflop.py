r"""Runs grouped by compute come in; the best size for each budget, and how it grows with compute, come out.

    L = c0 + c1 x + c2 x^2,  x = log N      a parabola through the runs of one budget (IsoFLOP)
    N_opt = exp(-c1 / (2 c2))               its bottom; D_opt from the runs' own tokens at that size
    N_opt = k C^a,  D_opt = m C^b           straight lines in logarithms, by least squares

Intervals are a bootstrap: each parabola gets residuals drawn from all of them (enlarged for the three numbers
that each parabola spent on fitting), the bottoms and lines are computed anew, and the middle 95 % remain.
They hold the noise of single runs, and not that a loss is no exact parabola: far from its bottom it is
steeper on one side than on the other, so that only runs within a factor of the lowest one are fitted.

Source: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.2 (approach 2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.lab.scaling_runs import Group
from scratchlm.lab.statistics import CONFIDENCE

NUM_DRAWS = 400
"""Of the bootstrap: the ends of a 95 % interval are then the 10th value from either side."""
REACH = 10.0
"""Runs this factor smaller or larger than the lowest are fitted."""
MIN_SIZES = 3
"""Sizes through which a parabola goes; with as many, nothing is left to tell the noise from."""
NEAR = 4
"""Sizes that are fitted even if they lie farther away."""


class Range(NamedTuple):
    """A number with its 95 % interval; None where the runs tell nothing of the noise."""

    value: float
    low: float | None = None
    high: float | None = None


class Valley(NamedTuple):
    """What one budget says."""

    group: Group
    curve: tuple[float, float, float] | None
    """Loss = c0 + c1 x + c2 x^2, x = log(parameters); None where it has no bottom among the sizes."""
    fitted: list[float]
    """Sizes that it goes through."""
    parameters: Range | None
    tokens: Range | None
    loss: float | None
    """At the bottom."""
    problem: str
    """Why there is none."""


class PowerLaw(NamedTuple):
    """value = coefficient * flops ** exponent."""

    coefficient: float
    exponent: Range
    draws: Float[np.ndarray, "draws 2"]
    """Logarithm of the coefficient, and exponent, of each draw; none where nothing is known of the noise."""

    def at(self, flops: float) -> Range:
        """The value at a budget, with its interval."""
        draws = np.exp(self.draws[:, 0] + self.draws[:, 1] * np.log(flops))
        return interval(self.coefficient * flops**self.exponent.value, draws)


class IsoFlop(NamedTuple):
    """The best size and number of tokens over compute."""

    valleys: list[Valley]
    parameters: PowerLaw
    tokens: PowerLaw


class _Parabola(NamedTuple):
    """A fitted parabola and what the bootstrap needs of it."""

    group: Group
    x: Float[np.ndarray, " runs"]
    losses: Float[np.ndarray, " runs"]
    curve: Float[np.ndarray, " 3"]
    """Highest power first, around `middle`."""
    middle: float
    tokens: Float[np.ndarray, " powers"]
    """Logarithm of the tokens over x - middle."""

    @property
    def bottom(self) -> float:
        """Where it is lowest."""
        return float(self.middle - self.curve[1] / (2 * self.curve[0]))


def fit_isoflop(groups: Sequence[Group], *, seed: int = 0) -> IsoFlop:
    """Fit parabolas and power laws.

    Args:
        groups: Runs by budget.
        seed: Of the bootstrap.

    Raises:
        ValueError: Fewer than two budgets have a bottom; the message says what each lacks.
    """
    if len(groups) < 2:
        raise ValueError(
            f"{len(groups)} budget{'' if len(groups) == 1 else 's'} of compute: a power law needs runs at "
            "two or more, at least 1.2 times apart."
        )
    fits = [_fit(group) for group in groups]
    parabolas = [fit for fit in fits if isinstance(fit, _Parabola)]
    if len(parabolas) < 2:
        said = "; ".join(
            f"{group.budget:.3g} FLOPs: {fit if isinstance(fit, str) else 'good'}"
            for group, fit in zip(groups, fits, strict=True)
        )
        raise ValueError(f"fewer than two budgets have a lowest point among their sizes: {said}.")
    sizes, tokens = _resampled(parabolas, np.random.default_rng(seed))
    valleys, number = [], 0
    for group, fit in zip(groups, fits, strict=True):
        if isinstance(fit, str):
            valleys.append(Valley(group, None, [], None, None, None, fit))
            continue
        valleys.append(_valley(fit, sizes[:, number], tokens[:, number]))
        number += 1
    budgets = np.log([fit.group.budget for fit in parabolas])
    best = np.array([fit.bottom for fit in parabolas])
    best_tokens = np.array([np.polyval(fit.tokens, fit.bottom - fit.middle) for fit in parabolas])
    return IsoFlop(valleys, _law(budgets, best, sizes), _law(budgets, best_tokens, tokens))


def interval(value: float, draws: Float[np.ndarray, " draws"]) -> Range:
    """A value with the middle 95 % of its draws."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Range(float(value))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Range(float(value), float(low), float(high))


def _fit(group: Group) -> "_Parabola | str":
    """The parabola of one budget, or why it has none."""
    sizes = sorted({run.parameters for run in group.runs})
    if len(sizes) < MIN_SIZES:
        return f"{len(sizes)} sizes; a parabola needs {MIN_SIZES}"
    lowest = min(group.runs, key=lambda run: run.loss).parameters
    by_distance = sorted(sizes, key=lambda size: abs(np.log(size / lowest)))
    kept = {s for n, s in enumerate(by_distance) if n < NEAR or max(s / lowest, lowest / s) <= REACH}
    runs = [run for run in group.runs if run.parameters in kept]
    x, losses = np.log([run.parameters for run in runs]), np.array([run.loss for run in runs])
    middle = float(x.mean())
    curve = np.polyfit(x - middle, losses, 2)
    tokens = np.polyfit(x - middle, np.log([run.tokens for run in runs]), 2)
    found = _Parabola(group, x, losses, curve, middle, tokens)
    if curve[0] <= 0:
        return "the losses bend the other way"
    if not x.min() <= found.bottom <= x.max():
        side = "smaller" if found.bottom < x.min() else "larger"
        return f"the lowest point lies outside of the sizes; add {side} ones"
    return found


def _resampled(
    parabolas: Sequence[_Parabola], random: np.random.Generator
) -> tuple[Float[np.ndarray, "draws budgets"], Float[np.ndarray, "draws budgets"]]:
    """Logarithms of the best sizes and tokens in each draw; no draws where nothing is left for the noise."""
    rests = [fit.losses - np.polyval(fit.curve, fit.x - fit.middle) for fit in parabolas]
    num_runs, spent = sum(map(len, rests)), MIN_SIZES * len(parabolas)
    if num_runs <= spent:
        return np.empty((0, len(parabolas))), np.empty((0, len(parabolas)))
    pool = np.concatenate(rests) * np.sqrt(num_runs / (num_runs - spent))
    sizes, tokens = [], []
    for fit, rest in zip(parabolas, rests, strict=True):
        powers = np.vander(fit.x - fit.middle, 3)
        losses = fit.losses - rest + random.choice(pool, (NUM_DRAWS, len(rest)))
        curves = losses @ np.linalg.pinv(powers).T
        # a draw that bends the other way has no bottom
        bent = np.where(curves[:, 0] > 0, curves[:, 0], np.nan)
        offset = -curves[:, 1] / (2 * bent)
        sizes.append(fit.middle + offset)
        tokens.append(np.polyval(fit.tokens, offset))
    return np.stack(sizes, axis=1), np.stack(tokens, axis=1)


def _valley(
    fit: _Parabola, sizes: Float[np.ndarray, " draws"], tokens: Float[np.ndarray, " draws"]
) -> Valley:
    c2, c1, c0 = (float(number) for number in fit.curve)
    around = (c0 - c1 * fit.middle + c2 * fit.middle**2, c1 - 2 * c2 * fit.middle, c2)
    offset = fit.bottom - fit.middle
    return Valley(
        group=fit.group,
        curve=around,
        fitted=sorted(set(np.exp(fit.x).tolist())),
        parameters=interval(float(np.exp(fit.bottom)), np.exp(sizes)),
        tokens=interval(float(np.exp(np.polyval(fit.tokens, offset))), np.exp(tokens)),
        loss=float(np.polyval(fit.curve, offset)),
        problem="",
    )


def _law(
    budgets: Float[np.ndarray, " budgets"],
    values: Float[np.ndarray, " budgets"],
    draws: Float[np.ndarray, "draws budgets"],
) -> PowerLaw:
    """A straight line in logarithms."""
    middle = budgets.mean()
    line = np.linalg.pinv(np.vander(budgets - middle, 2))
    slope, height = line @ values
    good = draws[np.isfinite(draws).all(axis=1)] if len(draws) else draws
    slopes, heights = (good @ line.T).T if len(good) else (np.empty(0), np.empty(0))
    kept = np.stack([heights - slopes * middle, slopes], axis=1)
    return PowerLaw(float(np.exp(height - slope * middle)), interval(slope, slopes), kept)
