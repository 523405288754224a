r"""Runs come in; their loss as a function of parameters N and tokens D goes out, with predictions.

    L(N, D) = E + A / N^alpha + B / D^beta
    minimise  sum Huber_delta( logsumexp(a - alpha log N, b - beta log D, e) - log L ),   A = exp(a), ...
    compute-optimal, where C = k N D:   N_opt ~ C^(beta / (alpha + beta)),  D_opt ~ C^(alpha / (alpha + beta))

For given exponents E, A and B follow from linear least squares, so each start is a pair (alpha, beta) of a
grid; from all of them Levenberg and Marquardt's steps go down at once (a batch of 5 x 5 systems), with
Huber's loss as squares weighted anew in each step. Where the text's entropy is known, E does not go below
it: nothing predicts a text better than its own probabilities. Intervals: the runs are drawn with replacement
and fitted again; those of a prediction hold the scatter of a single run on top.

Source: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.3 (approach 3); they use L-BFGS, and
stopped it too early: Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.lab.isoflop import Range, interval
from scratchlm.lab.scaling_runs import Trained

NAMES = ("E", "A", "B", "alpha", "beta")
DELTA = 1e-3
"""Residuals of log L beyond it count linearly (Hoffmann et al. 2022, section 3.3)."""
EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0, 1.4)
"""Starts of alpha and of beta."""
EXPONENT_RANGE = (0.01, 3.0)
"""Exponents outside are a flat or a cliff: no law that anybody measured."""
NUM_DRAWS = 200
"""Of the bootstrap."""
NUM_STEPS = 150
"""At most; on 54 runs most starts arrive within 60."""
TOLERANCE, PATIENCE = 1e-6, 6
"""A fit has arrived when so many steps in a row each gain less than this share."""
SMALLEST = 1e-9
"""Share of the loss that a term keeps at least: its logarithm must be finite."""

Parameters = Float[np.ndarray, "fits 5"]
"""e, a, b, alpha, beta of several fits, N and D measured from their geometric means."""


class Points(NamedTuple):
    """Runs as a fit sees them, in logarithms."""

    sizes: Float[np.ndarray, " runs"]
    """Of the parameters, measured from their mean."""
    lengths: Float[np.ndarray, " runs"]
    """Of the tokens, measured from their mean."""
    losses: Float[np.ndarray, " runs"]
    floor: float
    """Entropy of the text in nats per token, no logarithm; 0 where nobody knows it."""


class Chinchilla(NamedTuple):
    """A fitted L(N, D)."""

    numbers: dict[str, Range]
    """E, A, B, alpha, beta."""
    best: list[float]
    """e, a, b, alpha, beta; A and B with N and D as they are."""
    draws: list[list[float]]
    """The same of each draw of the bootstrap."""
    residuals: list[float]
    """Of log L, enlarged for the five numbers that were fitted."""
    floor: float = 0.0
    """Entropy of the text in nats per token, below which E was not let; 0 where nobody knows it."""

    @property
    def size_exponent(self) -> Range:
        """Beta / (alpha + beta): the best N grows with this power of the compute."""
        draws = np.array(self.draws).reshape(-1, 5)
        alpha, beta = self.best[3:]
        return interval(beta / (alpha + beta), draws[:, 4] / (draws[:, 3] + draws[:, 4]))

    def predict(self, parameters: float, tokens: float) -> Range:
        """The loss of one run that was not fitted, with the interval for its measurement."""
        every = np.array([self.best, *self.draws])
        logs = _log_loss(every, np.log([parameters]), np.log([tokens]))[:, 0]
        scatter = np.random.default_rng(0).choice(self.residuals, len(self.draws))
        return interval(float(np.exp(logs[0])), np.exp(logs[1:] + scatter))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"best": self.best, "draws": self.draws, "residuals": self.residuals, "floor": self.floor}


def from_json(read: Mapping[str, Any]) -> Chinchilla:
    """A fit as it was written.

    Raises:
        ValueError: It is none.
    """
    try:
        best, draws = np.array(read["best"], dtype=float), np.array(read["draws"], dtype=float)
        residuals = [float(value) for value in read["residuals"]]
        floor = float(read.get("floor", 0.0))
    except (KeyError, TypeError, ValueError):
        raise ValueError("no fit of L(N, D) is in it (best, draws, residuals).") from None
    if best.shape != (5,) or draws.ndim != 2 or draws.shape[1] != 5 or not residuals:
        raise ValueError("no fit of L(N, D) is in it: each has five numbers.")
    return _chinchilla(best, draws, residuals, floor)


def fit_chinchilla(runs: Sequence[Trained], *, seed: int = 0) -> Chinchilla:
    """Fit L(N, D) to runs of several sizes and lengths.

    Args:
        runs: Six or more.
        seed: Of the bootstrap.

    Raises:
        ValueError: The runs are too few, or all have one size or one length.
    """
    kinds = {(run.parameters, run.tokens) for run in runs}
    sizes, lengths = ({kind[index] for kind in kinds} for index in (0, 1))
    if len(kinds) < 6 or len(sizes) < 3 or len(lengths) < 3:
        raise ValueError(
            f"L(N, D) has five numbers: give six different runs with three sizes and three lengths or more; "
            f"here are {len(kinds)} with {len(sizes)} sizes and {len(lengths)} lengths."
        )
    n, d, losses = (np.log([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "loss"))
    middle = (n.mean(), d.mean())
    points = Points(n - middle[0], d - middle[1], losses, min(run.floor for run in runs))
    starts = _starts(points)
    fitted, costs = _descend(starts, np.ones((len(starts), len(runs))), points)
    best = fitted[np.argmin(costs)]
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), NUM_DRAWS).astype(float)
    draws, _ = _descend(np.repeat(best[None], NUM_DRAWS, axis=0), counts, points)
    rests = losses - _log_loss(best[None], points.sizes, points.lengths)[0]
    rests = rests * np.sqrt(len(runs) / (len(runs) - 5))
    return _chinchilla(_moved(best[None], middle)[0], _moved(draws, middle), rests.tolist(), points.floor)


def _chinchilla(
    best: Float[np.ndarray, " 5"], draws: Float[np.ndarray, "draws 5"], residuals: list[float], floor: float
) -> Chinchilla:
    shown, all_shown = _plain(best[None])[0], _plain(draws)
    numbers = {name: interval(shown[i], all_shown[:, i]) for i, name in enumerate(NAMES)}
    return Chinchilla(numbers, best.tolist(), draws.tolist(), residuals, floor)


def _plain(fits: Parameters) -> Parameters:
    """E, A, B instead of their logarithms."""
    return np.concatenate([np.exp(fits[:, :3]), fits[:, 3:]], axis=1)


def _moved(fits: Parameters, middle: tuple[float, float]) -> Parameters:
    """A / (N/N0)^alpha = (A N0^alpha) / N^alpha."""
    moved = fits.copy()
    moved[:, 1] += fits[:, 3] * middle[0]
    moved[:, 2] += fits[:, 4] * middle[1]
    return moved


def _log_loss(
    fits: Parameters, n: Float[np.ndarray, " runs"], d: Float[np.ndarray, " runs"]
) -> Float[np.ndarray, "fits runs"]:
    e, a, b, alpha, beta = (fits[:, index, None] for index in range(5))
    return np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e)


def _starts(points: Points) -> Parameters:
    """For each pair of exponents E, A and B by least squares of relative errors, none below zero."""
    (x, z, losses, _), found = points, []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            terms = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * z)], axis=1)
            sizes, *_ = np.linalg.lstsq(terms / np.exp(losses)[:, None], np.ones_like(losses), rcond=None)
            sizes = np.maximum(sizes, 0.02 * np.exp(losses.min()))
            found.append([*np.log(sizes), alpha, beta])
    return np.array(found)


def _descend(
    starts: Parameters,
    weights: Float[np.ndarray, "fits runs"],
    points: Points,
) -> tuple[Parameters, Float[np.ndarray, " fits"]]:
    """Go down from all starts at once; a step that does not help is taken back and made shorter."""
    damping, quiet = np.full(len(starts), 1e-2), np.zeros(len(starts), dtype=int)
    lowest, highest = np.full(3, np.log(SMALLEST) + points.losses.min()), points.losses.max() + 5
    lowest[0] = max(lowest[0], np.log(points.floor) if points.floor > 0 else -np.inf)
    fits = starts.copy()
    fits[:, :3] = np.clip(fits[:, :3], lowest, highest)
    costs = _costs(fits, weights, points)
    for _ in range(NUM_STEPS):
        going = np.flatnonzero(quiet < PATIENCE)
        if not len(going):
            break
        now, before = fits[going], costs[going]
        tried = now + np.clip(_step(now, damping[going], weights[going], points), -2.0, 2.0)
        tried[:, :3] = np.clip(tried[:, :3], lowest, highest)
        tried[:, 3:] = np.clip(tried[:, 3:], *EXPONENT_RANGE)
        new = _costs(tried, weights[going], points)
        good = new < before
        quiet[going] = np.where(before - new > TOLERANCE * before, 0, quiet[going] + 1)
        fits[going] = np.where(good[:, None], tried, now)
        costs[going] = np.where(good, new, before)
        damping[going] = np.clip(np.where(good, damping[going] / 4, damping[going] * 4), 1e-9, 1e9)
    return fits, costs


def _step(
    fits: Parameters,
    damping: Float[np.ndarray, " fits"],
    weights: Float[np.ndarray, "fits runs"],
    points: Points,
) -> Parameters:
    """Levenberg and Marquardt's: (J^T W J + damping * its diagonal) step = -J^T W r."""
    x, z, losses, _ = points
    logs = _log_loss(fits, x, z)
    rests = logs - losses
    size = np.exp(fits[:, 1, None] - fits[:, 3, None] * x - logs)
    length = np.exp(fits[:, 2, None] - fits[:, 4, None] * z - logs)
    slopes = np.stack([np.exp(fits[:, 0, None] - logs), size, length, -size * x, -length * z], axis=2)
    # Huber's loss as squares: beyond delta the weight falls with the distance
    huber = weights * DELTA / np.maximum(np.abs(rests), DELTA)
    weighted = (slopes * huber[:, :, None]).transpose(0, 2, 1)
    square = weighted @ slopes
    gradient = weighted @ rests[:, :, None]
    # scaled by the diagonal, so that flat directions are damped like steep ones
    diagonal = np.einsum("kii->ki", square)
    held = damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    return np.linalg.solve(square + held[:, :, None] * np.eye(5), -gradient)[:, :, 0]


def _costs(
    fits: Parameters, weights: Float[np.ndarray, "fits runs"], points: Points
) -> Float[np.ndarray, " fits"]:
    distance = np.abs(_log_loss(fits, points.sizes, points.lengths) - points.losses)
    huber = np.where(distance <= DELTA, distance**2 / 2, DELTA * (distance - DELTA / 2))
    return (weights * huber).sum(axis=1)
