"""The compiled loops of training: distinct words with counts in, the merges in order out.

All words stand in one flat array of symbols (0-255 the bytes, then the merges in order); merging rewrites a
word in place and shortens it. Each pair of symbols has a count, and a posting list: the words in which it
stood when it was created.

Two facts keep this simple. After merging (a, b) into c only pairs that contain c can gain count, and all of
those are new; so a posting list is complete once its pair's merge is done, and a pair's count only falls
afterwards. Hence a lazy heap is exact: each pair is pushed once, and one whose count has fallen since is
put back with the lower count when it comes to the top.

The plain twin is `bpe_reference.train_bpe_reference`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.bpe_numba import compiled_loop

DONE, EXHAUSTED, GROW_PAIRS, GROW_TOKENS = 0, 1, 2, 3
"""Why `merge_pairs` came back."""

NUM_PAIRS, NUM_NODES, NUM_WAITING, NUM_MERGES = 0, 1, 2, 3
"""Places in `state`: pairs, nodes of posting lists, entries of the heap, merges made."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive keys
_SHIFT = np.uint64(32)
_BYTE = np.uint64(8)


class Words(NamedTuple):
    """The distinct words: symbols int32, starts int64, lengths int32 and counts int64 of each word."""

    symbols: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray


class Pairs(NamedTuple):
    """The pairs met so far; `slots` (open addressing, number + 1) finds one, the heap orders them.

    places: Number of places where the pair stood when it was created, a bound on the merges it can cause.
    heads, node_words, node_next: Posting lists, linked; -1 ends one.
    heap_pairs, heap_counts: A binary heap; the top is the pair to merge next.
    """

    slots: np.ndarray
    left: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    places: np.ndarray
    heads: np.ndarray
    node_words: np.ndarray
    node_next: np.ndarray
    heap_pairs: np.ndarray
    heap_counts: np.ndarray


class Tokens(NamedTuple):
    """Bytes of symbol s: arena[starts[s]:starts[s + 1]]; heads[s] = the first eight, to compare."""

    arena: np.ndarray
    starts: np.ndarray
    heads: np.ndarray


@compiled_loop
def _find_pair(left, right, pairs):
    """The slot that holds the pair, or the free slot where it belongs."""
    mask = len(pairs.slots) - 1
    key = (np.uint64(left) << _SHIFT) | np.uint64(right)
    slot = np.int64((key * _GOLDEN) >> _SHIFT) & mask
    while pairs.slots[slot] != 0:
        number = pairs.slots[slot] - 1
        if pairs.left[number] == left and pairs.right[number] == right:
            break
        slot = (slot + 1) & mask
    return slot


@compiled_loop
def _gain(left, right, word, count, pairs, state):
    """The pair stands at one more place of `word`, which occurs `count` times."""
    slot = _find_pair(left, right, pairs)
    number = pairs.slots[slot] - 1
    if number < 0:
        number = state[NUM_PAIRS]
        state[NUM_PAIRS] += 1
        pairs.slots[slot] = number + 1
        pairs.left[number], pairs.right[number] = left, right
        pairs.counts[number], pairs.places[number], pairs.heads[number] = 0, 0, -1
    pairs.counts[number] += count
    pairs.places[number] += 1
    head = pairs.heads[number]
    if head < 0 or pairs.node_words[head] != word:
        node = state[NUM_NODES]
        state[NUM_NODES] += 1
        pairs.node_words[node], pairs.node_next[node] = word, head
        pairs.heads[number] = node


@compiled_loop
def _lose(left, right, count, pairs):
    """The pair is gone from one place of a word that occurs `count` times."""
    pairs.counts[pairs.slots[_find_pair(left, right, pairs)] - 1] -= count


@compiled_loop
def rebuild_slots(pairs, num_pairs):
    """Enter all pairs into `slots`, which is all 0."""
    for number in range(num_pairs):
        left, right = np.int64(pairs.left[number]), np.int64(pairs.right[number])
        pairs.slots[_find_pair(left, right, pairs)] = number + 1


