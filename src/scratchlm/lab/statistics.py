r"""Paired numbers come in, the mean difference with its confidence interval comes out.

    d_i = a_i - b_i                        the same seed on both sides: what the seed does to both cancels
    half width = t(0.975, n - 1) * s / sqrt(n),     s^2 = sum (d_i - mean)^2 / (n - 1)

    P(|T| <= t), theta = atan(t / sqrt(v)), v degrees of freedom:
      v even: sin(theta) * (1 + 1/2 cos^2 + (1*3)/(2*4) cos^4 + ... up to cos^(v-2))
      v odd:  2/pi * (theta + sin(theta) * (cos + 2/3 cos^3 + (2*4)/(3*5) cos^5 + ... up to cos^(v-2)))

Source: Student 1908; the sums from Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", formulas
26.7.3 and 26.7.4. Example: v = 2 -> t(0.975) = 4.3027.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
"""Of twenty such intervals one misses the truth."""


class Spread(NamedTuple):
    """A mean and how far single numbers lie from it."""

    mean: float
    deviation: float | None
    """Standard deviation with n - 1 below; None for a single number."""
    count: int


class Interval(NamedTuple):
    """A mean difference, and how far the truth may be from it."""

    mean: float
    half_width: float | None
    """None where one pair tells nothing of the noise."""
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one number."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def paired_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of paired differences with its t interval."""
    found = spread(differences)
    if found.deviation is None:
        return Interval(found.mean, None, 1)
    quantile = t_quantile(confidence, found.count - 1)
    return Interval(found.mean, quantile * found.deviation / math.sqrt(found.count), found.count)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t that |T| stays below with probability `confidence`, by bisection.

    Args:
        confidence: Two-sided, in (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < confidence:
        high *= 2
    for _ in range(80):  # halves an interval of at most thousands down to a float's last bit
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < confidence else (low, middle)
    return high


def t_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) for Student's T with `degrees` degrees of freedom."""
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    first = 3 if degrees % 2 else 2
    term = cosine if degrees % 2 else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(first, degrees, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (theta + sine * total) if degrees % 2 else sine * total
