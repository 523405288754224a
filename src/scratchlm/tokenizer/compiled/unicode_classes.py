r"""Code point -> class of character: letter (four kinds), number, mark, blank, or other.

    0000 OTHER  0009 SPACE  000E OTHER  0020 SPACE  0021 OTHER  0030 NUMBER  003A OTHER  0041 UPPER ...

The split patterns ask for general categories (\p{L}, \p{N}, \p{M}, \p{Lu}) and for White_Space (\s); a byte
for each of the 0x110000 code points answers all of them. The table is stored as runs: where the class
changes, and to what. It pins one Unicode version, so that the same text is split the same way whatever
version of `regex` or Python is installed; `runs_of_regex` makes it anew.

    python -c "from scratchlm.tokenizer.compiled.unicode_classes import *; write_table(runs_of_regex())"

Source: the Unicode Character Database 18.0, as in the `regex` module 2026.11.15; general categories are
those of https://www.unicode.org/reports/tr44/, table 12.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from scratchlm.runtime import write_text_atomically

NUM_CODE_POINTS = 0x110000

OTHER, SPACE, NUMBER, MARK, UPPER, LOWER, CASELESS = range(7)
"""Classes: of nothing below; White_Space; N*; M*; Lu and Lt; Ll; Lm and Lo. Letters are >= `LETTERS`."""

LETTERS = UPPER

TABLE = Path(__file__).with_name("unicode_classes.txt")
"""One run a line: its first code point in hexadecimal digits and its class."""

_PROPERTIES = (
    (r"\s", SPACE),
    (r"\p{N}", NUMBER),
    (r"\p{M}", MARK),
    (r"[\p{Lu}\p{Lt}]", UPPER),
    (r"\p{Ll}", LOWER),
    (r"[\p{Lm}\p{Lo}]", CASELESS),
)
_SURROGATES = range(0xD800, 0xE000)


@functools.cache
def character_classes() -> UInt8[np.ndarray, " characters"]:
    """Class of each code point; made once, about 1 ms. Writable only because compiled code asks for it."""
    words = TABLE.read_text(encoding="ascii").split()
    firsts = [int(word, 16) for word in words[0::2]]
    assert firsts[0] == 0, f"{TABLE.name} starts at {words[0]}"
    lengths = np.diff(firsts, append=NUM_CODE_POINTS)
    return np.repeat(np.array(words[1::2], np.uint8), lengths)


def runs_of_regex() -> list[tuple[int, int]]:
    """The first code point and the class of each run, as the installed `regex` module sees them."""
    import regex

    text = "".join("\0" if code in _SURROGATES else chr(code) for code in range(NUM_CODE_POINTS))
    classes = np.full(NUM_CODE_POINTS, OTHER, np.uint8)
    for expression, kind in _PROPERTIES:
        for match in regex.finditer(f"{expression}+", text):
            classes[match.start() : match.end()] = kind
    changes = np.flatnonzero(np.diff(classes, prepend=np.uint8(255)))
    return [(int(first), int(classes[first])) for first in changes]


def write_table(runs: list[tuple[int, int]]) -> None:
    """Store the runs as the package's table."""
    assert runs[0][0] == 0, runs[0]
    assert all(first < after for (first, _), (after, _) in itertools.pairwise(runs))
    write_text_atomically(TABLE, "".join(f"{first:04X} {kind}\n" for first, kind in runs))
