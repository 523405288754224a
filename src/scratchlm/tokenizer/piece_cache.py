r"""The ids of pieces that one thread has met: starts small, grows with the text, is emptied at its limit.

    slots        1,024 -> 4,096 -> ... -> 2^20     pieces of up to 15 bytes      32 bytes each
    long_slots   a quarter as many                 pieces of 16 to 256 bytes     their bytes lie in long_bytes
    more_ids                                       ids that do not fit into a slot

Words follow Zipf's law: a few thousand pieces are most of any text, so a full cache is emptied and soon holds
them again; which entries are old need not be known. Between two windows the cache makes room; within a
window it never moves. What it holds changes no id.
"""

import numpy as np
from jaxtyping import Int32, Int64, UInt, UInt8, UInt64

from scratchlm.tokenizer.compiled.encode import SHORT_BYTES, SHORT_USED, move_entries, remember_whole
from scratchlm.tokenizer.compiled.encode_long import BYTES_USED, IDS_USED, LONG_USED, LONGEST_CACHED
from scratchlm.tokenizer.compiled.pages import zeroed_table
from scratchlm.tokenizer.compiled.vector import PADDING

CACHE_BYTES = 1 << 26
"""Limit for one thread: 2^20 pieces and what belongs to them are 52 MB; more than a book needs."""

_FIRST_SLOTS, _GROWTH = 1 << 10, 4
_LONG_SHARE, _BYTES_PER_SLOT, _IDS_PER_SLOT = 4, 8, 2
_SLOT_WORDS, _SLOT_BYTES = 4, 32
_NEW_SHARE = 4  # at most about a fourth of a window's pieces are new (measured on books and code)

CacheArrays = tuple[
    UInt64[np.ndarray, " slots"],
    UInt64[np.ndarray, " long_slots"],
    UInt8[np.ndarray, " long_bytes"],
    UInt[np.ndarray, " more_ids"],
]


class WholePieces:
    """Pieces that are one id each, whatever the merges say; a cache always holds them."""

    def __init__(self, ids: dict[bytes, int], dtype: np.dtype) -> None:
        tokens = list(ids)
        lengths = np.array([len(token) for token in tokens], np.int64)
        self.text = np.frombuffer(b"".join(tokens) + bytes(PADDING), np.uint8).copy()
        self.starts: Int32[np.ndarray, " pieces_and_one"] = np.zeros(len(tokens) + 1, np.int32)
        np.cumsum(lengths, out=self.starts[1:])
        self.ids = np.zeros(len(tokens) + 4, dtype)
        self.ids[: len(tokens)] = [ids[token] for token in tokens]
        self.longest = int(lengths.max(initial=0))
        num_long = int((lengths > SHORT_BYTES).sum())
        # So many that no part of the cache is nearly full with them alone.
        self.num_slots = max(2 * len(tokens), 4 * _LONG_SHARE * num_long, len(self.text) // 2)


class PieceCache:
    """One thread's cache; `arrays` and `used` are what the compiled loops take."""

    def __init__(
        self, dtype: np.dtype, *, num_bytes: int = CACHE_BYTES, whole: WholePieces | None = None
    ) -> None:
        """Start small.

        Args:
            dtype: uint16 or uint32, of the ids.
            num_bytes: Limit of the memory; a cache is never smaller than about 3 KB, or than `whole` needs.
            whole: Pieces to hold from the start.
        """
        self._whole = whole
        self.longest = max(LONGEST_CACHED, whole.longest if whole is not None else 0)
        least = 64 if whole is None else _power_of_two(whole.num_slots)
        slot_bytes = (
            _SLOT_BYTES + _SLOT_BYTES // _LONG_SHARE + _BYTES_PER_SLOT + _IDS_PER_SLOT * dtype.itemsize
        )
        self._most_slots = max(least, _power_of_two(num_bytes // slot_bytes + 1) // 2)
        self._dtype = dtype
        self.used: Int64[np.ndarray, 4] = np.zeros(4, np.int64)
        self.arrays = self._allocate(min(max(least, _FIRST_SLOTS), self._most_slots))
        self._enter_whole()

    def make_room(self, num_pieces: int) -> None:
        """Grow or empty what may become full in a window of `num_pieces`."""
        slots, long_slots, long_bytes, more_ids = self.arrays
        short_used, long_used, bytes_used, ids_used = self.used.tolist()
        if (
            4 * _SLOT_WORDS * (short_used + num_pieces // _NEW_SHARE) <= 3 * len(slots)
            and 2 * _SLOT_WORDS * long_used <= len(long_slots)
            and 2 * bytes_used <= len(long_bytes)
            and 2 * ids_used <= len(more_ids)
        ):
            return
        num_slots = len(slots) // _SLOT_WORDS
        if num_slots < self._most_slots:
            wanted = _power_of_two(2 * (short_used + num_pieces // _NEW_SHARE))
            self._grow(min(max(_GROWTH * num_slots, wanted), self._most_slots))
        elif short_used + long_used > 0:
            self._empty()

    def _allocate(self, num_slots: int) -> CacheArrays:
        return (
            zeroed_table(_SLOT_WORDS * num_slots),
            zeroed_table(_SLOT_WORDS * num_slots // _LONG_SHARE),
            np.zeros(_BYTES_PER_SLOT * num_slots + PADDING, np.uint8),
            np.zeros(_IDS_PER_SLOT * num_slots, self._dtype),
        )

    def _grow(self, num_slots: int) -> None:
        old, new = self.arrays, self._allocate(num_slots)
        move_entries(old[0], new[0], 1)
        move_entries(old[1], new[1], 0)
        for place, used in ((2, self.used[BYTES_USED]), (3, self.used[IDS_USED])):
            new[place][:used] = old[place][:used]
        self.arrays = new

    def _empty(self) -> None:
        for table in self.arrays[:2]:
            table.fill(0)
        self.used[[SHORT_USED, LONG_USED, BYTES_USED, IDS_USED]] = 0
        self._enter_whole()

    def _enter_whole(self) -> None:
        if self._whole is not None:
            remember_whole(self._whole.text, self._whole.starts, self._whole.ids, self.arrays, self.used)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