# the heap


@compiled_loop
def _compare(x, y, tokens):
    """Compare two symbols' bytes: negative, 0 or positive."""
    if x == y:
        return np.int64(0)
    if tokens.heads[x] != tokens.heads[y]:
        return np.int64(1) if tokens.heads[x] > tokens.heads[y] else np.int64(-1)
    start_x, start_y = tokens.starts[x], tokens.starts[y]
    size_x, size_y = tokens.starts[x + 1] - start_x, tokens.starts[y + 1] - start_y
    for i in range(min(size_x, size_y)):
        if tokens.arena[start_x + i] != tokens.arena[start_y + i]:
            return np.int64(tokens.arena[start_x + i]) - np.int64(tokens.arena[start_y + i])
    return size_x - size_y


@compiled_loop
def _goes_first(count_1, pair_1, count_2, pair_2, pairs, tokens):
    """Whether entry 1 stands above entry 2: the larger count, then the greater (bytes, bytes)."""
    if count_1 != count_2:
        return count_1 > count_2
    order = _compare(pairs.left[pair_1], pairs.left[pair_2], tokens)
    if order == 0:
        order = _compare(pairs.right[pair_1], pairs.right[pair_2], tokens)
    return order > 0


@compiled_loop
def _sink(i, size, pairs, tokens):
    """Move entry i of the heap down to its place."""
    heap_pairs, heap_counts = pairs.heap_pairs, pairs.heap_counts
    pair, count = heap_pairs[i], heap_counts[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _goes_first(
            heap_counts[child + 1],
            heap_pairs[child + 1],
            heap_counts[child],
            heap_pairs[child],
            pairs,
            tokens,
        ):
            child += 1
        if not _goes_first(heap_counts[child], heap_pairs[child], count, pair, pairs, tokens):
            break
        heap_pairs[i], heap_counts[i] = heap_pairs[child], heap_counts[child]
        i = child
    heap_pairs[i], heap_counts[i] = pair, count


@compiled_loop
def _rise(i, pairs, tokens):
    """Move entry i of the heap up to its place."""
    heap_pairs, heap_counts = pairs.heap_pairs, pairs.heap_counts
    pair, count = heap_pairs[i], heap_counts[i]
    while i > 0:
        parent = (i - 1) // 2
        if not _goes_first(count, pair, heap_counts[parent], heap_pairs[parent], pairs, tokens):
            break
        heap_pairs[i], heap_counts[i] = heap_pairs[parent], heap_counts[parent]
        i = parent
    heap_pairs[i], heap_counts[i] = pair, count


@compiled_loop
def _drop_top(pairs, tokens, state):
    state[NUM_WAITING] -= 1
    last = state[NUM_WAITING]
    if last > 0:
        pairs.heap_pairs[0], pairs.heap_counts[0] = pairs.heap_pairs[last], pairs.heap_counts[last]
        _sink(np.int64(0), last, pairs, tokens)


# counting and merging


@compiled_loop
def count_pairs(words, pairs, tokens, state):
    """Count every pair of every word, build the heap; there must be room for a pair and a node per symbol."""
    for word in range(len(words.starts)):
        first = words.starts[word]
        for i in range(first, first + words.lengths[word] - 1):
            left, right = np.int64(words.symbols[i]), np.int64(words.symbols[i + 1])
            _gain(left, right, word, words.counts[word], pairs, state)
    for number in range(state[NUM_PAIRS]):
        pairs.heap_pairs[number], pairs.heap_counts[number] = number, pairs.counts[number]
    state[NUM_WAITING] = state[NUM_PAIRS]
    for i in range(state[NUM_WAITING] // 2 - 1, -1, -1):
        _sink(i, state[NUM_WAITING], pairs, tokens)


@compiled_loop
def _merge_word(word, left, right, symbol, words, pairs, state):
    """Merge (left, right) into `symbol` wherever it stands in `word`, from the left; keep all counts true."""
    first, count = words.starts[word], words.counts[word]
    end = first + words.lengths[word]
    read, write = first, first
    while read < end:
        found = np.int64(words.symbols[read])
        if found == left and read + 1 < end and words.symbols[read + 1] == right:
            if write > first:
                before = np.int64(words.symbols[write - 1])
                _lose(before, left, count, pairs)
                _gain(before, symbol, word, count, pairs, state)
            if read + 2 < end:
                after = np.int64(words.symbols[read + 2])
                _lose(right, after, count, pairs)
                _gain(symbol, after, word, count, pairs, state)
            found = symbol
            read += 1
        words.symbols[write] = found
        read += 1
        write += 1
    words.lengths[word] = write - first


@compiled_loop
def _add_token(left, right, symbol, tokens):
    """Write the bytes of `symbol` = left + right."""
    end = tokens.starts[symbol]
    for part in (left, right):
        for i in range(tokens.starts[part], tokens.starts[part + 1]):
            tokens.arena[end] = tokens.arena[i]
            end += 1
    tokens.starts[symbol + 1] = end
    head = np.uint64(0)
    for i in range(tokens.starts[symbol], tokens.starts[symbol] + 8):
        head = (head << _BYTE) | np.uint64(tokens.arena[i] if i < end else 0)
    tokens.heads[symbol] = head


@compiled_loop
def merge_pairs(words, pairs, tokens, merges, state, until):
    """Merge the best pair again and again.

    Args:
        words: Rewritten in place.
        pairs: As `count_pairs` left it.
        tokens: Bytes of the symbols so far; receives the new ones.
        merges: int32 [merges, 2]; receives each merge's two symbols.
        state: The four counters.
        until: Come back when this many merges have been made.

    Returns:
        DONE, EXHAUSTED (no pair is left), GROW_PAIRS or GROW_TOKENS (an array may become too small:
        nothing is lost, grow it and call again).
    """
    while state[NUM_MERGES] < until:
        if state[NUM_WAITING] == 0:
            return EXHAUSTED
        best = pairs.heap_pairs[0]
        if pairs.heap_counts[0] != pairs.counts[best]:
            if pairs.counts[best] > 0:
                pairs.heap_counts[0] = pairs.counts[best]
                _sink(np.int64(0), state[NUM_WAITING], pairs, tokens)
            else:
                _drop_top(pairs, tokens, state)
            continue
        left, right = np.int64(pairs.left[best]), np.int64(pairs.right[best])
        symbol = 256 + state[NUM_MERGES]
        size = tokens.starts[left + 1] - tokens.starts[left] + tokens.starts[right + 1] - tokens.starts[right]
        room = 2 * pairs.places[best]  # each merge makes at most two pairs and two nodes
        if max(state[NUM_PAIRS], state[NUM_NODES]) + room > len(pairs.left):
            return GROW_PAIRS
        if tokens.starts[symbol] + size > len(tokens.arena):
            return GROW_TOKENS
        _drop_top(pairs, tokens, state)
        _add_token(left, right, symbol, tokens)
        merges[state[NUM_MERGES], 0], merges[state[NUM_MERGES], 1] = left, right
        state[NUM_MERGES] += 1
        first_new = state[NUM_PAIRS]
        node = pairs.heads[best]
        while node >= 0:
            _merge_word(np.int64(pairs.node_words[node]), left, right, symbol, words, pairs, state)
            node = pairs.node_next[node]
        pairs.counts[best] = 0
        for number in range(first_new, state[NUM_PAIRS]):
            if pairs.counts[number] > 0:
                waiting = state[NUM_WAITING]
                pairs.heap_pairs[waiting], pairs.heap_counts[waiting] = number, pairs.counts[number]
                state[NUM_WAITING] += 1
                _rise(waiting, pairs, tokens)
    return DONE
