"""Counted words -> the merges of Scaffold-BPE and its scaffolds, from ordinary merges.

    learn_merges    a b, c d, ab c, ...                   ordinary byte-pair encoding, some merges more
    count_merges    9,    7,   5                          how often each pair was there and was merged
    _Replay         ab has 9 - 5 = 4 left: fewer than the 7 of the next candidate, so it is a scaffold

A scaffold changes nothing in the text, so the order of the merges is that of ordinary byte-pair encoding;
only what counts as vocabulary differs, and so how many merges it takes. So the ordinary trainer learns the
merges, one pass over the words counts what each of them did, and a replay in plain Python goes through the
counts, marks, unmarks, and stops when enough tokens are visible.

Source: Lian et al. 2024, https://arxiv.org/abs/2404.17808, algorithm 1; `scaffold_reference` follows it step
by step, says where the paper leaves a choice, and is the oracle of this file.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.bpe_reference import Pair
from scratchlm.tokenizer.compiled.encode_short import empty_pairs, fill_pairs
from scratchlm.tokenizer.compiled.scaffold import count_merges
from scratchlm.tokenizer.merging import Progress, Words, learn_merges
from scratchlm.tokenizer.scaffold_reference import ScaffoldMerges

SPARE_MERGES = 0.2
"""Merges learnt beyond the vocabulary, as a share of it; more where they do not suffice. In English, 11 to
15 % were scaffolds for 4,000 to 32,000 visible tokens (experiments/2026-11-scaffold-bpe)."""

_NOTHING = (0, -1)
"""In place of a candidate's frequency and order: below every one that occurs."""


def learn_scaffolds(words: Words, num_visible: int, *, progress: Progress | None = None) -> ScaffoldMerges:
    """Learn merges from counted words until `num_visible` of their tokens are no scaffolds.

    Args:
        words: Distinct pieces with counts; left as they are.
        num_visible: Tokens wanted beside the bytes; fewer come out when no pair is left.
        progress: Called as (phase, done, total).
    """
    if num_visible == 0:
        return ScaffoldMerges([], set())
    spare = SPARE_MERGES
    while True:
        num_merges = int(num_visible * (1 + spare)) + 1
        copied = words._replace(symbols=words.symbols.copy())  # learning uses the symbols up
        merges = learn_merges(copied, num_merges, progress=progress)
        replay = _Replay(merges, _count_merges(words, merges), complete=len(merges) < num_merges)
        if replay.run(num_visible):
            return replay.result()
        spare *= 2


class _Counts(NamedTuple):
    """Of each merge: what it joins (a byte, or 256 + another merge), and what happened when its turn came."""

    parts: list[tuple[int, int]]
    pairs: list[int]
    merges: list[int]


def _count_merges(words: Words, merges: Sequence[Pair]) -> _Counts:
    symbols = {bytes([value]): value for value in range(256)}
    symbols |= {left + right: 256 + rank for rank, (left, right) in enumerate(merges)}
    parts = [(symbols[left], symbols[right]) for left, right in merges]
    columns = np.array(parts, np.int32).reshape(-1, 2).T.copy()
    pair_counts, merge_counts = np.zeros(len(merges), np.int64), np.zeros(len(merges), np.int64)
    ranks = np.empty(int(np.diff(words.starts).max(initial=0)) + 1, np.int64)
    pairs = empty_pairs(len(merges))
    fill_pairs(pairs, columns[0], columns[1])
    count_merges(words.symbols.copy(), words.starts, words.counts, pairs, pair_counts, merge_counts, ranks)
    return _Counts(parts, pair_counts.tolist(), merge_counts.tolist())


class _Replay:
    """Goes through the merges in order, marking and unmarking scaffolds."""

    def __init__(self, merges: Sequence[Pair], counts: _Counts, *, complete: bool) -> None:
        self._merges, self._counts, self._complete = merges, counts, complete
        # Ties go to the greatest pair: its place among all pairs in order stands for its bytes.
        self._order = [0] * len(merges)
        for place, rank in enumerate(sorted(range(len(merges)), key=merges.__getitem__)):
            self._order[rank] = place
        self._frequencies = list(counts.merges)  # of the tokens that were merged so far
        self._scaffolds: set[int] = set()
        self._waiting: list[tuple[int, int, int]] = []  # a heap of scaffolds: -frequency, -order, rank
        self._made = 0

    def run(self, num_visible: int) -> bool:
        """Stop at `num_visible` tokens that are no scaffolds; False where more merges must be known."""
        while self._made - len(self._scaffolds) < num_visible:
            waiting, pair = self._best_scaffold(), self._next_pair()
            if max(waiting, pair) == _NOTHING:
                break
            if waiting > pair:
                self._scaffolds.remove(self._waiting[0][2])
                continue
            self._made += 1
            if self._made == len(self._merges) and not self._complete:
                return False
            self._mark_parts(self._made - 1)
        return True

    def result(self) -> ScaffoldMerges:
        """The merges made and what is a scaffold at the end."""
        products = [left + right for left, right in self._merges]
        return ScaffoldMerges(list(self._merges[: self._made]), {products[rank] for rank in self._scaffolds})

    def _mark_parts(self, rank: int) -> None:
        left, right = self._counts.parts[rank]
        learnt = [part - 256 for part in (left, right) if part >= 256]  # bytes always stay visible
        for part in learnt:
            self._frequencies[part] -= self._counts.merges[rank]
        next_frequency = max(self._best_scaffold(), self._next_pair())[0]
        for part in learnt:
            if part not in self._scaffolds and self._frequencies[part] < next_frequency:
                self._scaffolds.add(part)
                heapq.heappush(self._waiting, self._entry(part))

    def _next_pair(self) -> tuple[int, int]:
        if self._made == len(self._merges):
            return _NOTHING
        return self._counts.pairs[self._made], self._order[self._made]

    def _best_scaffold(self) -> tuple[int, int]:
        """Frequency and order of the top of the heap, after putting right what has changed since."""
        while self._waiting:
            rank = self._waiting[0][2]
            entry = self._entry(rank)
            if rank not in self._scaffolds or entry[0] == 0:
                heapq.heappop(self._waiting)
            elif entry != self._waiting[0]:
                heapq.heapreplace(self._waiting, entry)  # frequencies only fall: its turn comes later
            else:
                return -entry[0], -entry[1]
        return _NOTHING

    def _entry(self, rank: int) -> tuple[int, int, int]:
        return -self._frequencies[rank], -self._order[rank], rank
