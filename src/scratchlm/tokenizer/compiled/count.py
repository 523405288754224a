r"""Pieces of windows -> each distinct piece once, with its count: the table behind training.

    " the" -> hash -> slot     20 74 68 65 00 00 00 00 | 00 00 00 00 00 00 00 04 | count | unused
                               the bytes                 more bytes, the length

A piece of up to 15 bytes is its own key: two uint64, compared at once, beside its count in one slot of 32
bytes, half a cache line. Pieces come in blocks: a first pass packs keys, hashes and asks for the slots'
cache lines, a second pass finds them there (without this, 642 in place of 825 MB/s). Longer pieces, less
than one in fifty, have a table of their own with hash, place, length and count; their bytes are copied into
an arena, because a window's text does not last.

The slot where a piece belongs is given by the highest bits of its hash, so every table of every size has its
pieces in about the same order: adding one table to another walks through both from start to end.

Source of the layout: open addressing with linear probing, Knuth, "The Art of Computer Programming", volume
3, section 6.4, algorithm L; the plain twin is `bpe_reference.count_words`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt64

from scratchlm.tokenizer.compiled.pages import zeroed_table
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    PADDING,
    highest_bit,
    load,
    load_8_bytes,
    pack_key,
    prefetch,
    store,
    store_8_bytes,
)
from scratchlm.tokenizer.merging import SYMBOL_PADDING, Words

LONGEST_KEY = 15
"""Bytes of a piece that fits into its key: sixteen, less one for the length."""

_SLOT = 4  # uint64 in a slot of either table: LOW, HIGH, COUNT here, HASH, START, LENGTH there
_LOW, _HIGH, _COUNT = 0, 1, 2
_HASH, _START, _LENGTH = 0, 1, 3
_BLOCK = 512  # pieces between the two passes: their slots' lines, 32 KB, stay in the first-level cache
_PARTS = 16  # a table is added in parts: room for all its pieces being new would be twice what is needed
_FULLEST = 0.75  # of the slots; before a window, of which every piece might be new: then it is about half

# Multipliers that spread consecutive keys: 2^64 / golden ratio, and one of Pelle Evensen's "rrmxmx"
# mixers, https://mostlymangling.blogspot.com/2018/07/on-mixing-functions-in-fast-splittable.html.
_SPREAD, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x9FB21C651E98DF25)
_HALF, _EIGHT, _LENGTH_BITS = np.uint64(32), np.uint64(8), np.uint64(56)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


class Slots(NamedTuple):
    """What the compiled loops see of a table.

    Attributes:
        short: Slots of pieces of at most `LONGEST_KEY` bytes; HIGH is 0 in a free one.
        long: Slots of longer pieces; COUNT is 0 in a free one.
        arena: Bytes of the longer pieces, with `PADDING` behind them.
        used: Number of short pieces, of long pieces, of bytes in the arena.
    """

    short: UInt64[np.ndarray, " short"]
    long: UInt64[np.ndarray, " long"]
    arena: UInt8[np.ndarray, " bytes"]
    used: Int64[np.ndarray, "3"]


class Block(NamedTuple):
    """Memory between the two passes over a block: keys and slots of short pieces, numbers of long ones."""

    low: UInt64[np.ndarray, " block"]
    high: UInt64[np.ndarray, " block"]
    slots: Int64[np.ndarray, " block"]
    long_pieces: Int64[np.ndarray, " block"]


@uncounted_part
def _slot_of(hashed, slots):
    """Where a piece with this hash belongs: as many of its highest bits as number the slots."""
    unused_bits = 64 - highest_bit(np.uint64(len(slots) // _SLOT))
    return np.int64(hashed >> np.uint64(unused_bits)) * _SLOT


@uncounted_part
def _hash_short(low, high):
    mixed = low ^ (high * _MIX)
    return (mixed ^ (mixed >> _HALF)) * _SPREAD


@uncounted_part
def _tail(text, i, num_bytes):
    """The last 1 to 8 bytes of a piece as a uint64."""
    return load_8_bytes(text, i) & (~_ZERO >> (np.uint64(64) - _EIGHT * np.uint64(num_bytes)))


@uncounted_part
def _hash_long(text, start, length):
    hashed = np.uint64(length)
    for i in range(0, length - 8, 8):
        hashed = (hashed ^ load_8_bytes(text, start + i)) * _SPREAD
        hashed ^= hashed >> _HALF
    rest = (length - 1) % 8 + 1
    return _hash_short(hashed, _tail(text, start + length - rest, rest))


@uncounted_part
def _equal(text, start, other, other_start, length):
    for i in range(0, length - 8, 8):
        if load_8_bytes(text, start + i) != load_8_bytes(other, other_start + i):
            return False
    rest = (length - 1) % 8 + 1
    at = length - rest
    return _tail(text, start + at, rest) == _tail(other, other_start + at, rest)


@uncounted_part
def _add_short(slots, at, low, high, count):
    """Add `count` to a piece, looking for it from slot `at` on; return 1 if it is new."""
    while True:
        if ((load(slots, at + _LOW) ^ low) | (load(slots, at + _HIGH) ^ high)) == _ZERO:
            store(slots, at + _COUNT, load(slots, at + _COUNT) + count)
            return 0
        if load(slots, at + _HIGH) == _ZERO:
            store(slots, at + _LOW, low)
            store(slots, at + _HIGH, high)
            store(slots, at + _COUNT, count)
            return 1
        at = (at + _SLOT) & (len(slots) - 1)


@uncounted_part
def _add_long(text, start, length, hashed, count, table):
    """Add `count` to the piece text[start : start + length]; a new one's bytes go to the arena."""
    slots, arena, used = table.long, table.arena, table.used
    at = _slot_of(hashed, slots)
    while slots[at + _COUNT] != _ZERO:
        same = slots[at + _HASH] == hashed and slots[at + _LENGTH] == np.uint64(length)
        if same and _equal(text, start, arena, np.int64(slots[at + _START]), length):
            slots[at + _COUNT] += count
            return
        at = (at + _SLOT) & (len(slots) - 1)
    place = used[2]
    slots[at + _HASH], slots[at + _START] = hashed, np.uint64(place)
    slots[at + _LENGTH], slots[at + _COUNT] = np.uint64(length), count
    for i in range(0, length, 8):  # up to seven bytes more than the piece has: the next piece's place
        store_8_bytes(arena, place + i, load_8_bytes(text, start + i))
    used[1] += 1
    used[2] += length


