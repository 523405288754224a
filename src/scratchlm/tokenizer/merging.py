"""Distinct words with counts in, the merges of byte-pair encoding in order out.

    learn_merges(words, 2)   words: "aab" 3 times, "ab" twice   ->   [(a, b), (a, ab)]

Rounds: count all pairs; drop those rarer than a threshold (best count / 512); merge the best pair and keep
all counts true until none reaches the threshold; start again with a lower one. That is exact: old pairs only
lose count, and a new pair is dropped only where it is rarer than the threshold, hence than all that are
merged in this round. Two or three rounds do for 32,000 merges, and most pairs never cost anything.

The compiled loops are in compiled/: pair_table (counts, lists of words), pair_queue (who goes next), merges
(the loop). Here the arrays are made, enlarged and taken apart. Equal to `bpe_reference.train_bpe_reference`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Int32, Int64

from scratchlm.tokenizer.base import check_name
from scratchlm.tokenizer.bpe_reference import Pair, Tie, byte_order
from scratchlm.tokenizer.compiled import merges as loop
from scratchlm.tokenizer.compiled import pair_queue as queue
from scratchlm.tokenizer.compiled import pair_table as table
from scratchlm.tokenizer.compiled.superwords import byte_shapes, joined_shape, num_words
from scratchlm.tokenizer.merge_replay import WordParts

Progress = Callable[[str, int, int], None]
"""Called as (phase, done, total): "count" in bytes of text (total 0 where unknown), "replay" for given merges
and "merge" in merges."""

SYMBOL_PADDING = 64
"""Spare symbols behind the last word: vector loads reach over its end."""

_ROUND_RATIO = 512
"""A round goes down to its best count / 512: 64 costs more recounts, 4,096 more pairs that are never merged
(books, 32,000 merges: both 10 to 25 % slower)."""

_MERGES_PER_REPORT = 512
_PAIRS_AT_FIRST = 1 << 14
_TOKEN_BYTES = 12
"""Room for the bytes of the tokens at first, for each; English needs 7, code 9."""


class Words(NamedTuple):
    """Distinct pieces of text as symbols, each with its number of occurrences.

    Attributes:
        symbols: The bytes of word after word; `SYMBOL_PADDING` more entries of any value at the end.
        starts: Start of each word in `symbols`, and the end of the last one.
        counts: Occurrences of each word.
    """

    symbols: Int32[np.ndarray, " symbols"]
    starts: Int64[np.ndarray, " borders"]
    counts: Int64[np.ndarray, " words"]


def words_of(counts: Iterable[tuple[bytes, int]]) -> Words:
    """Make `Words` from pieces and their counts: the plain way, for small corpora."""
    pieces = [(piece, count) for piece, count in counts if len(piece) > 1]
    joined = np.frombuffer(b"".join(piece for piece, _ in pieces), np.uint8)
    lengths = [len(piece) for piece, _ in pieces]
    return Words(
        np.pad(joined.astype(np.int32), (0, SYMBOL_PADDING)),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([count for _, count in pieces], np.int64),
    )


def learn_merges(
    words: Words,
    num_merges: int,
    *,
    tie: Tie = "bytes",
    given: Sequence[Pair] = (),
    max_words: int | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Learn up to `num_merges` merges.

    Args:
        words: `words.symbols` is used as working memory: it holds something else afterwards.
        num_merges: How many to learn, the given ones not counted.
        tie: Which of several equally frequent pairs goes first; see `Tie`.
        given: Merges to apply first, in this order; learning goes on from there.
        max_words: The most words of a text that a new token may touch; one with ": " is then not made
            either (see `compiled.superwords`). None: no such limits.
        progress: Told every few hundred merges how far it is.

    Returns:
        The new merges in order; fewer than asked for when no pair is left.

    Raises:
        ValueError: The tie rule is not known, max_words is less than 1, or the given merges contradict
            themselves.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words}: must be at least 1, or None for no limit.")
    check_name(tie, get_args(Tie), "tie rule")
    given_keys = _given_keys(given)
    if len(given):
        _check_reachable(given, given_keys, tie)
    merger = _Merger(words, len(given), num_merges, tie)
    if max_words is not None:
        merger.state[loop.MAX_WORDS] = max_words
    report = progress or (lambda phase, done, total: None)
    if len(given):
        merger.replay(given, given_keys, report)
    merger.learn(report)
    return merger.learnt()


def _given_keys(given: Sequence[Pair]) -> Int64[np.ndarray, " merges"]:
    """The given merges as pairs of symbols: 0-255 the bytes, then the merges in order."""
    symbols = {bytes([value]): value for value in range(256)}
    keys = []
    for rank, (left, right) in enumerate(given):
        for part in (left, right):
            if part not in symbols:
                raise ValueError(
                    f"given merge {rank} ({left!r}, {right!r}): {part!r} is neither a byte nor made by an "
                    "earlier merge; give the whole list, in the order in which it was learnt."
                )
        keys.append(symbols[left] << 32 | symbols[right])
        if symbols.setdefault(left + right, 256 + rank) != 256 + rank:
            raise ValueError(
                f"given merge {rank} ({left!r}, {right!r}): {left + right!r} is made a second time."
            )
    return np.array(keys, np.int64)


def _check_reachable(given: Sequence[Pair], keys: Int64[np.ndarray, " merges"], tie: Tie) -> None:
    """Each token, taken alone, must become one symbol: else learning could make it a second time."""
    tokens = words_of((left + right, 0) for left, right in given)
    merger = _Merger(tokens, len(given), 0, tie)
    merger.replay(given, keys, lambda phase, done, total: None)
    for rank in np.flatnonzero(merger.words.lengths != 1)[:1].tolist():
        left, right = given[rank]
        raise ValueError(
            f"given merge {rank} ({left!r}, {right!r}): earlier merges split {left + right!r} in another "
            "way, so that this token is never reached; such a list cannot be extended."
        )


class _Merger:
    """The arrays of one training."""

    def __init__(self, words: Words, num_given: int, num_merges: int, tie: Tie) -> None:
        self.starts = words.starts
        self.words = _working(words)
        self.num_given = num_given
        possible = int(words.starts[-1]) - len(words.counts)  # each merge takes at least one symbol away
        self.num_merges = num_given + min(num_merges, possible)
        num_symbols = 256 + self.num_merges
        lines = np.zeros((num_symbols, 2, loop.SIDE), np.int64)
        lines[:, :, loop.LAST_WORD] = -1
        touched, notes = np.empty(2 * num_symbols, np.int32), np.empty(0, np.int64)
        self.neighbours = loop.Neighbours(lines.ravel(), touched, notes)
        self.state = np.zeros(loop.STATE_SIZE, np.int64)
        self.state[loop.NUM_GIVEN], self.state[loop.LONGEST] = num_given, 1
        self.state[loop.MAX_WORDS] = np.iinfo(np.int64).max
        self.state[queue.TIE] = _TIES.get(tie, queue.TIE_ORDER)
        self.tokens = _byte_tokens(num_symbols, tie)
        self.merges = np.empty(self.num_merges, np.int64)
        self.pairs = _empty_table(0)
        self.queue = _empty_queue(0)

    def replay(self, given: Sequence[Pair], keys: Int64[np.ndarray, " merges"], report: Progress) -> None:
        """Apply the given merges to the distinct parts of the words, then put the words together again."""
        symbols, counts = self.words.symbols, self.words.counts
        parts = WordParts(symbols, self.starts, given, padding=SYMBOL_PADDING)
        self.words = _working(Words(parts.symbols, parts.starts, np.zeros(len(parts.starts) - 1, np.int64)))
        self.pairs = _empty_table(len(given))  # the only pairs with records: no other will be merged
        records = self.pairs.records.reshape(-1, table.FIELDS)[: len(given)]
        records[:, table.KEY] = keys
        records[:, table.COUNT : table.POSTINGS + 1] = 0
        records[:, table.NEXT] = -1
        self.state[table.NUM_PAIRS] = len(given)
        table.enter_pairs(self.pairs, len(given))
        self.state[table.AT_WORD] = self.state[table.AT_PLACE] = 0
        table.count_pairs(self.words, self.pairs, self.state, False)
        self._start_round(records, threshold=0)
        self._merge(len(given), "replay", report)
        self.words = _working(Words(symbols, parts.join(symbols, self.words.lengths), counts))

    def learn(self, report: Progress) -> None:
        """Learn the other merges, round after round."""
        while self.state[loop.NUM_MERGES] < self.num_merges:
            records = self._count()
            best = int(records[:, table.COUNT].max(initial=0))
            if best < 1:
                return
            self._start_round(records, threshold=max(1, best // _ROUND_RATIO))
            self._merge(self.num_merges, "merge", report)

    def learnt(self) -> list[Pair]:
        """The bytes of the pairs merged, without the given ones."""
        made = [bytes([value]) for value in range(256)]
        learnt = []
        lefts, rights = _symbols_of(self.merges[: self.state[loop.NUM_MERGES]])
        for left, right in zip(lefts.tolist(), rights.tolist(), strict=True):
            learnt.append((made[left], made[right]))
            made.append(made[left] + made[right])
        return learnt[self.num_given :]

    def _count(self) -> Int64[np.ndarray, "pairs fields"]:
        """Count all pairs of the words as they are; return the records of those that may become a token."""
        self.queue = _empty_queue(0)
        self.pairs = _empty_table(_PAIRS_AT_FIRST)
        self.state[table.NUM_PAIRS] = self.state[table.AT_WORD] = self.state[table.AT_PLACE] = 0
        while not table.count_pairs(self.words, self.pairs, self.state, True):
            self._grow_pairs()
        records = self.pairs.records.reshape(-1, table.FIELDS)[: self.state[table.NUM_PAIRS]]
        if self.state[loop.MAX_WORDS] == np.iinfo(np.int64).max:
            return records
        shapes = (self.tokens.shapes[symbols] for symbols in _symbols_of(records[:, table.KEY]))
        return records[num_words(joined_shape(*shapes)) <= self.state[loop.MAX_WORDS]]

    def _start_round(self, records: Int64[np.ndarray, "pairs fields"], threshold: int) -> None:
        """Keep the pairs that reach the threshold, list their words, fill the queue."""
        state = self.state
        records = records[records[:, table.COUNT] >= threshold]
        ends = np.cumsum(records[:, table.POSTINGS] + 1)  # each list of words after its length
        num_pairs, num_postings = len(records), int(ends[-1]) if len(ends) else 0
        records[1:, table.POSTINGS], records[:1, table.POSTINGS] = ends[:-1], 0
        capacity = 2 * (num_pairs + len(self.tokens.heads))
        # merging a place takes a symbol away and adds at most two pairs with one word each
        num_symbols = int(self.words.lengths.sum())
        room = num_postings + 4 * num_symbols
        self.pairs = _empty_table(capacity)._replace(postings=np.empty(room, np.int32))
        # likewise two notes for each place; memory that is never written is never taken
        self.neighbours = self.neighbours._replace(notes=np.empty(num_symbols + 1, np.int64))
        self.pairs.records[: records.size] = records.ravel()
        self.queue = _empty_queue(capacity)
        table.enter_pairs(self.pairs, num_pairs)
        loop.start_round(self.words, self.pairs, self.queue.buckets, num_pairs)
        state[table.NUM_PAIRS], state[table.NUM_POSTINGS] = num_pairs, num_postings
        state[queue.HEAP_SIZE], state[queue.LEVEL] = 0, queue.HEAP_COUNT + 1
        state[queue.THRESHOLD] = threshold

    def _merge(self, until: int, phase: str, report: Progress) -> None:
        """Merge until there are so many merges or no pair reaches the threshold."""
        state = self.state
        offset = self.num_given if phase == "merge" else 0
        while state[loop.NUM_MERGES] < until:
            step = min(until, int(state[loop.NUM_MERGES]) + _MERGES_PER_REPORT)
            outcome = loop.merge_pairs(
                self.words, self.pairs, self.queue, self.tokens, self.neighbours, self.merges, state, step
            )
            if outcome == loop.GROW_PAIRS:
                self._grow_pairs()
            elif outcome == loop.GROW_TOKENS:
                arena = self.tokens.arena
                more = np.zeros(len(arena) + 2 * int(state[loop.LONGEST]), np.uint8)
                self.tokens = self.tokens._replace(arena=np.concatenate([arena, more]))
            else:
                report(phase, int(state[loop.NUM_MERGES]) - offset, until - offset)
            if outcome == loop.EXHAUSTED:
                return

    def _grow_pairs(self) -> None:
        """Make room for twice as many pairs."""
        capacity = 2 * (len(self.pairs.records) // table.FIELDS)
        grown = _empty_table(capacity)
        grown.records[: len(self.pairs.records)] = self.pairs.records
        self.pairs = grown._replace(postings=self.pairs.postings)
        table.enter_pairs(self.pairs, int(self.state[table.NUM_PAIRS]))
        entries = 2 * int(self.state[queue.HEAP_SIZE])
        heap = _empty_queue(capacity).heap
        heap[:entries] = self.queue.heap[:entries]
        self.queue = self.queue._replace(heap=heap)


_TIES = {"bytes": queue.TIE_GREATEST_BYTES, "assembled_bytes": queue.TIE_SMALLEST_BYTES}


def _working(words: Words) -> table.WorkingWords:
    lengths = np.diff(words.starts).astype(np.int32)
    return table.WorkingWords(words.symbols, words.starts[:-1], lengths, words.counts)


def _symbols_of(
    keys: Int64[np.ndarray, " pairs"],
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """The left and the right symbols of pairs."""
    return keys >> 32, keys & 0xFFFFFFFF


def _empty_table(num_pairs: int) -> table.PairTable:
    """Room for at least so many pairs."""
    capacity = max(num_pairs, 1 << 10)
    return table.PairTable(
        np.zeros(1 << (2 * capacity - 1).bit_length(), np.int32),
        np.empty(table.FIELDS * capacity, np.int64),
        np.empty(0, np.int32),
    )


def _empty_queue(num_pairs: int) -> queue.Queue:
    return queue.Queue(np.zeros(queue.HEAP_COUNT + 1, np.int32), np.empty(2 * num_pairs + 2, np.int64))


def _byte_tokens(num_symbols: int, tie: Tie) -> queue.Tokens:
    """The single bytes, and room for the other symbols."""
    starts = np.zeros(num_symbols + 1, np.int64)
    starts[:257] = np.arange(257)
    heads = np.empty(num_symbols, np.uint64)
    values = np.arange(256, dtype=np.uint64)
    if tie in _TIES:
        heads[:256] = values << np.uint64(56)
        heads[:256] ^= np.uint64(0 if tie == "bytes" else 2**64 - 1)
    else:
        heads[np.frombuffer(b"".join(byte_order(tie)), np.uint8)] = ~values
    arena = np.zeros(256 + _TOKEN_BYTES * num_symbols, np.uint8)
    arena[:256] = np.arange(256)
    shapes = np.zeros(num_symbols, np.int64)
    shapes[:256] = byte_shapes()
    return queue.Tokens(arena, starts, heads, shapes)
