r"""Times of messages come in; what a call costs, what a byte costs, and the best bucket size go out.

    one message of x bytes      t(x) = o + x / w         o seconds a call, w bytes a second
    s bytes in b messages       s / w + b o              nothing hidden behind computation
                                s / (b w) + b o          all hidden but the last message (CS336, assignment 2)
    fewest seconds at           b = sqrt(s / (w o))      so a bucket has sqrt(s w o) bytes

While backward computes, full buckets travel; when it ends, the last one still has to. Many small buckets make
that last one short and pay the price of a call often; the formula balances the two. It takes for granted that
a bucket travels no longer than backward takes to fill the next, and that travelling costs the computation
nothing. On a CPU it does: the same cores add up the numbers, so measured times lie between the two lines.

Source: Stanford CS336 (2025), assignment 2, ddp_bucketed_benchmarking; Hockney 1994 for t(x).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple


class Cost(NamedTuple):
    """What communication costs: a straight line over the size of a message."""

    per_call: float
    """Seconds that a message of no bytes takes."""
    bytes_per_second: float
    """What follows beyond that."""

    def seconds(self, num_bytes: float) -> float:
        """Return how long one message takes. Example: Cost(1e-3, 1e9).seconds(1e6) -> 0.002."""
        return self.per_call + num_bytes / self.bytes_per_second

    def nothing_hidden(self, num_bytes: float, num_calls: float) -> float:
        """Return the seconds that computation waits if nothing travels meanwhile."""
        return num_bytes / self.bytes_per_second + num_calls * self.per_call

    def last_bucket(self, num_bytes: float, num_calls: float) -> float:
        """Return the seconds that computation waits if all but the last of equal buckets is hidden."""
        return num_bytes / (num_calls * self.bytes_per_second) + num_calls * self.per_call

    def best_bucket_bytes(self, num_bytes: float) -> float:
        """Return the size of buckets at which `last_bucket` is least, at most all bytes at once."""
        return min(num_bytes, math.sqrt(num_bytes * self.bytes_per_second * self.per_call))


def fit(measured: Iterable[tuple[float, float]]) -> Cost | None:
    """Return the line through (bytes, seconds) with the least squares of relative errors; None where none is.

    Relative, since sizes span three decades: otherwise the largest message alone would decide, and the price
    of a call be whatever is left over.

    Example: [(0, 1.0), (10, 2.0), (20, 3.0)] -> Cost(per_call=1.0, bytes_per_second=10.0).

    Args:
        measured: At least two sizes; a price below zero is set to zero and the other fitted alone.
    """
    points = [(num_bytes, seconds, seconds**-2) for num_bytes, seconds in measured]
    if len({x for x, _, _ in points}) < 2:
        return None
    total = sum(weight for _, _, weight in points)
    x = sum(weight * x for x, _, weight in points) / total
    t = sum(weight * t for _, t, weight in points) / total
    spread = sum(weight * (size - x) ** 2 for size, _, weight in points)
    per_byte = sum(weight * (size - x) * (time - t) for size, time, weight in points) / spread
    per_call = t - per_byte * x
    if per_call < 0:
        squares = sum(weight * size**2 for size, _, weight in points)
        per_call, per_byte = 0.0, sum(weight * size * time for size, time, weight in points) / squares
    return Cost(per_call, 1 / per_byte) if per_byte > 0 else None
