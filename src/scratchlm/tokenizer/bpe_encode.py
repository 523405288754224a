r"""Text -> ids by byte-pair encoding, fast: each distinct piece is merged once, then copied from a cache.

    text -> windows of pieces (windows) -> ids of each piece (compiled.encode) -> one array of ids

The result equals `bpe_reference.encode_reference`. Inside, tokens are symbols: the 256 bytes, then what the
merges make, in order of rank; ids are looked up last, so they may be numbered in any order. Threads share the
merges and nothing else: a call borrows a workspace with a cache of its own, gives it back, and the next call
finds the cache warm.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt, UInt8

from scratchlm.tokenizer.batches import Documents
from scratchlm.tokenizer.compiled.encode import BATCH, encode_window
from scratchlm.tokenizer.compiled.encode_short import NO_RANK, empty_pairs, fill_pairs
from scratchlm.tokenizer.compiled.seams import find_contexts, no_seams
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.piece_cache import CACHE_BYTES, PieceCache, WholePieces
from scratchlm.tokenizer.pretokenize import SCANNED_PATTERNS, choose_scanner
from scratchlm.tokenizer.scan_regex import regex_scanner
from scratchlm.tokenizer.sources import BytesSource, Errors, Source
from scratchlm.tokenizer.streaming import EncodedPart, utf8_of
from scratchlm.tokenizer.windows import TEXT_ENDS, WINDOW_BYTES, Splitter, Window

_BYTES = [bytes([value]) for value in range(256)]

_OUTPUT_SPARE = 16
"""Ids that the loops may write behind the last one: a hit writes 8 bytes whatever it holds."""

_LEVELS_SPARE = 256
"""Places in the tree of ranks beyond its leaves and a fifteenth of them: each level is filled up to 16."""


class _Merges(NamedTuple):
    """What the compiled loops know of a tokenizer; see `compiled.encode`."""

    byte_pairs: Int32[np.ndarray, "65536"]
    pairs: UInt[np.ndarray, " slots"]
    products: Int32[np.ndarray, " ranks"]
    ids: UInt[np.ndarray, " symbols"]


def _symbols_and_ranks(
    ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], dtype: np.dtype
) -> _Merges:
    """Number the tokens and enter the merges in tables."""
    products = [left + right for left, right in merges]
    parts = chain.from_iterable(merges)  # parts that no merge makes never occur, but keep their place
    symbols = {token: symbol for symbol, token in enumerate(dict.fromkeys(chain(_BYTES, products, parts)))}
    if max(len(symbols), len(merges)) > NO_RANK:
        raise ValueError(f"{len(merges)} merges of {len(symbols)} tokens: at most {NO_RANK} are possible.")
    lefts, rights, made = (
        np.fromiter(map(symbols.__getitem__, column), np.int32, len(merges))
        for column in ((left for left, _ in merges), (right for _, right in merges), products)
    )
    pairs = empty_pairs(len(merges))
    fill_pairs(pairs, lefts, rights)
    byte_pairs = np.full(1 << 16, NO_RANK, np.int32)
    of_bytes = np.flatnonzero((lefts < 256) & (rights < 256))[::-1]  # the first of equal pairs counts
    byte_pairs[(lefts[of_bytes] << 8) | rights[of_bytes]] = of_bytes
    symbol_ids = np.fromiter(map(ids.__getitem__, symbols), dtype, len(symbols))
    return _Merges(byte_pairs, pairs, made, symbol_ids)


class _Workspace:
    """One thread's cache and buffers."""

    def __init__(self, encoder: "Encoder") -> None:
        self._tables = (tuple(encoder.merges), tuple(encoder.seams))
        self._pattern = encoder.pattern
        self._dtype = encoder.dtype
        self._cache = PieceCache(encoder.dtype, num_bytes=encoder.cache_bytes, whole=encoder.whole)
        self._keys = np.empty(3 * BATCH, np.uint64)
        self._work: tuple[np.ndarray, ...] = ()
        self._reserve(1 << 10)
        self._scan = encoder.scan
        self._classes = character_classes()
        self._splitters: dict[tuple[tuple[str, ...], str], Splitter] = {}
        self._no_specials = np.full(1, -1, np.int64)
        self._first, self._stop = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._bounds, self._id_bounds = np.zeros(2, np.int32), np.zeros(2, np.int64)

    def _reserve(self, num_bytes: int) -> None:
        """Take buffers for a window of `num_bytes`."""
        symbols = np.empty(num_bytes + _LEVELS_SPARE, np.int32)
        ranks = np.empty(num_bytes + num_bytes // 15 + _LEVELS_SPARE, np.int32)
        alive = np.empty(num_bytes // 64 + 2, np.uint64)
        self._work = (symbols, ranks, alive, np.empty(16, np.int64))
        self._text = np.zeros(num_bytes + PADDING, np.uint8)
        self._starts = np.empty(num_bytes + PADDING + 1, np.int32)
        self.output = np.empty(num_bytes + _OUTPUT_SPARE, self._dtype)
        self._room = num_bytes

    def splitter(self, specials: tuple[str, ...] = (), errors: Errors = "lossless") -> Splitter:
        """The splitter for these settings; that of the last settings is kept."""
        key = (specials, errors)
        if key not in self._splitters:
            self._splitters = {key: Splitter(self._pattern, specials, errors=errors)}
        return self._splitters[key]

    def encode_short(self, data: bytes) -> int:
        """Write the ids of one text that fits into a window to `output`; return how many."""
        size = len(data)
        if size > self._room:
            self._reserve(max(size, min(2 * size, WINDOW_BYTES)))
        self._text[:size] = np.frombuffer(data, np.uint8)
        self._stop[0] = size
        stop, starts, bounds = self._stop, self._starts, self._bounds
        count = self._scan(self._text, self._first, stop, stop, self._classes, starts, bounds)
        self._cache.make_room(count)
        return self._run(self._text, starts, bounds, self._no_specials, self.output, self._id_bounds)

    def encode_window(
        self,
        window: Window,
        output: UInt[np.ndarray, " room"],
        special_ids: Int64[np.ndarray, " specials"] | None = None,
    ) -> Int64[np.ndarray, " bounds"]:
        """Write the ids of a window to `output`; return where each segment's ids start, and their number."""
        size = len(window.text) - PADDING
        if size > self._room:
            self._reserve(size)
        id_bounds = np.empty(len(window.bounds), np.int64)
        if special_ids is None:
            behind = np.full(len(window.specials), -1, np.int64)
        else:
            behind = special_ids[window.specials]  # the last two entries are for TEXT_ENDS and GOES_ON
        self._cache.make_room(len(window.starts))
        self._run(window.text, window.starts, window.bounds, behind, output, id_bounds)
        return id_bounds

    def _run(self, text: Any, starts: Any, bounds: Any, behind: Any, output: Any, id_bounds: Any) -> int:
        return encode_window(
            text,
            starts,
            bounds,
            behind,
            self._cache.longest,
            output,
            id_bounds,
            self._tables,
            self._cache.arrays,
            self._cache.used,
            self._work,
            self._keys,
        )


class Encoder:
    """Encodes with one list of merges; one serves any number of threads."""

    def __init__(
        self,
        ids: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        *,
        pattern: str,
        ignore_merges: bool = False,
        dtype: np.dtype | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Prepare the tables.

        Args:
            ids: Bytes -> id for the 256 bytes and every part and product of a merge, in any order.
            merges: Pairs in order of rank; of equal pairs the first counts.
            pattern: Name of the split pattern.
            ignore_merges: A piece that is in `ids` becomes that id, whether the merges make it or not.
            dtype: uint16 or uint32, of the ids that come out; by default the smaller one that holds `ids`.
            cache_bytes: Limit of each thread's cache; the ids do not depend on it.

        Raises:
            ValueError: There are more than two million merges, or no such pattern.
        """
        smallest = np.uint16 if max(ids.values()) < 1 << 16 else np.uint32
        self.dtype = np.dtype(smallest if dtype is None else dtype)
        self.pattern = pattern
        self.merges = _symbols_and_ranks(ids, merges, self.dtype)
        self.whole = WholePieces(dict(ids), self.dtype) if ignore_merges else None
        # A part of a piece that is a token would become that token as well: such pieces stay whole.
        self.seams = no_seams() if ignore_merges else find_contexts({left + right for left, right in merges})
        self.cache_bytes = cache_bytes
        self.scan: Callable[..., int] = (
            choose_scanner(pattern) if pattern in SCANNED_PATTERNS else regex_scanner(pattern)
        )
        self._free: list[_Workspace] = []

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[_Workspace]:
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = _Workspace(self)
        yield workspace
        self._free.append(workspace)  # not after an error or an interrupt: it may be half changed

    def encode_text(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Return the ids of `text`, in which special tokens are plain text."""
        data = utf8_of(text)
        with self._workspace() as workspace:
            if len(data) <= WINDOW_BYTES:
                count = workspace.encode_short(data)  # may replace the output
                return workspace.output[:count].copy()
            output = np.empty(len(data) + _OUTPUT_SPARE, self.dtype)
            count = 0
            for window in workspace.splitter().windows(BytesSource(data)):
                count += int(workspace.encode_window(window, output[count:])[-1])
        output.resize(count, refcheck=False)  # gives the rest back to the system without copying
        return output

    def count_tokens(self, text: str) -> int:
        """The number of ids of `text`, in which special tokens are plain text."""
        data = utf8_of(text)
        with self._workspace() as workspace:
            if len(data) <= WINDOW_BYTES:
                return workspace.encode_short(data)
            output = np.empty(0, self.dtype)
            count = 0
            for window in workspace.splitter().windows(BytesSource(data)):
                output = _roomy(output, window)
                count += int(workspace.encode_window(window, output)[-1])
        return count

    def encode_texts(self, texts: Iterable[str]) -> Documents:
        """Return the ids of several texts, in which special tokens are plain text; short ones share calls."""
        output = np.empty(0, self.dtype)
        ids, ends = [output], [np.zeros(1, np.int64)]
        count = 0
        with self._workspace() as workspace:
            for window in workspace.splitter().batches(map(utf8_of, texts)):
                output = _roomy(output, window)
                bounds = workspace.encode_window(window, output)
                ids.append(output[: bounds[-1]].copy())
                ends.append(bounds[1:][window.specials == TEXT_ENDS] + count)
                count += int(bounds[-1])
        return Documents(np.concatenate(ids), np.concatenate(ends))

    def encode_spans(
        self,
        text: UInt8[np.ndarray, " bytes"],
        firsts: Int64[np.ndarray, " spans"],
        stops: Int64[np.ndarray, " spans"],
        behind: int,
    ) -> Documents:
        """Return the ids of text[first:stop] for each span, with the id `behind` after each.

        Args:
            text: As `Splitter.spans`.
            firsts: As `Splitter.spans`.
            stops: As `Splitter.spans`.
            behind: An id of this tokenizer.
        """
        special_ids = np.array([behind, -1], np.int64)  # for TEXT_ENDS, GOES_ON
        output = np.empty(int((stops - firsts).sum()) + len(firsts) + _OUTPUT_SPARE, self.dtype)
        offsets, count = [np.zeros(1, np.int64)], 0
        with self._workspace() as workspace:
            for window in workspace.splitter().spans(text, firsts, stops):
                bounds = workspace.encode_window(window, output[count:], special_ids)
                offsets.append(bounds[1:] + count)
                count += int(bounds[-1])
        output.resize(count, refcheck=False)  # gives the rest back to the system without copying
        return Documents(output, np.concatenate(offsets))

    def encode(
        self,
        source: Source,
        start: int = 0,
        stop: int | None = None,
        *,
        specials: Mapping[str, int] | None = None,
        errors: Errors = "lossless",
    ) -> Iterator[EncodedPart]:
        """Encode source[start:stop] in parts that are valid until the next one.

        Args:
            source: The bytes.
            start: 0, or where a range of `windows.ranges` begins.
            stop: The source's size, or where the range ends.
            specials: Special tokens that end a segment -> the id that then follows it, or -1 for none.
            errors: What happens to bytes that are no UTF-8.

        Raises:
            ValueError: errors="strict" and the source is no UTF-8; or a special token's id is too large.
        """
        specials = specials or {}
        special_ids = np.array([*specials.values(), -1, -1], np.int64)
        if special_ids.max() > np.iinfo(self.dtype).max:
            raise ValueError(
                f"special token id {special_ids.max()} does not fit into {self.dtype}; "
                "make the encoder with dtype=np.uint32."
            )
        output = np.empty(0, self.dtype)
        with self._workspace() as workspace:
            for window in workspace.splitter(tuple(specials), errors).windows(source, start, stop):
                output = _roomy(output, window)
                bounds = workspace.encode_window(window, output, special_ids)
                yield EncodedPart(output[: bounds[-1]], bounds, window.specials, window.num_bytes)


def _roomy(output: UInt[np.ndarray, " given"], window: Window) -> UInt[np.ndarray, " enough"]:
    """`output`, or a larger array, with room for an id for each byte and each segment."""
    room = len(window.text) + len(window.specials) + _OUTPUT_SPARE
    return output if len(output) >= room else np.empty(room, output.dtype)