@uncounted_part
def _pack(text, starts, piece, last, table, block, num_short, num_long):
    """First pass over pieces of one segment: keys and slots of short ones, numbers of long ones."""
    start = np.int64(load(starts, piece))
    while piece < last:
        stop = np.int64(load(starts, piece + 1))
        low, high = pack_key(text, start, stop - start)
        at = _slot_of(_hash_short(low, high), table.short)
        prefetch(table.short, at)
        store(block.low, num_short, low)
        store(block.high, num_short, high)
        store(block.slots, num_short, at)
        store(block.long_pieces, num_long, piece)
        is_short = np.int64(stop - start <= LONGEST_KEY)  # both lists are written, one of them counts on
        num_short += is_short
        num_long += 1 - is_short
        start = stop
        piece += 1
    return num_short, num_long


@uncounted_part
def _look_up(text, starts, table, block, num_short, num_long):
    """Second pass: add one to each piece's count."""
    num_new = 0
    for i in range(num_short):
        at = load(block.slots, i)
        num_new += _add_short(table.short, at, load(block.low, i), load(block.high, i), _ONE)
    table.used[0] += num_new
    for i in range(num_long):
        piece = block.long_pieces[i]
        start, length = np.int64(starts[piece]), np.int64(starts[piece + 1] - starts[piece])
        _add_long(text, start, length, _hash_long(text, start, length), _ONE, table)


@uncounted_loop
def count_pieces(text, starts, bounds, table, block):
    """Count every piece of a window; the table must have room for all of them being new."""
    segment, piece = 0, np.int64(0)
    while segment < len(bounds) - 1:
        num_short, num_long = np.int64(0), np.int64(0)
        room = np.int64(_BLOCK)
        while room > 0 and segment < len(bounds) - 1:
            last = np.int64(bounds[segment + 1]) - 1
            stop = min(last, piece + room)
            num_short, num_long = _pack(text, starts, piece, stop, table, block, num_short, num_long)
            room -= stop - piece
            piece = stop
            if piece == last:
                segment += 1
                piece += 1
        _look_up(text, starts, table, block, num_short, num_long)


@uncounted_loop
def add_table(source, least, table):
    """Add the pieces of `source` that it counts at least `least` times; there must be room for them."""
    for i in range(0, len(source.short), _SLOT):
        low, high, count = source.short[i + _LOW], source.short[i + _HIGH], source.short[i + _COUNT]
        if high != _ZERO and count >= least:
            at = _slot_of(_hash_short(low, high), table.short)
            table.used[0] += _add_short(table.short, at, low, high, count)
    for i in range(0, len(source.long), _SLOT):
        count = source.long[i + _COUNT]
        if count >= least:
            start, length = np.int64(source.long[i + _START]), np.int64(source.long[i + _LENGTH])
            _add_long(source.arena, start, length, source.long[i + _HASH], count, table)


@uncounted_loop
def write_words(slots, text, is_long, symbols, starts, counts, num_words):
    """Write one table's pieces of two or more bytes behind `num_words` words; return how many then are there.

    `text` is where the pieces' bytes are: the table of short ones itself, as bytes, or the arena. The next
    word begins at starts[num_words]; `symbols`, `starts` and `counts` are those of `merging.Words`.
    """
    place = starts[num_words]
    for i in range(0, len(slots), _SLOT):
        if slots[i + _COUNT] != _ZERO:
            start = np.int64(slots[i + _START]) if is_long else np.int64(8 * (i + _LOW))
            length = np.int64(slots[i + _LENGTH] if is_long else slots[i + _HIGH] >> _LENGTH_BITS)
            if length > 1:
                counts[num_words] = np.int64(slots[i + _COUNT])
                for j in range(length):
                    store(symbols, place + j, np.int32(load(text, start + j)))
                place += length
                num_words += 1
                starts[num_words] = place
    return num_words


