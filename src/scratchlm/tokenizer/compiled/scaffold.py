"""The loops of Scaffold-BPE: words and merges -> how often each merge was made; ids -> visible ids.

    count_merges   for each merge, the count of its pair when its turn came, and how often it was made
    demolish       a scaffold's id -> the ids of its visible parts, all others as they are

Words merge independently of each other, so one pass over the words with all merges tells what happened at
every step of training. The two numbers differ for runs: "aaa" holds two pairs of "a", one is merged.

The plain twins are in `scaffold_reference`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.encode_short import NO_RANK, find_rank
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part


@uncounted_part
def _first_merge(ranks, num_pairs):
    """The smallest of ranks[:num_pairs] and how many there are of it."""
    best, count = np.int64(NO_RANK), np.int64(0)
    for i in range(num_pairs):
        if ranks[i] < best:
            best, count = ranks[i], np.int64(0)
        count += ranks[i] == best
    return best, count


@uncounted_part
def _merge_everywhere(symbols, first, ranks, size, best, pairs):
    """Make merge `best` wherever it stands in a word, from the left; return the number of symbols left.

    ranks[i] belongs to the word's symbols i and i + 1; only those beside a merge are looked up again.
    """
    read, write = np.int64(0), np.int64(0)
    rank_before, merged_before = np.int64(NO_RANK), False
    while read < size:
        merged = read + 1 < size and ranks[read] == best
        symbol = np.int32(256 + best) if merged else symbols[first + read]
        symbols[first + write] = symbol
        if write > 0:
            if merged or merged_before:
                rank_before = find_rank(pairs, np.int64(symbols[first + write - 1]), np.int64(symbol))
            ranks[write - 1] = rank_before
        read += 2 if merged else 1
        rank_before, merged_before = ranks[read - 1], merged  # `write` has not come that far
        write += 1
    return write


@uncounted_loop
def count_merges(symbols, starts, counts, pairs, pair_counts, merge_counts, ranks):
    """Merge every word completely and count what happens; merge r makes the symbol 256 + r.

    Args:
        symbols: int32, the symbols of all words, at first bytes; overwritten.
        starts: int64, where each word begins; one more at the end.
        counts: int64, how often each word stands in the text.
        pairs: uint64, the merges as `encode_short.fill_pairs` enters them.
        pair_counts: int64, zero; receives for each merge the count of its pair when its turn came.
        merge_counts: int64, zero; receives how often each merge was made.
        ranks: int64, scratch, as long as the longest word.
    """
    for word in range(len(counts)):
        first = starts[word]
        size = starts[word + 1] - first
        for i in range(size - 1):
            ranks[i] = find_rank(pairs, np.int64(symbols[first + i]), np.int64(symbols[first + i + 1]))
        while size > 1:
            best, num_pairs = _first_merge(ranks, size - 1)
            if best == NO_RANK:
                break
            left = _merge_everywhere(symbols, first, ranks, size, best, pairs)
            pair_counts[best] += num_pairs * counts[word]
            merge_counts[best] += (size - left) * counts[word]
            size = left


@uncounted_loop
def demolish(ids, first_scaffold, part_starts, parts, visible):
    """Write the visible ids to `visible` and return their number.

    Args:
        ids: int32, what byte-pair encoding gave.
        first_scaffold: Ids below are visible already.
        part_starts: int32, where the parts of scaffold `first_scaffold` + s begin; one more at the end.
        parts: int32, the visible ids that scaffolds are made of.
        visible: int32; where it is too short nothing more is written: the result says how long it must be.
    """
    count = np.int64(0)
    room = len(visible)
    for i in range(len(ids)):
        scaffold = np.int64(ids[i]) - first_scaffold
        if scaffold < 0:
            if count < room:
                visible[count] = ids[i]
            count += 1
            continue
        for j in range(part_starts[scaffold], part_starts[scaffold + 1]):
            if count < room:
                visible[count] = parts[j]
            count += 1
    return count
