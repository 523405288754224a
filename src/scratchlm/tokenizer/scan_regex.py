"""Any split pattern as a scanner: the regular expression itself, with the compiled scanners' signature.

Slow (about 10 MB/s), for patterns that have no compiled scanner, and the compiled ones' oracle. A byte that
is not part of well-formed UTF-8 becomes a lone surrogate on the way ("surrogateescape"), which is neither
letter, number nor blank: one character of its own, as everywhere.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int32, UInt8

from scratchlm.tokenizer.pretokenize import SAFE_PLACE_AT_NUMBERS, compiled

Scanner = Callable[..., int]
"""(text, firsts, stops, ends, classes, starts, bounds) -> number of starts written; see `windows`."""


def regex_scanner(pattern: str) -> Scanner:
    """A scanner for `pattern`; it ignores the table of classes.

    Raises:
        ValueError: There is no such pattern.
    """
    find = compiled(pattern).finditer

    def scan(
        text: UInt8[np.ndarray, " bytes"],
        firsts: Int32[np.ndarray, " segments"],
        stops: Int32[np.ndarray, " segments"],
        ends: Int32[np.ndarray, " segments"],
        classes: UInt8[np.ndarray, " characters"],
        starts: Int32[np.ndarray, " starts"],
        bounds: Int32[np.ndarray, " bounds"],
    ) -> int:
        count = 0
        for number, (first, stop, end) in enumerate(zip(firsts, stops, ends, strict=True)):
            bounds[number] = count
            segment = text[first:end].tobytes().decode("utf-8", "surrogateescape")
            place = int(first)
            for match in find(segment):
                if place >= stop:
                    break
                starts[count] = place
                count += 1
                place += len(match.group().encode("utf-8", "surrogateescape"))
            starts[count] = stop
            count += 1
        bounds[len(firsts)] = count
        return count

    return scan


def last_cut_at_number(
    text: UInt8[np.ndarray, " bytes"],
    first: int,
    stop: int,
    end: int,
    classes: UInt8[np.ndarray, " characters"],
) -> int:
    """As `compiled.cuts.last_cut`, for superbpe: the last place before a number or behind one, or -1."""
    while stop > first and (text[stop] & 0xC0) == 0x80:  # back to where a character starts
        stop -= 1
    before = text[first:stop].tobytes().decode("utf-8", "surrogateescape")
    place = SAFE_PLACE_AT_NUMBERS.search(before)
    if place is None or place.start() == 0:
        return -1
    return first + len(before[: place.start()].encode("utf-8", "surrogateescape"))
