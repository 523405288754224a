r"""Rows of token ids come in; groups of rows that begin alike go out, with how much of it is computed once.

    shots question1 A        shots computed once, then    question1 A
    shots question1 B                                     question1 B     the rest of all rows together,
    shots question2 A                                     question2 A     behind copies of its keys and values

A group of n rows that share p tokens saves (n - 1) p of them. Sorted rows have their longest common
beginnings side by side, so groups are found by splitting where neighbours share least, as long as the parts
save more than the whole. Rows that no part has use for share at least what the whole does, so they are a
group among themselves. What was grouped is never taken apart for others, so there may be groups that save
more. Places whose predictions are scored are never shared.

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
    found, alone = _grouped(ordered, shares, max(1, least))
    return [*found, Group(0, alone)] if alone else found


def _grouped(ordered: Sequence[Row], shares: Sequence[int], least: int) -> tuple[list[Group], list[Row]]:
    """Return groups that save at least `least` tokens each, and the rows that are in none of them.

    Args:
        ordered: Rows in order.
        shares: What each but the last shares with the next.
        least: Tokens.
    """
    if len(ordered) < 2:
        return [], list(ordered)
    shared = min(shares)
    borders = [0, *(place + 1 for place, share in enumerate(shares) if share == shared), len(ordered)]
    groups: list[Group] = []
    alone: list[Row] = []
    for first, last in itertools.pairwise(borders):
        parts, rest = _grouped(ordered[first:last], shares[first : last - 1], least)
        groups += parts
        alone += rest
    if _saved(left := Group(shared, alone)) >= least:
        groups, alone = [*groups, left], []
    if _saved(whole := Group(shared, list(ordered))) >= max(least, sum(map(_saved, groups))):
        return [whole], []
    return groups, alone


def _saved(group: Group) -> int:
    """How many tokens a group saves."""
    return group.shared * (len(group.rows) - 1)


def _shared(one: Row, two: Row, most: int) -> int:
    """How many ids two rows begin with alike, at most `most`."""
    return next((place for place in range(most) if one[place] != two[place]), most)
