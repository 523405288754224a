r"""Rows of token ids come in; groups of rows that begin alike go out, with how much of it is computed once.

    shots question1 A        shots computed once, then    question1 A
    shots question1 B                                     question1 B     the rest of all rows together,
    shots question2 A                                     question2 A     behind copies of its keys and values

A group of n rows that share p tokens saves (n - 1) p of them. Sorted rows have their longest common
beginnings side by side, so groups are found by splitting where neighbours share least, as long as the parts
save more than the whole; parts are never put together again, so there may be groups that save more. Places
whose predictions are scored are never shared.

Source: one level of the sharing of Zheng et al. 2024 (SGLang), https://arxiv.org/abs/2312.07104, section 3.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

STEP = 16
"""Shared lengths are multiples of this: few different ones, and no group for the sake of a word."""

Row = tuple[int, ...]


class Group(NamedTuple):
    """Rows that begin alike."""

    shared: int
    """How many of their first ids are the same and computed once; 0: nothing is."""
    rows: list[Row]


def group_rows(rows: Mapping[Row, int], *, least: int) -> list[Group]:
    """Return all rows in groups, those that share nothing in one.

    Args:
        rows: Ids -> how many of the first may be shared: those behind predict what is scored.
        least: Tokens that a group has to save: to compute its beginning costs a pass of its own.
    """
    ordered = sorted(rows)
    shares = [
        _shared(one, two, min(rows[one], rows[two])) // STEP * STEP
        for one, two in itertools.pairwise(ordered)
    ]
    alone: list[Row] = []
    found = []
    for first, last, shared in _split(shares, 0, len(ordered)):
        members = ordered[first:last]
        if shared * (len(members) - 1) >= max(1, least):
            found.append(Group(shared, members))
        else:
            alone += members
    return [*found, Group(0, alone)] if alone else found


def _split(shares: Sequence[int], first: int, last: int) -> list[tuple[int, int, int]]:
    """Return (first, last, shared) of rows first to last - 1: as one group, or in parts that save more."""
    if last - first < 2:
        return [(first, last, 0)]
    least = min(shares[first : last - 1])
    ends = [place + 1 for place in range(first, last - 1) if shares[place] == least]
    starts = [first, *ends]
    parts = [part for pair in zip(starts, [*ends, last], strict=True) for part in _split(shares, *pair)]
    saved = sum((end - start - 1) * shared for start, end, shared in parts)
    return parts if saved > (last - first - 1) * least else [(first, last, least)]


def _shared(one: Row, two: Row, most: int) -> int:
    """How many ids two rows begin with alike, at most `most`."""
    return next((place for place in range(most) if one[place] != two[place]), most)
