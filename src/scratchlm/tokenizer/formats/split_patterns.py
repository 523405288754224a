r"""A regular expression from somebody's file -> the name of our split pattern that splits alike, or None.

One pattern has many spellings: `'s|'t|'re`, `'(?:[st]|re)`; `\p{L}+`, possessive `\p{L}++`. Each of our
patterns is listed here as its alternatives in order, each alternative with the spellings that match the same
text at the same place. Anything else is not guessed at: an expression that is almost the same gives almost
the same ids. So `\p{N}{1,3}+` is not listed: possessive for tiktoken, but a repetition of `\p{N}{1,3}` for
Oniguruma, Hugging Face's engine.

Two spellings are the same only together: `\s++$` takes a run of blanks at the end of the text whole, and then
`\s*[\r\n]` (or with a +) leaves no trailing blanks. In GPT-2's pattern `\s+(?!\S)` does that anyway. In the
others "\n  " at the end of a text is one piece with `\s++$`, else two; ids are equal unless a token holds
blanks after a newline (`NEWLINE_THEN_BLANK` finds such tokens).
"""

import functools
from typing import NamedTuple

import regex

from scratchlm.tokenizer.pretokenize import PATTERNS

NEWLINE_THEN_BLANK = regex.compile(rb"[\r\n][\r\n]*[\t\x0b\x0c \xc2\xe1\xe2\xe3]")
"""A token with blanks after a newline; the last four bytes begin the blanks outside of ASCII."""

_SMALL_CONTRACTIONS = ("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)", "(?:'s|'t|'re|'ve|'m|'ll|'d)")
_CONTRACTIONS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
_BLANKS_BEFORE_WORD = (r"\s+(?!\S)",)
_ONE_BLANK = (r"\s+", r"\s")  # only single ones come here: longer runs match the alternative before
_LINE_END = (r"\s*[\r\n]+", r"\s*[\r\n]")
_LETTERS = (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}++", r"[^\r\n\p{L}\p{N}]?+\p{L}+",
            r"[^\r\n\p{L}\p{N}]?+\p{L}++")  # fmt: skip
_SIGNS = (r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*+")
_O200K_LETTERS = tuple(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    + lengths[0]
    + r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    + lengths[1]
    + "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    for lengths in ("*+", "+*")
)

_SPELLINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gpt2": (
        _SMALL_CONTRACTIONS,
        (r" ?\p{L}+", r" ?\p{L}++"),
        (r" ?\p{N}+", r" ?\p{N}++"),
        (r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]++"),
    ),
    "cl100k": (_CONTRACTIONS, _LETTERS, (r"\p{N}{1,3}",), _SIGNS, _LINE_END),
    "qwen2": (_CONTRACTIONS, _LETTERS, (r"\p{N}",), _SIGNS, _LINE_END),
    "o200k": (
        *((letters,) for letters in _O200K_LETTERS),
        (r"\p{N}{1,3}",),
        (r" ?[^\s\p{L}\p{N}]+[\r\n/]*",),
        _LINE_END,
    ),
}
"""Name -> its alternatives before the last two, which are the same in all."""

_BLANKS_AT_END = r"\s++$"

_SHORT_SUPERBPE = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
"""The second stage of SuperBPE without its last alternative: what lies between two matches is one piece."""


class KnownPattern(NamedTuple):
    """One of our split patterns.

    Attributes:
        name: Its name.
        at_end: A run of blanks at the end of the text stays whole.
        covers: The matches cover the text; else what lies between them are pieces too.
    """

    name: str
    at_end: bool = False
    covers: bool = True


def known_pattern(expression: str) -> KnownPattern | None:
    """The pattern that a regular expression spells, or None if we have none that splits alike."""
    if expression in (PATTERNS["superbpe"], _SHORT_SUPERBPE):
        return KnownPattern("superbpe", covers=expression != _SHORT_SUPERBPE)
    for name, spelling in _compiled_spellings().items():
        match = spelling.fullmatch(expression)
        if match is not None:
            return KnownPattern(name, at_end=name != "gpt2" and bool(match["end"]))
    return None


@functools.cache
def _compiled_spellings() -> dict[str, regex.Pattern]:
    """Name -> an expression that matches the spellings of the pattern."""
    end = rf"(?P<end>{regex.escape(_BLANKS_AT_END)}\|)?"
    found = {}
    for name, alternatives in _SPELLINGS.items():
        *first, last = [_any_of(spellings) for spellings in alternatives]
        # The run at the end comes before the line ends where there are any.
        middle = [*first, last, end] if name == "gpt2" else [*first, end + last]
        tail = [_any_of(_BLANKS_BEFORE_WORD), _any_of(_ONE_BLANK)]
        found[name] = regex.compile(r"\|".join([*middle, *tail]).replace(end + r"\|", end))
    return found


def _any_of(spellings: tuple[str, ...]) -> str:
    return "(?:" + "|".join(map(regex.escape, spellings)) + ")"
