r"""Windows of pieces -> ids: each distinct piece is merged once, then copied from a table.

    pass 1   "the"  -> key (15 bytes + length) -> slot; ask for its cache line
    pass 2   slots[slot] = | key | key | up to 4 ids | how many |     equal key: write the ids
                                                                     free slot: merge, write, remember

A batch of pieces is hashed before the first of them is looked up, so the memory works while the next keys
are packed. Every hit writes 8 bytes whatever the number of ids, and the next piece overwrites the rest. More
ids than fit lie in `more_ids`. Pieces of more than 15 bytes are first cut where no merge can reach over
(`seams`); what is then still longer has a table of its own (`encode_long`). When a table is full, new pieces
are merged but not remembered: the ids never depend on what a cache holds.

Arguments that belong together are tuples of arrays:

    merges   byte_pairs int32[65536]: two bytes -> rank; pairs uint64[]: two symbols -> rank (encode_short);
             products int32[ranks]: rank -> symbol; ids uint16 or uint32[symbols]: symbol -> id
    seams    kinds uint8[65536], contexts uint64[]: where long pieces are cut (seams)
    cache    slots uint64[4 * 2^k], long_slots uint64[4 * 2^k], long_bytes uint8[], more_ids as ids
    work     symbols, ranks int32[longest piece], alive uint64[a 64th], levels int64[16]
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.encode_long import (
    IDS_USED,
    copy_entries,
    encode_long,
    find_long,
    hash_long,
    remember_long,
    slot_of,
)
from scratchlm.tokenizer.compiled.encode_short import merge_to_15
from scratchlm.tokenizer.compiled.seams import next_seam
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    load,
    load_8_bytes,
    pack_key,
    prefetch,
    store,
    store_8_bytes,
)

SHORT_USED = 0
"""Place in `used`: entries of the table of short pieces."""

SHORT_BYTES = 15
"""Longest piece whose bytes and length fit into a key of 16 bytes: 99.9 % of the pieces of English."""

BATCH = 256
"""Pieces hashed ahead: their keys and slots, 22 KB, stay in the first-level cache (128 to 1,024: alike)."""


_HALF, _LOW_HALF, _LENGTH_SHIFT = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(56)


@uncounted_part
def _enter(text, start, length, slots, mask, keys, count):
    """Write key, slot and start of one piece; of a long one its length and all ones as key."""
    low, high = pack_key(text, start, length)
    slot = slot_of(low, high, mask)
    prefetch(slots, slot)
    if length > SHORT_BYTES:
        low, high = np.uint64(length), ALL
    store(keys, count, low)
    store(keys, count + BATCH, high)
    store(keys, count + 2 * BATCH, (np.uint64(slot) << _HALF) | np.uint64(start))


@uncounted_part
def _hash_batch(text, starts, piece, last, start, seams, slots, keys):
    """Enter up to BATCH pieces in `keys`, long ones cut at their seams.

    Returns the number of entries, and the piece and the place to go on from.
    """
    kinds, contexts = seams
    mask = np.uint64(len(slots) - 4)
    count = np.int64(0)
    while piece < last and count < BATCH:
        stop = min(last, piece + BATCH - count)
        while piece < stop:  # short pieces: nothing here waits for the piece before
            end = np.int64(load(starts, piece + 1))
            if end - start > SHORT_BYTES:
                break
            _enter(text, start, end - start, slots, mask, keys, count)
            start = end
            piece += 1
            count += 1
        if piece < stop:
            end = np.int64(load(starts, piece + 1))
            while start < end and count < BATCH:
                seam = next_seam(text, start, end, kinds, contexts)
                _enter(text, start, seam - start, slots, mask, keys, count)
                start = seam
                count += 1
            piece += np.int64(start == end)
    return count, piece, start


@uncounted_part
def _remember_short(low, high, slot, output, first, count, cache, used):
    """Enter a piece whose ids are output[first : first + count], if there is room."""
    slots, _, _, more_ids = cache
    if 4 * 4 * used[SHORT_USED] >= 3 * len(slots):
        return
    value = load_8_bytes(output, first)
    if count > 8 // output.itemsize:
        place = used[IDS_USED]
        if place + count > len(more_ids):
            return
        copy_entries(more_ids, place, output, first, count)
        value = np.uint64(place)
        used[IDS_USED] = place + count
    store(slots, slot, low)
    store(slots, slot + 1, high)
    store(slots, slot + 2, value)
    store(slots, slot + 3, np.uint64(count))
    used[SHORT_USED] += 1


@uncounted_part
def _encode_short(text, start, low, high, slot, output, written, merges, cache, used, work):
    """Write the ids of a piece of at most 15 bytes; return where they end."""
    slots, more_ids = cache[0], cache[3]
    mask = np.uint64(len(slots) - 4)
    while True:
        if ((load(slots, slot) ^ low) | (load(slots, slot + 1) ^ high)) == NONE:
            value, count = load(slots, slot + 2), np.int64(load(slots, slot + 3))
            if count <= 8 // output.itemsize:
                store_8_bytes(output, written, value)
            else:
                copy_entries(output, written, more_ids, np.int64(value), count)
            return written + count
        if load(slots, slot + 1) == NONE:
            length = np.int64(high >> _LENGTH_SHIFT)
            after = merge_to_15(text, start, length, output, written, merges, work[0])
            _remember_short(low, high, slot, output, written, after - written, cache, used)
            return after
        slot = np.int64(np.uint64(slot + 4) & mask)


@uncounted_loop
def encode_window(
    text, starts, bounds, special_ids, longest_cached, output, id_bounds, tables, cache, used, work, keys
):
    """Write the ids of every segment, each followed by its special token's.

    Args:
        text: uint8, with PADDING bytes behind the last piece.
        starts: int32, starts of the pieces of each segment, then the segment's stop.
        bounds: int32, index in `starts` of each segment's first entry; one more at the end.
        special_ids: int64, the id to write behind each segment, -1 for none.
        longest_cached: Longer pieces are not remembered.
        output: uint16 or uint32, room for an id for each byte, each segment and 8 more.
        id_bounds: int64, receives where each segment's ids start and, at the end, their number.
        tables: merges and seams; see the head of this file.
        cache: See the head of this file.
        used: int64[4], entries of the table, of the long table, bytes and ids in the arenas.
        work: See the head of this file.
        keys: uint64[3 * BATCH].

    Returns:
        The number of ids.
    """
    merges, seams = tables
    written = np.int64(0)
    for segment in range(len(special_ids)):
        id_bounds[segment] = written
        piece, last = np.int64(bounds[segment]), np.int64(bounds[segment + 1]) - 1
        start = np.int64(starts[piece])
        while piece < last:
            count, piece, start = _hash_batch(text, starts, piece, last, start, seams, cache[0], keys)
            for i in range(count):
                low, high = load(keys, np.int64(i)), load(keys, np.int64(i + BATCH))
                place = load(keys, np.int64(i + 2 * BATCH))
                first, slot = np.int64(place & _LOW_HALF), np.int64(place >> _HALF)
                if high == ALL:
                    written = encode_long(
                        text, first, np.int64(low), longest_cached, output, written, merges, cache, used, work
                    )
                else:
                    written = _encode_short(
                        text, first, low, high, slot, output, written, merges, cache, used, work
                    )
        if special_ids[segment] >= 0:
            output[written] = special_ids[segment]
            written += 1
    id_bounds[len(special_ids)] = written
    return written


@uncounted_loop
def move_entries(old, new, short):
    """Enter what a table of short pieces (short=1) or of long ones (0) holds in a larger, empty one."""
    mask = np.uint64(len(new) - 4)
    for place in range(0, len(old), 4):
        low, high = old[place], old[place + 1]
        if high != NONE:
            slot = slot_of(low, high if short else NONE, mask)
            while new[slot + 1] != NONE:
                slot = np.int64(np.uint64(slot + 4) & mask)
            for i in range(4):
                new[slot + i] = old[place + i]


@uncounted_loop
def remember_whole(text, starts, piece_ids, cache, used):
    """Enter pieces as one id each, whatever their merges would give.

    Args:
        text: uint8, the pieces one after the other, with PADDING bytes behind.
        starts: int32, the start of each piece and the end of the last.
        piece_ids: uint16 or uint32, as the ids of the cache; four entries more than pieces.
        cache: See the head of this file.
        used: Likewise.
    """
    slots, long_slots, long_bytes, _ = cache
    mask = np.uint64(len(slots) - 4)
    for i in range(len(starts) - 1):
        start, num_bytes = np.int64(starts[i]), np.int64(starts[i + 1]) - np.int64(starts[i])
        if num_bytes > SHORT_BYTES:
            hashed = hash_long(text, start, num_bytes)
            slot = find_long(text, start, num_bytes, hashed, long_slots, long_bytes)
            remember_long(text, start, num_bytes, hashed, slot, piece_ids, i, np.int64(1), cache, used)
        else:
            low, high = pack_key(text, start, num_bytes)
            slot = slot_of(low, high, mask)
            while slots[slot + 1] != NONE:
                slot = np.int64(np.uint64(slot + 4) & mask)
            _remember_short(low, high, slot, piece_ids, i, np.int64(1), cache, used)
