r"""All pairs of neighbouring symbols: how often each occurs and in which words.

    words     symbols  t h e | t h e n | h e n ...      starts, lengths, counts of the distinct words
    slots     hash of (left, right) -> number of the pair
    records   KEY  COUNT  POSTINGS  NEXT                one pair: half a cache line
                           |
    postings  ...          3  0 1 7                     three words: 0, 1 and 7

A pair is (left << 32 | right). Its list of words is complete from the start, because later merges only take
occurrences away, so the lists stand one behind the other in one array and never grow. Pairs rarer than a
threshold get neither a record nor a list: most pairs are rare, and few of them are ever merged.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import load, prefetch

KEY, COUNT, POSTINGS, NEXT = 0, 1, 2, 3
"""Fields of a record: the pair, its count, where its list of words starts, the next pair in its bucket."""

FIELDS = 4

NUM_PAIRS, NUM_POSTINGS, AT_WORD, AT_PLACE = 0, 1, 2, 3
"""Places in `state`: pairs with a record, entries of `postings` in use, where counting goes on."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys fall far apart
_FOLD = np.uint64(29)  # brings the well-mixed high bits of the product down into the slot's number
_RIGHT = np.int64(0xFFFFFFFF)


class WorkingWords(NamedTuple):
    """The distinct words; merging rewrites and shortens them where they stand.

    Attributes:
        symbols: int32; 64 spare entries behind the last word, for vector loads.
        starts: int64, where each word starts.
        lengths: int32, its present number of symbols.
        counts: int64, how often it occurs.
    """

    symbols: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray


class PairTable(NamedTuple):
    """The pairs; see the picture above.

    Attributes:
        slots: int32, a power of two, at least twice the pairs: number + 1, or 0 for a free slot.
        records: int64, `FIELDS` entries a pair.
        postings: int32: the number of words, then the words.
    """

    slots: np.ndarray
    records: np.ndarray
    postings: np.ndarray


@uncounted_part
def pair_key(left, right):
    """Both symbols in one int64."""
    return (np.int64(left) << 32) | np.int64(right)


@uncounted_part
def pair_parts(key):
    """The two symbols of a key."""
    return key >> 32, key & _RIGHT


@uncounted_part
def slot_of(key, slots, records):
    """The slot that holds the pair, or the free slot where it belongs."""
    last = np.int64(len(slots) - 1)
    mixed = np.uint64(key) * _SPREAD
    slot = np.int64(mixed ^ (mixed >> _FOLD)) & last
    while True:
        number = np.int64(load(slots, slot)) - 1
        if number < 0 or load(records, FIELDS * number + KEY) == key:
            return slot
        slot = (slot + 1) & last


@uncounted_part
def find_pair(key, slots, records):
    """The pair's number, or -1."""
    return np.int64(load(slots, slot_of(key, slots, records))) - 1


@uncounted_loop
def enter_pairs(table, num_pairs):
    """Enter the first `num_pairs` records into `slots`, which is all 0."""
    for number in range(num_pairs):
        key = table.records[FIELDS * number + KEY]
        table.slots[slot_of(key, table.slots, table.records)] = number + 1


@uncounted_loop
def count_pairs(words, table, state, add):
    """Count the pairs of all words; POSTINGS receives the number of words, not yet the place of the list.

    Args:
        words: The words as they are now.
        table: Empty, or with pairs whose counts are 0.
        state: NUM_PAIRS, AT_WORD and AT_PLACE are where the last call stopped.
        add: Whether pairs without a record get one.

    Returns:
        Whether all is counted; if not, make the table larger and call again.
    """
    slots, records = table.slots, table.records
    num_pairs = state[NUM_PAIRS]
    room = min(len(records) // FIELDS, len(slots) // 2)
    skip = state[AT_PLACE]
    for word in range(state[AT_WORD], len(words.counts)):
        start, count = words.starts[word], words.counts[word]
        for place in range(start + skip, start + words.lengths[word] - 1):
            key = pair_key(load(words.symbols, place), load(words.symbols, place + 1))
            slot = slot_of(key, slots, records)
            number = np.int64(load(slots, slot)) - 1
            if number < 0:
                if not add:
                    continue
                if num_pairs == room:
                    state[NUM_PAIRS], state[AT_WORD], state[AT_PLACE] = num_pairs, word, place - start
                    return False
                number = num_pairs
                num_pairs += 1
                slots[slot] = num_pairs
                _clear(records, number, key)
            record = FIELDS * number
            records[record + COUNT] += count
            if records[record + NEXT] != word:
                records[record + NEXT] = word
                records[record + POSTINGS] += 1
        skip = np.int64(0)
    state[NUM_PAIRS] = num_pairs
    return True


@uncounted_part
def _clear(records, number, key):
    """Start a record; NEXT is the last word counted."""
    record = FIELDS * number
    records[record + KEY], records[record + COUNT] = key, 0
    records[record + POSTINGS], records[record + NEXT] = 0, -1


@uncounted_part
def collect_postings(words, table):
    """Enter every word into the lists of its pairs, which are empty."""
    slots, records, postings = table.slots, table.records, table.postings
    for word in range(len(words.counts)):
        start = words.starts[word]
        for place in range(start, start + words.lengths[word] - 1):
            key = pair_key(load(words.symbols, place), load(words.symbols, place + 1))
            number = find_pair(key, slots, records)
            if number >= 0:
                first = records[FIELDS * number + POSTINGS]
                size = np.int64(postings[first])
                if size == 0 or postings[first + size] != word:
                    postings[first] = size + 1
                    postings[first + size + 1] = word


@uncounted_part
def prefetch_word(words, word):
    """Ask for the word's symbols."""
    prefetch(words.symbols, load(words.starts, np.int64(word)))
