r"""Text -> pieces that no token may cross: the split patterns of GPT-2 and others; safe places to cut.

    "Hello world's   end" -> "Hello", " world", "'s", "  ", " end"        (gpt2)

The patterns are ordered alternatives. Two subtleties decide whether ids equal those of other programs.
`\s+(?!\S)` takes a run of blanks without its last character, which then opens the next word; at the end of
the text it takes the whole run. Contractions ('s, 're) come before punctuation, so "'store" starts with
"'s". We split with these patterns only, because llama.cpp and Hugging Face must be able to split the same
way.

Sources: gpt2, https://github.com/openai/gpt-2/blob/master/src/encoder.py; cl100k and o200k,
https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py (cl100k in its original form,
whose ids are the same); llama3 and qwen2, the models' tokenizer.json; superbpe (words are left together),
https://github.com/PythonNut/superbpe, second stage.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Literal

import regex

from scratchlm.tokenizer.base import check_name

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SUPERBPE = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
_SUPERBPE += r"|(?:(?!\p{N}| ?[^\s\p{L}\p{N}]{2}| +(?!\S))[\s\S])+"  # what lies between is left whole

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _CL100K,
    "o200k": _O200K,
    "llama3": _CL100K,
    "qwen2": _CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
    "superbpe": _SUPERBPE,
}
"""Name -> regular expression; every character of a text belongs to exactly one match."""

CUT_CHARACTERS = 1 << 18
"""Long texts are split and encoded in parts of about this size, which bounds the memory beside the text."""

_UNSETTLED_PIECES = 3
"""More text can change the last two pieces: "x", "'", "r" + "e" -> "x", "'re"; one more is spare."""

# After a letter or a number no pattern continues with a blank, or with a character that is neither letter,
# number, mark, blank nor apostrophe ("don't" is one piece in o200k); and none begins before such a place
# and reaches over it.
_SAFE_PLACE = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?:(?= \p{L})|(?=[^\s\p{L}\p{N}\p{M}']))")
# The pattern superbpe reaches over words, but neither into a number nor out of it.
SAFE_PLACE_AT_NUMBERS = regex.compile(r"(?r)(?<=\p{N})(?=\P{N})|(?<=[^\s\p{N}])(?=\p{N})")

_BLANK = regex.compile(r"\s+")


@functools.cache
def compiled(pattern: str) -> regex.Pattern:
    """The compiled split pattern called `pattern`.

    Raises:
        ValueError: There is no such pattern.
    """
    return regex.compile(PATTERNS[check_name(pattern, PATTERNS, "pattern")])


def pretokenize(text: str, pattern: str = "gpt2") -> list[str]:
    """Split `text` into pieces whose concatenation is the text: the plain version, the expression itself."""
    return compiled(pattern).findall(text)


def stable_prefix(text: str, pattern: str = "gpt2") -> int:
    """Number of leading characters whose pieces stay the same whatever follows `text`; 0 when none is.

    Example: "one two" -> 3 (the next piece starts at " two", which may go on). Found by a place where no
    pattern reaches over, else by splitting and giving up the last pieces.
    """
    safe = _SAFE_PLACE if pattern in SCANNED_PATTERNS else SAFE_PLACE_AT_NUMBERS
    place = safe.search(text)
    if place is not None and place.start() > len(text) // 2:
        return place.start()
    kept = pretokenize(text, pattern)[:-_UNSETTLED_PIECES]
    while kept and _BLANK.fullmatch(kept[-1]):  # alone, a run of blanks would be split like one at the end
        kept.pop()
    return max(sum(map(len, kept)), place.start() if place is not None else 0)


def parts(text: str, pattern: str = "gpt2", *, num_characters: int = CUT_CHARACTERS) -> Iterator[str]:
    """Cut a text where no piece crosses, in parts of about `num_characters`; a longer piece stays whole."""
    start, size = 0, num_characters
    while len(text) - start > size:
        settled = stable_prefix(text[start : start + size], pattern)
        if settled == 0:
            size *= 2
            continue
        yield text[start : start + settled]
        start, size = start + settled, num_characters
    yield text[start:] if start else text


SCANNED_PATTERNS = ("gpt2", "cl100k", "o200k", "llama3", "qwen2")
"""Patterns that have a compiled scanner and whose pieces start at every safe cut."""

Implementation = Literal["auto", "vector", "scalar"]
"""Which scanner: 64 bytes at a time, one character at a time, or what suits the CPU."""


@functools.cache
def choose_scanner(pattern: str, implementation: Implementation = "auto") -> Callable[..., int]:
    """The compiled scanner: (text, firsts, stops, ends, classes, starts, bounds) -> number of starts written.

    `compiled.scan_scalar` documents the arguments. Only the chosen one is imported and, at its first call,
    compiled.

    Raises:
        ValueError: There is no such pattern, or no compiled scanner for it.
    """
    check_name(pattern, SCANNED_PATTERNS, "pattern")
    if implementation == "auto":
        implementation = "vector" if _has_wide_vectors() else "scalar"
    return _vector_scanner(pattern) if implementation == "vector" else _scalar_scanner(pattern)


def _has_wide_vectors() -> bool:
    """Are compares of 64 bytes known to pay? English, GB/s: 5.5 with AVX-512, 0.4 one by one.

    For older CPUs (AVX2, SSE2) half of it and less was measured, still several times the scalar's speed.
    Elsewhere (NEON) nothing has been measured.
    """
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("sse2"))


def _vector_scanner(pattern: str) -> Callable[..., int]:
    if pattern == "gpt2":
        from scratchlm.tokenizer.compiled.scan_gpt2 import scan_gpt2

        return scan_gpt2
    if pattern == "o200k":
        from scratchlm.tokenizer.compiled.scan_o200k import scan_o200k

        return scan_o200k
    from scratchlm.tokenizer.compiled.scan_cl100k import scan_cl100k

    digits = 1 if pattern == "qwen2" else 3
    return lambda *arguments: scan_cl100k(*arguments, digits)


def _scalar_scanner(pattern: str) -> Callable[..., int]:
    from scratchlm.tokenizer.compiled import scan_scalar

    codes = {"gpt2": scan_scalar.GPT2, "qwen2": scan_scalar.QWEN2, "o200k": scan_scalar.O200K}
    code = codes.get(pattern, scan_scalar.CL100K)
    return lambda *arguments: scan_scalar.scan_scalar(*arguments, code)
