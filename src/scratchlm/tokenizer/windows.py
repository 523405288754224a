r"""Text of any size -> windows of pieces: read, cut out the special tokens, split; one buffer, no copies.

    source   "One day<|endoftext|>Two cats sat" ...
    window    --------============-----------|          about 256 KB, read into a padded buffer
    segments  One day              Two cats             text between special tokens; the last is cut
    pieces    One| day            |Two| cats            where each piece starts

Counting and encoding both eat windows, so memory is a window for each thread whatever the size of the text.
A window that ends inside a text stops at a safe cut: a place where a piece starts whatever stands elsewhere
(`compiled.cuts`), so the pieces are those of the whole text. `ranges` cuts a file for threads the same way.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from scratchlm.tokenizer.compiled.cuts import first_cut, last_cut, valid_utf8
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.pretokenize import SCANNED_PATTERNS, choose_scanner
from scratchlm.tokenizer.scan_regex import last_cut_at_number, regex_scanner
from scratchlm.tokenizer.sources import BytesSource, Errors, Source, not_utf8
from scratchlm.tokenizer.special_tokens import SpecialsFinder

WINDOW_BYTES = 1 << 18
"""Small enough that text and starts stay in a core's second-level cache, large enough to hide the calls."""

RANGE_BYTES = 1 << 22
"""What one thread takes at a time: 4 MB are some milliseconds of work."""

GOES_ON, TEXT_ENDS = -1, -2
"""In place of a special token: the segment goes on in the next window; the text ends with the segment."""

_LONGEST_WINDOW = 1 << 30
"""Positions in a window are int32."""

_OWN_CUTS = {"superbpe": last_cut_at_number}
"""Patterns whose pieces reach over safe cuts, and where a text is cut then; others: at special tokens."""

_LOOKAHEAD_BYTES = 16  # behind a cut: more than its blank and a letter of four bytes
_CUT_SEARCH_BYTES = 1 << 14  # prose has a cut every few words; without one, four times as much is read


class Window(NamedTuple):
    """Pieces of a stretch of text; the arrays are valid until the next window of the same `Splitter`.

    Pieces of segment i: text[starts[j] : starts[j + 1]] for j in range(bounds[i], bounds[i + 1] - 1).

    Attributes:
        text: The bytes, with `PADDING` readable ones behind them.
        starts: Starts of the pieces of each segment, then the segment's stop.
        bounds: Index in `starts` of each segment's first entry; one more at the end.
        specials: What ends each segment: the index of a special token, GOES_ON or TEXT_ENDS.
        position: Where text[0] stands in the source.
        num_bytes: Bytes of the source that the window covers.
    """

    text: UInt8[np.ndarray, " bytes"]
    starts: Int32[np.ndarray, " starts"]
    bounds: Int32[np.ndarray, " bounds"]
    specials: Int32[np.ndarray, " segments"]
    position: int
    num_bytes: int


class _Segments(NamedTuple):
    firsts: Int32[np.ndarray, " segments"]
    stops: Int32[np.ndarray, " segments"]
    ends: Int32[np.ndarray, " segments"]
    specials: Int32[np.ndarray, " segments"]
    num_bytes: int


