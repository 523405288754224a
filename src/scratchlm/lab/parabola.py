"""Values with their numbers come in, where a parabola through the lowest ones has its bottom goes out.

    number = a + b x + c x^2,  x = value or log(value)         bottom at -b / (2 c), where c > 0

Around its lowest point a smooth curve is nearly a parabola, so the bottom may be told more finely than the
values were tried; far from it the curve is none, so only the points nearby are fitted.
"""

import math
from collections.abc import Sequence

MIN_FIT = 3
"""Points through which a parabola goes."""
FIT_SPAN = 5
"""Points around the lowest one that the parabola is fitted to: farther away the curve is none."""
STEEP = 100.0
"""Points whose numbers differ by more than this factor lie on no parabola."""


def parabola_bottom(
    points: Sequence[tuple[float, float]], *, log: bool, span: int = FIT_SPAN
) -> float | None:
    """Where a least-squares parabola through the points around the lowest one has its bottom.

    Args:
        points: Value and metric, in the order of the values.
        log: Whether the parabola is one in the value's logarithm.
        span: How many points are fitted, the lowest in their middle where it is no end.

    Returns:
        The value; None where the points curve the other way, or the bottom lies outside of them.
    """
    import numpy as np

    lowest = min(range(len(points)), key=lambda index: points[index][1])
    first = max(0, min(lowest - span // 2, len(points) - span))
    near = points[first : first + span]
    if len(near) < MIN_FIT or max(metric for _, metric in near) > STEEP * abs(points[lowest][1]):
        return None
    x = np.array([math.log(value) if log else value for value, _ in near])
    middle = x.mean()
    bent, slope, _ = np.polyfit(x - middle, [metric for _, metric in near], 2)
    if bent <= 0:
        return None
    bottom = float(middle - slope / (2 * bent))
    if not x.min() <= bottom <= x.max():
        return None
    return math.exp(bottom) if log else bottom
