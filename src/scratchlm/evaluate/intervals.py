r"""Zeros and ones come in, their share comes out with the interval in which the true share lies.

    p = k / n,  z = 1.96
    centre     = (p + z^2 / 2n) / (1 + z^2 / n)
    half width = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

The questions are taken as drawn at random from all that could be asked. Unlike p +- z sqrt(p (1 - p) / n) the
interval never leaves 0 .. 1, and it has a width where all n answers are right.

Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.
Example: 0 of 10 -> 0 to 0.278; 50 of 100 -> 0.404 to 0.596.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959964
"""Of twenty such intervals one misses the truth: the normal distribution's 97.5 % point."""


class Estimate(NamedTuple):
    """A measured value and where the true one lies, with 95 % confidence."""

    value: float
    low: float
    high: float


def share(hits: float, count: int) -> Estimate:
    """Return the share of `hits` among `count` with its Wilson interval.

    Raises:
        ValueError: count is below 1, or there are more hits than that.
    """
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"share: {hits} of {count}; give 0 to count hits of at least one.")
    p, z2 = hits / count, Z * Z / count
    centre = (p + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(p * (1 - p) / count + z2 / (4 * count))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def perplexity(logprobs: Sequence[float]) -> Estimate:
    """Return e^(-mean) of the logarithms, with the interval of the mean by the normal distribution.

    Example: [-1, -3] -> e^2 = 7.39.
    """
    count = len(logprobs)
    mean = -sum(logprobs) / count
    spread = math.sqrt(sum((-x - mean) ** 2 for x in logprobs) / max(1, count - 1) / count)
    return Estimate(*(math.exp(min(709.0, value)) for value in (mean, mean - Z * spread, mean + Z * spread)))
