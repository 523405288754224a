r"""Bytes of a plain text come in, the places of its documents go out: the fast twin of `split_documents`.

    text     one<|sep|>\ntwo\n<|sep|> <|sep|>three
    marks       ^           ^        ^               found 64 bytes at a time
    firsts   0           14                          behind a mark and the line break that belongs to it
    stops       3              17                    before a line break and a mark; blank ones are left out

The documents are not copied, and no Python object is made for any of them: the tokenizer reads them where
they stand. Only whole documents are found, those that a mark ends. What is rare (a document longer than a
chunk, bytes that are not UTF-8) is for `reading.py`, which also says what is wrong with it.
"""

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from scratchlm.data.corpora import Texts
from scratchlm.tokenizer.compiled.cuts import valid_utf8
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.sources import FileSource
from scratchlm.tokenizer.special_tokens import SpecialsFinder

_LF, _CR = 10, 13
_BLANK_BEGINS = np.zeros(256, np.bool_)
_BLANK_BEGINS[[*range(9, 14), *range(28, 33), 0xC2, 0xE1, 0xE2, 0xE3]] = True
"""First bytes of all characters that are white space for Python; a test goes through them."""


class Found(NamedTuple):
    """The documents of a stretch of text."""

    firsts: Int64[np.ndarray, " documents"]
    stops: Int64[np.ndarray, " documents"]
    end: int
    """Behind the last mark; 0 where there is none."""
    longest: int
    """Bytes between marks, at most."""


class DocumentFinder:
    """Finds the documents between marks; one may serve several threads."""

    def __init__(self, separator: str) -> None:
        """Take the text of the mark, which is not empty."""
        self._finder = SpecialsFinder([separator])

    def find(self, text: UInt8[np.ndarray, " bytes"], size: int, *, starts_file: bool) -> Found:
        """Find the documents that end in text[:size].

        Args:
            text: The bytes, readable and writable to PADDING bytes behind `size`.
            size: Where to end.
            starts_file: Whether text[0] is the first byte of a file; else a mark stands before it.
        """
        marks = self._finder.find(text, 0, size)[0].astype(np.int64)
        if not len(marks):
            return Found(marks, marks, 0, 0)
        firsts, stops = np.concatenate([np.zeros(1, np.int64), marks[:-1] + self._finder.longest]), marks
        longest = int((stops - firsts).max())
        follows_mark = np.ones(len(firsts), np.bool_)
        if starts_file:
            follows_mark[0] = False
            if text[:3].tobytes() == codecs.BOM_UTF8:  # a byte order mark is not text
                firsts[0] = 3
        firsts, stops = _without_breaks(text, firsts, stops, follows_mark)
        kept = ~_blank(text, firsts, stops)
        return Found(firsts[kept], stops[kept], int(marks[-1]) + self._finder.longest, longest)


def load_documents(path: Path, separator: str, start: int, stop: int) -> Texts | None:
    """Read the documents of a file from `start` to `stop`, both behind a mark or at the file's beginning.

    Returns:
        None where it is not plain UTF-8: `reading.read_documents` says what is wrong, or replaces it.

    Raises:
        ValueError: The file has become shorter.
    """
    size = stop - start
    text = np.empty(size + PADDING, np.uint8)
    text[size:] = 0
    with FileSource(path) as source:
        source.read_into(text[:size], start)
    if text[:size].min() == 0 or valid_utf8(text, 0, size) >= 0:
        return None
    found = DocumentFinder(separator).find(text, size, starts_file=start == 0)
    return Texts(text, found.firsts, found.stops)


def _without_breaks(
    text: UInt8[np.ndarray, " bytes"],
    firsts: Int64[np.ndarray, " documents"],
    stops: Int64[np.ndarray, " documents"],
    follows_mark: Bool[np.ndarray, " documents"],
) -> tuple[Int64[np.ndarray, " documents"], Int64[np.ndarray, " documents"]]:
    """Leave out the one line break on each side that belongs to the mark, first the one in front."""
    newline = follows_mark & (stops > firsts) & (text[firsts] == _LF)
    both = follows_mark & (stops > firsts + 1) & (text[firsts] == _CR) & (text[firsts + 1] == _LF)
    firsts = firsts + newline + 2 * both
    before = (stops > firsts) & (text[stops - 1] == _LF)
    stops = stops - before
    return firsts, stops - (before & (stops > firsts) & (text[stops - 1] == _CR))


def _blank(
    text: UInt8[np.ndarray, " bytes"],
    firsts: Int64[np.ndarray, " documents"],
    stops: Int64[np.ndarray, " documents"],
) -> Bool[np.ndarray, " documents"]:
    """Which documents are empty or nothing but white space; most begin with a letter."""
    blank = stops <= firsts
    for index in np.flatnonzero(~blank & _BLANK_BEGINS[text[firsts]]).tolist():
        blank[index] = not text[firsts[index] : stops[index]].tobytes().decode("utf-8", "replace").strip()
    return blank