class PieceTable:
    """Distinct pieces and their counts; grows as they come, so memory depends on them and not on the text."""

    def __init__(self) -> None:
        """Start empty."""
        self._slots = _empty(0, 0, 0)
        self._block = Block(
            np.empty(_BLOCK + 1, np.uint64),
            np.empty(_BLOCK + 1, np.uint64),
            np.empty(_BLOCK + 1, np.int64),
            np.empty(_BLOCK + 1, np.int64),
        )

    @property
    def num_pieces(self) -> int:
        """Number of distinct pieces."""
        return int(self._slots.used[0] + self._slots.used[1])

    @property
    def num_bytes(self) -> int:
        """Memory of the table."""
        return sum(array.nbytes for array in self._slots)

    @property
    def num_occurrences(self) -> int:
        """Number of pieces counted, each as often as it came."""
        return int(sum(slots[_COUNT::_SLOT].sum() for slots in self._slots[:2]))

    def count(
        self,
        text: UInt8[np.ndarray, " bytes"],
        starts: Int32[np.ndarray, " starts"],
        bounds: Int32[np.ndarray, " bounds"],
    ) -> None:
        """Count every piece of a window (see `windows.Window`)."""
        num_pieces = len(starts) - (len(bounds) - 1)
        num_bytes = int(starts[-1]) if num_pieces else 0
        self._reserve(num_pieces, min(num_pieces, num_bytes // (LONGEST_KEY + 1)), num_bytes)
        count_pieces(text, starts, bounds, self._slots, self._block)

    def add(self, other: "PieceTable", *, least: int = 1) -> None:
        """Add the pieces of `other` that it counts at least `least` times."""
        source, (short, long, arena_bytes) = other._slots, other._slots.used.tolist()
        self._reserve(0, long, arena_bytes)
        add_table(source._replace(short=source.short[:0]), np.uint64(least), self._slots)
        step = _SLOT * max(_BLOCK, len(source.short) // _SLOT // _PARTS)
        for start in range(0, len(source.short), step):
            part = source.short[start : start + step]
            self._reserve(min(short, len(part) // _SLOT), 0, 0)
            add_table(source._replace(short=part, long=source.long[:0]), np.uint64(least), self._slots)

    def drop_rarest(self, max_pieces: int) -> int:
        """Keep at most `max_pieces` pieces, the most frequent; equally rare ones go together.

        Returns:
            Number of occurrences that are counted no longer.
        """
        if self.num_pieces <= max_pieces:
            return 0
        before = self.num_occurrences
        counts = np.concatenate([slots[_COUNT::_SLOT] for slots in self._slots[:2]])
        counts = counts[counts > 0]
        # The most frequent of those that must go; everything as rare goes with it, whatever its place.
        least = int(np.partition(counts, len(counts) - max_pieces - 1)[len(counts) - max_pieces - 1]) + 1
        kept = PieceTable()
        kept.add(self, least=least)
        self._slots = kept._slots
        return before - self.num_occurrences

    def words(self) -> Words:
        """The pieces of two or more bytes: what merging starts from."""
        slots = self._slots
        short, long, arena_bytes = slots.used.tolist()
        symbols = np.empty(short * LONGEST_KEY + arena_bytes + SYMBOL_PADDING, np.int32)
        starts, counts = np.zeros(short + long + 1, np.int64), np.empty(short + long, np.int64)
        num_words = write_words(slots.short, slots.short.view(np.uint8), 0, symbols, starts, counts, 0)
        num_words = write_words(slots.long, slots.arena, 1, symbols, starts, counts, num_words)
        end = int(starts[num_words]) + SYMBOL_PADDING
        symbols[end - SYMBOL_PADDING : end] = 0
        return Words(symbols[:end], starts[: num_words + 1], counts[:num_words])

    def _reserve(self, short: int, long: int, arena_bytes: int) -> None:
        """Have room for so many pieces and bytes more; a larger table is filled from the old one."""
        wanted = np.add(self._slots.used, (short, long, arena_bytes))
        sizes = [int(_FULLEST * (len(slots) // _SLOT)) for slots in self._slots[:2]]
        sizes.append(len(self._slots.arena) - PADDING)
        if (wanted > sizes).any():
            larger = _empty(*np.maximum(wanted, sizes).tolist())
            add_table(self._slots, _ONE, larger)
            self._slots = larger


def _empty(short: int, long: int, arena_bytes: int) -> Slots:
    """A table with room for so many pieces and bytes."""
    return Slots(
        zeroed_table(_SLOT * _power_of_two(int(short / _FULLEST) + 1)),
        zeroed_table(_SLOT * _power_of_two(int(long / _FULLEST) + 1)),
        np.zeros(_power_of_two(arena_bytes) + PADDING, np.uint8),
        np.zeros(3, np.int64),
    )


def _power_of_two(least: int) -> int:
    return 1 << max(1, (least - 1).bit_length())