class Splitter:
    """Splits text for one thread."""

    def __init__(
        self,
        pattern: str,
        specials: Sequence[str] = (),
        *,
        errors: Errors = "lossless",
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """Take the buffers.

        Args:
            pattern: Name of the split pattern.
            specials: Texts that end a segment and belong to none; the longest wins.
            errors: What happens to bytes that are no UTF-8.
            window_bytes: Size of a window; a piece that is longer gets a longer one.

        Raises:
            ValueError: There is no such pattern.
        """
        self._pattern = pattern
        scannable = pattern in SCANNED_PATTERNS
        self._scan: Callable[..., int] = choose_scanner(pattern) if scannable else regex_scanner(pattern)
        self._last_cut = last_cut if scannable else _OWN_CUTS.get(pattern)
        self._finder = SpecialsFinder(specials) if specials else None
        lengths = [len(name.encode("utf-8")) for name in specials]
        self._lengths = np.array([*lengths, 0, 0], np.int32)  # the last two: TEXT_ENDS, GOES_ON
        self._lookahead = max(_LOOKAHEAD_BYTES, *self._lengths.tolist())
        self._errors = errors
        self._window_bytes = window_bytes
        self._classes = character_classes()
        self._text = np.zeros(window_bytes + self._lookahead + PADDING, np.uint8)
        self._starts = np.empty(0, np.int32)

    def windows(self, source: Source, start: int = 0, stop: int | None = None) -> Iterator[Window]:
        """Split the source from `start` to `stop`, which are its ends or come from `ranges`.

        Raises:
            ValueError: errors="strict" and the text is no UTF-8; the message says where.
        """
        stop = source.size if stop is None else stop
        position, size = start, self._window_bytes
        while position < stop:
            wanted = min(size, stop - position)
            self._reserve(wanted + self._lookahead)
            num_read = source.read_into(self._text[: wanted + self._lookahead], position)
            limit = min(wanted, num_read)
            segments = self._segments(limit, num_read, cut=position + limit < stop)
            if segments is None:
                if wanted > _LONGEST_WINDOW:
                    name = getattr(source, "name", "the text")
                    raise ValueError(
                        f"{name}: no place to cut in the {wanted:,} bytes from byte {position}; pattern "
                        f"{self._pattern!r} needs shorter documents, or take one of {SCANNED_PATTERNS}."
                    )
                size *= 2
                continue
            covered = segments.num_bytes
            if self._errors != "lossless":
                segments = self._checked(segments, num_read, source, position)
            if position + covered == source.size:
                segments.specials[-1] = TEXT_ENDS
            yield self._scanned(segments, position, covered, self._text)
            position += covered
            size = self._window_bytes

    def batches(self, texts: Iterable[bytes]) -> Iterator[Window]:
        """Split texts, each for itself; many short ones share a window, each text ends with TEXT_ENDS.

        Raises:
            ValueError: errors="strict" and a text is no UTF-8; the message says where.
        """
        batch: list[bytes] = []
        size = 0
        for text in texts:
            if batch and size + len(text) > self._window_bytes:
                yield self._batch(batch)
                batch, size = [], 0
            if len(text) > self._window_bytes:
                yield from self.windows(BytesSource(text))
            else:
                batch.append(text)
                size += len(text)
        if batch:
            yield self._batch(batch)

    def spans(
        self,
        text: UInt8[np.ndarray, " bytes"],
        firsts: Int64[np.ndarray, " spans"],
        stops: Int64[np.ndarray, " spans"],
    ) -> Iterator[Window]:
        """Split text[first:stop] for each span, each for itself; the text stays where it is.

        Args:
            text: Valid UTF-8 with PADDING readable bytes behind the last span; writable.
            firsts: Where spans begin, ascending; none over another.
            stops: Where they end.
        """
        begin = 0
        while begin < len(firsts):
            base = int(firsts[begin])
            fitting = int(np.searchsorted(stops, base + self._window_bytes, side="right"))
            end = max(begin + 1, fitting)
            size = int(stops[end - 1]) - base
            inside = (stops[begin:end] - base).astype(np.int32)
            starts = (firsts[begin:end] - base).astype(np.int32)
            ends = np.full(end - begin, TEXT_ENDS, np.int32)
            segments = _Segments(starts, inside, inside, ends, size)
            yield self._scanned(segments, base, size, text[base : base + size + PADDING])
            begin = end

    def _reserve(self, num_bytes: int) -> None:
        if num_bytes + PADDING > len(self._text):
            larger = np.zeros(num_bytes + PADDING, np.uint8)
            larger[: len(self._text)] = self._text
            self._text = larger

    def _find(self, first: int, end: int) -> tuple[Int32[np.ndarray, " found"], Int32[np.ndarray, " found"]]:
        if self._finder is None:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        return self._finder.find(self._text, first, end)

    def _segments(self, limit: int, num_read: int, *, cut: bool) -> _Segments | None:
        """Segments of text[:limit]; cut=True: the last ends at a safe cut before, None if there is none."""
        places, which = self._find(0, num_read)
        inside = int(np.searchsorted(places, limit))
        end = int(places[inside]) if inside < len(places) else num_read
        places, which = places[:inside], which[:inside]
        firsts = np.concatenate([np.zeros(1, np.int32), places + self._lengths[which]], dtype=np.int32)
        first = int(firsts[-1])
        stop = max(first, limit)
        if cut and first < limit:
            cutter = self._last_cut
            stop = cutter(self._text, first, limit, end, self._classes) if cutter is not None else -1
            if stop < 0:  # the last segment comes again in the next window
                if not len(places):
                    return None
                stop = end = first
        stops = np.append(places, np.int32(stop))
        ends = np.append(places, np.int32(max(stop, end)))
        return _Segments(firsts, stops, ends, np.append(which, np.int32(GOES_ON)), stop)

    def _checked(self, segments: _Segments, num_read: int, source: Source, position: int) -> _Segments:
        """The same segments if they are UTF-8, else refused or repaired."""
        covered = segments.num_bytes
        bad = int(valid_utf8(self._text, 0, covered))
        if bad < 0:
            return segments
        self._refuse(source, position + bad)
        # What is no UTF-8 and U+FFFD are both neither letter, number nor blank: cuts stay where they are.
        repaired = self._text[:covered].tobytes().decode("utf-8", "replace").encode("utf-8")
        whole = repaired + self._text[covered:num_read].tobytes()
        self._reserve(len(whole))
        self._text[: len(whole)] = np.frombuffer(whole, np.uint8)
        found = self._segments(len(repaired), len(whole), cut=False)
        assert found is not None
        return found

    def _refuse(self, source: Source, position: int) -> None:
        if self._errors == "strict":
            raise not_utf8(getattr(source, "name", "the text"), position)

    def _scanned(
        self, segments: _Segments, position: int, covered: int, text: UInt8[np.ndarray, " bytes"]
    ) -> Window:
        room = segments.num_bytes + len(segments.firsts) + 128
        if room > len(self._starts):
            self._starts = np.empty(room, np.int32)
        bounds = np.empty(len(segments.firsts) + 1, np.int32)
        count = self._scan(text, *segments[:3], self._classes, self._starts, bounds)
        return Window(text, self._starts[:count], bounds, segments.specials, position, covered)

    def _batch(self, texts: list[bytes]) -> Window:
        whole = b"".join(texts)
        if self._errors != "lossless" and not _is_utf8(whole):
            for text in texts:
                if not _is_utf8(text):
                    self._refuse(BytesSource(text), _first_bad(text))
            texts = [text.decode("utf-8", "replace").encode("utf-8") for text in texts]
            whole = b"".join(texts)
        self._reserve(len(whole))
        self._text[: len(whole)] = np.frombuffer(whole, np.uint8)
        text_ends = np.fromiter(itertools.accumulate(map(len, texts)), np.int32, len(texts))
        places, which = self._find_in_texts(text_ends)
        stops = np.concatenate([text_ends, places])
        specials = np.concatenate([np.full(len(text_ends), TEXT_ENDS, np.int32), which])
        order = np.argsort(stops, kind="stable")  # a text ends before a special token opens the next
        stops, specials = stops[order], specials[order]
        firsts = np.zeros(len(stops), np.int32)
        firsts[1:] = stops[:-1] + self._lengths[specials[:-1]]
        segments = _Segments(firsts, stops, stops, specials, len(whole))
        return self._scanned(segments, 0, len(whole), self._text)

    def _find_in_texts(
        self, text_ends: Int32[np.ndarray, " texts"]
    ) -> tuple[Int32[np.ndarray, " found"], Int32[np.ndarray, " found"]]:
        """Special tokens inside the texts; what only joining them made is none."""
        places, which = self._find(0, int(text_ends[-1]))
        begins = np.searchsorted(text_ends, places, side="right")
        finishes = np.searchsorted(text_ends, places + self._lengths[which] - 1, side="right")
        if np.array_equal(begins, finishes):
            return places, which
        found = [self._find(*borders) for borders in itertools.pairwise([0, *text_ends.tolist()])]
        return np.concatenate([place for place, _ in found]), np.concatenate([which for _, which in found])


def _is_utf8(data: bytes) -> bool:
    return data.isascii() or _first_bad(data) < 0


def _first_bad(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return -1


def ranges(
    source: Source, pattern: str, specials: Sequence[str] = (), num_bytes: int = RANGE_BYTES
) -> Iterator[tuple[int, int]]:
    """Cut the source for threads, about every `num_bytes`; depends on nothing but the text and `num_bytes`.

    A pattern without a compiled scanner has no safe cuts: one range.
    """
    start = 0
    if pattern in SCANNED_PATTERNS:
        finder = SpecialsFinder(specials) if specials else None
        for border in range(num_bytes, source.size, num_bytes):
            if border > start:
                cut = _cut_behind(source, border, finder)
                if cut is None:
                    break
                yield start, cut
                start = cut
    if start < source.size:
        yield start, source.size


def _cut_behind(source: Source, border: int, finder: SpecialsFinder | None) -> int | None:
    """The first safe cut at or after `border` that no special token covers; None when there is none."""
    before = min(border, finder.longest if finder is not None else 1)  # at least 1: a cut looks back
    size = _CUT_SEARCH_BYTES
    while True:
        text = np.zeros(before + size + PADDING, np.uint8)
        num_read = source.read_into(text[: before + size], border - before)
        at_end = border - before + num_read >= source.size
        stop = num_read if at_end else num_read - before - _LOOKAHEAD_BYTES
        cut = before - 1
        while True:
            cut = int(first_cut(text, cut, stop, num_read, character_classes()))
            if cut < 0:
                break
            if cut >= before and not _covered(text, cut, num_read, finder):
                return border - before + cut
        if at_end:
            return None
        size *= 4


def _covered(text: UInt8[np.ndarray, " bytes"], cut: int, end: int, finder: SpecialsFinder | None) -> bool:
    """Does a special token begin before `cut` and reach over it, wherever the search for it began?"""
    if finder is None:
        return False
    for place in range(max(0, cut - finder.longest + 1), cut):
        found, which = finder.find(text, place, min(end, place + finder.longest))
        if len(found) and found[0] == place and place + len(finder.names[which[0]].encode("utf-8")) > cut:
            return True
    return False
