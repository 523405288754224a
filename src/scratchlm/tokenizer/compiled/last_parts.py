"""Vocabulary entries -> what byte-pair encoding leaves of each; the merges that a list of ranks implies.

    entries in order of rank    "a" "b" "c" "ab" "abc"
    "ab"  = a b                 two parts are left, so (a, b) makes "ab"
    "abc" = ab c                with (a, b) known two parts are left, so (ab, c) makes "abc"

A token can be made by one pair only: the two parts to which the merges of lower rank bring it. So one pass in
the order of ranks, which adds each pair as it is found, recovers the merges. With all merges given, an entry
of which several parts are left is never the result of encoding. Entries are short, so the plain algorithm
does: the merge of lowest rank, the leftmost first, until there is none.

Symbols are numbers of tokens; a pair is looked up in a table of 2 * size int64: key, then rank.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part

NEVER = 1 << 62
"""The rank of a pair that is no merge."""

_SPREAD = 0x5851F42D4C957F2D
"""An odd multiplier whose products' high bits depend on all bits (the one of Knuth's MMIX generator)."""


@uncounted_part
def _slot_of(pairs, left, right):
    """Index in `pairs` of this pair's key, or of the empty slot where it belongs."""
    key = (left << 32) | right
    mask = len(pairs) // 2 - 1
    slot = ((key * _SPREAD) >> 24) & mask
    while pairs[2 * slot] != key and pairs[2 * slot] != -1:
        slot = (slot + 1) & mask
    return 2 * slot


@uncounted_part
def _rank_of(pairs, left, right):
    slot = _slot_of(pairs, left, right)
    return pairs[slot + 1] if pairs[slot] != -1 else NEVER


@uncounted_part
def _insert(pairs, left, right, rank):
    slot = _slot_of(pairs, left, right)
    if pairs[slot] == -1:  # of two equal merges the first counts
        pairs[slot] = (left << 32) | right
        pairs[slot + 1] = rank


@uncounted_part
def _merge_all(parts, ranks, count, pairs, products):
    """Merge parts[:count] until no pair is a merge; return how many are left. `ranks` is scratch space."""
    for i in range(count - 1):
        ranks[i] = _rank_of(pairs, parts[i], parts[i + 1])
    while count > 1:
        best = 0
        for i in range(1, count - 1):
            if ranks[i] < ranks[best]:
                best = i
        if ranks[best] == NEVER:
            break
        parts[best] = products[ranks[best]]
        count -= 1
        for i in range(best + 1, count):
            parts[i] = parts[i + 1]
        for i in range(best + 1, count - 1):
            ranks[i] = ranks[i + 1]
        if best + 1 < count:
            ranks[best] = _rank_of(pairs, parts[best], parts[best + 1])
        if best > 0:
            ranks[best - 1] = _rank_of(pairs, parts[best - 1], parts[best])
    return count


@uncounted_loop
def insert_merges(pairs, lefts, rights):
    """Put the merges (symbols, int64[merges]) into the table, which is filled with -1."""
    for rank in range(len(lefts)):
        _insert(pairs, lefts[rank], rights[rank], rank)


@uncounted_loop
def split_entries(text, bounds, byte_symbols, pairs, products, learn, parts, ranks, left_over, counts):
    """Merge every entry as far as it goes.

    Args:
        text: u8, the bytes of all entries.
        bounds: int64[entries + 1], where each starts.
        byte_symbols: int64[256], the symbol of each byte.
        pairs: int64[2 * size], the merges; filled further when `learn` is 1.
        products: int64[merges], the symbol that each merge makes.
        learn: 1: an entry of which two parts are left is the merge of these two with its own number as rank.
        parts: int64, scratch space of the longest entry's length.
        ranks: int64, the same.
        left_over: int64[entries, 2], result: the first two of the parts that are left.
        counts: int64[entries], result: how many are left.
    """
    for entry in range(len(bounds) - 1):
        count = bounds[entry + 1] - bounds[entry]
        for i in range(count):
            parts[i] = byte_symbols[text[bounds[entry] + i]]
        count = _merge_all(parts, ranks, count, pairs, products)
        counts[entry] = count
        left_over[entry, 0] = parts[0]
        if count > 1:
            left_over[entry, 1] = parts[1]
            if learn == 1 and count == 2:
                _insert(pairs, parts[0], parts[1], entry)
