r"""The loop of BPE training: the best pair becomes a symbol in every word that holds it; repeat.

    take_best           a b                          pair_queue: the most frequent pair
    _merge_in_word      x a b y  ->  x c y           the words of its list; all counts that change are noted
    _lower_old_pairs    x a, b y lose count
    _create_new_pairs   x c, c y come into being     those that reach the threshold
    _fill_postings      their lists of words

All pairs that change lie beside the merged one, so a neighbour x and its side say which. Each symbol has one
cache line with the sums for both sides: a merge adds up its changes there, without hashing, and looks each
changed pair up once at its end. Only pairs that contain the new symbol c gain count, and all of them are new;
that is why lists of words never grow and `pair_queue` may be lazy.

Equal to `bpe_reference.train_bpe_reference`; driven by `merging.learn_merges`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from scratchlm.tokenizer.compiled.pair_queue import (
    THRESHOLD,
    TIE,
    TIE_ORDER,
    enter_queue,
    into_bucket,
    take_best,
)
from scratchlm.tokenizer.compiled.pair_table import (
    COUNT,
    FIELDS,
    KEY,
    NUM_PAIRS,
    NUM_POSTINGS,
    POSTINGS,
    collect_postings,
    find_pair,
    pair_key,
    pair_parts,
    prefetch_word,
    slot_of,
)
from scratchlm.tokenizer.compiled.superwords import joined_shape_part, num_words_part
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    load,
    lowest_bit,
    match_pairs,
    store,
)

NUM_MERGES, NUM_GIVEN, MAX_WORDS, LONGEST, NUM_TOUCHED = 8, 9, 10, 11, 12
"""Places in `state`: merges made, merges that are given, words that a token may touch, bytes of the longest
token, neighbours touched on the left and (one further) on the right."""

STATE_SIZE = 16

DONE, EXHAUSTED, GROW_PAIRS, GROW_TOKENS = 0, 1, 2, 3
"""Why `merge_pairs` came back."""

LOST, GAINED, NUM_WORDS, LAST_WORD = 0, 1, 2, 3
"""Half a line of a symbol x, for one side of the merged pair (left, right) -> c. On the left: the count that
(x, left) lost, that (x, c) gained, the number of words with (x, c), the last of them. NUM_WORDS later
becomes the place in `postings` where the next word goes, or -1."""

SIDE, LINE = 4, 8
"""Entries of half a line, of a line."""

_AHEAD = 8
"""Words whose symbols are fetched in advance: a word takes about 10 ns, memory 80."""

_SHORT = 16
"""Moves of fewer symbols are done one by one: a call of memmove takes longer."""

_EIGHT = np.uint64(8)


class Neighbours(NamedTuple):
    """What the present merge changes.

    Attributes:
        lines: int64 [symbols * LINE]; all LOST, GAINED, NUM_WORDS 0 and LAST_WORD -1 between merges.
        touched: int32 [2 * symbols]: neighbours on the left, then those on the right.
        notes: int64: (word << 32 | where the half-line starts) for each word and new pair.
    """

    lines: np.ndarray
    touched: np.ndarray
    notes: np.ndarray


@intrinsic
def _memmove(typing_context, array, to, start, count):
    """array[to : to + count] = array[start : start + count] (int32); they may overlap."""

    def code(context, builder, signature, arguments):
        array, to, start, count = arguments
        byte, size = ir.IntType(8).as_pointer(), ir.IntType(64)
        data = builder.bitcast(context.make_array(signature.args[0])(context, builder, array).data, byte)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, byte, size, ir.IntType(1)]),
            "llvm.memmove.p0.p0.i64",
        )
        four = size(4)
        target, source = (builder.gep(data, [builder.mul(place, four)]) for place in (to, start))
        builder.call(function, [target, source, builder.mul(count, four), ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64), code


@uncounted_part
def _move(symbols, to, start, stop):
    """Move symbols[start:stop] down to `to`."""
    if stop - start >= _SHORT:
        _memmove(symbols, to, start, stop - start)
    else:
        for i in range(stop - start):
            store(symbols, to + i, load(symbols, start + i))


@uncounted_part
def _find_in_word(symbols, place, stop, left, right):
    """Where the pair stands first in symbols[place:stop]; `stop` if nowhere."""
    while place + 1 < stop:
        found = match_pairs(symbols, place, np.int32(left), np.int32(right))
        if found != NONE:
            place += lowest_bit(found)
            return place if place + 1 < stop else stop  # behind the word another one may match
        place += 16
    return stop


@uncounted_part
def _gain(symbol, side, word, count, neighbours, state, num_notes):
    """The new pair with `symbol` on this side occurs `count` times more; return the number of notes."""
    line = LINE * symbol + SIDE * side
    lines = neighbours.lines
    store(lines, line + GAINED, load(lines, line + GAINED) + count)
    if load(lines, line + LAST_WORD) != word:
        store(lines, line + LAST_WORD, word)
        num_words = load(lines, line + NUM_WORDS)
        if num_words == 0:
            half = side * (len(neighbours.touched) >> 1)
            neighbours.touched[half + state[NUM_TOUCHED + side]] = symbol
            state[NUM_TOUCHED + side] += 1
        store(lines, line + NUM_WORDS, num_words + 1)
        store(neighbours.notes, num_notes, (word << 32) | line)
        num_notes += 1
    return num_notes


@uncounted_part
def _lose(symbol, side, count, lines, field):
    line = LINE * np.int64(symbol) + SIDE * side + field
    store(lines, line, load(lines, line) - count)


@uncounted_part
def _merge_in_word(word, left, right, symbol, words, neighbours, state, num_notes):
    """Merge the pair wherever it stands in the word, from the left; return the number of notes."""
    symbols, lines = words.symbols, neighbours.lines
    first, count = load(words.starts, word), load(words.counts, word)
    stop = first + load(words.lengths, word)
    place = _find_in_word(symbols, first, stop, left, right)
    if place == stop:  # an earlier merge has taken the pair apart here
        return num_notes
    read = write = first
    while place < stop:
        _move(symbols, write, read, place)
        write += place - read
        if write > first:
            before = np.int64(load(symbols, write - 1))
            if before == symbol:  # "a b a b": (c, a) was gained a moment ago
                _lose(left, np.int64(1), count, lines, GAINED)
            else:
                _lose(before, np.int64(0), count, lines, LOST)
            num_notes = _gain(before, np.int64(0), word, count, neighbours, state, num_notes)
        read = place + 2
        if read < stop:
            after = np.int64(load(symbols, read))
            _lose(after, np.int64(1), count, lines, LOST)
            num_notes = _gain(after, np.int64(1), word, count, neighbours, state, num_notes)
        store(symbols, write, np.int32(symbol))
        write += 1
        place = _find_in_word(symbols, read, stop, left, right)
    _move(symbols, write, read, stop)
    words.lengths[word] = write + stop - read - first
    return num_notes


@uncounted_part
def _merge_everywhere(pair, left, right, symbol, words, table, neighbours, state):
    """Merge in all words of the pair's list; return the number of notes."""
    first = table.records[FIELDS * pair + POSTINGS] + 1
    stop = first + table.postings[first - 1]
    state[NUM_TOUCHED], state[NUM_TOUCHED + 1] = 0, 0
    num_notes = np.int64(0)
    for i in range(first, stop):
        if i + _AHEAD < stop:
            prefetch_word(words, load(table.postings, i + _AHEAD))
        word = np.int64(load(table.postings, i))
        num_notes = _merge_in_word(word, left, right, symbol, words, neighbours, state, num_notes)
    return num_notes


@uncounted_part
def _update_pairs(left, right, symbol, table, queue, tokens, neighbours, state):
    """Lower the counts of the pairs that lost, create those that are new; clear the lines but NUM_WORDS."""
    lines, half = neighbours.lines, len(neighbours.touched) >> 1
    for side in range(2):
        for i in range(state[NUM_TOUCHED + side]):
            other = np.int64(neighbours.touched[side * half + i])
            line = LINE * other + SIDE * side
            lost, gained = lines[line + LOST], lines[line + GAINED]
            words_with = lines[line + NUM_WORDS]
            lines[line + LOST], lines[line + GAINED], lines[line + LAST_WORD] = 0, 0, -1
            old = pair_key(right, other) if side else pair_key(other, left)
            new = pair_key(symbol, other) if side else pair_key(other, symbol)
            if lost != 0:
                number = find_pair(old, table.slots, table.records)
                if number >= 0:
                    table.records[FIELDS * number + COUNT] += lost
            lines[line + NUM_WORDS] = _create(new, gained, words_with, table, queue, tokens, state)


@uncounted_part
def _may_join(key, tokens, state):
    """Whether the pair touches no more words than a token may."""
    left, right = pair_parts(key)
    shape = joined_shape_part(load(tokens.shapes, left), load(tokens.shapes, right))
    return num_words_part(shape) <= state[MAX_WORDS]


@uncounted_part
def _create(key, count, words_with, table, queue, tokens, state):
    """Start a pair's list of words; return where its first word goes, or -1 if the pair is not wanted.

    While merges are given, the wanted pairs are theirs and have records already.
    """
    choosing = state[NUM_MERGES] >= state[NUM_GIVEN]
    if choosing and (count < state[THRESHOLD] or not _may_join(key, tokens, state)):
        return np.int64(-1)
    slot = slot_of(key, table.slots, table.records)
    number = np.int64(table.slots[slot]) - 1
    if choosing:
        number = state[NUM_PAIRS]
        state[NUM_PAIRS] += 1
        table.slots[slot] = number + 1
        table.records[FIELDS * number + KEY] = key
        table.records[FIELDS * number + COUNT] = count
        enter_queue(number, count, queue, table.records, tokens, state)
    if number < 0:
        return np.int64(-1)
    first = state[NUM_POSTINGS]
    table.records[FIELDS * number + POSTINGS] = first
    table.postings[first] = words_with
    state[NUM_POSTINGS] = first + 1 + words_with
    return first + 1


@uncounted_part
def _fill_postings(num_notes, table, neighbours, state):
    """Write the words of the new pairs into their lists; leave the lines as they were before the merge."""
    lines, half = neighbours.lines, len(neighbours.touched) >> 1
    for i in range(num_notes):
        note = load(neighbours.notes, i)
        line = note & np.int64(0xFFFFFFFF)
        place = load(lines, line + NUM_WORDS)
        if place >= 0:
            store(table.postings, place, np.int32(note >> 32))
            store(lines, line + NUM_WORDS, place + 1)
    for side in range(2):
        for i in range(state[NUM_TOUCHED + side]):
            lines[LINE * np.int64(neighbours.touched[side * half + i]) + SIDE * side + NUM_WORDS] = 0


@uncounted_part
def _add_token(left, right, symbol, tokens, state):
    """Write the bytes, the head and the shape of `symbol` = left + right."""
    arena, starts = tokens.arena, tokens.starts
    end = starts[symbol]
    for part in (left, right):
        for i in range(starts[part], starts[part + 1]):
            arena[end] = arena[i]
            end += 1
    starts[symbol + 1] = end
    state[LONGEST] = max(state[LONGEST], end - starts[symbol])
    tokens.shapes[symbol] = joined_shape_part(tokens.shapes[left], tokens.shapes[right])
    if state[TIE] == TIE_ORDER:
        tokens.heads[symbol] = ~np.uint64(symbol)
        return
    head = np.uint64(0)
    for i in range(starts[symbol], starts[symbol] + 8):
        head = (head << _EIGHT) | np.uint64(arena[i] if i < end else 0)
    tokens.heads[symbol] = head if state[TIE] > 0 else ~head


@uncounted_loop
def start_round(words, table, buckets, num_pairs):
    """List the words of each pair and put all pairs into their buckets."""
    for pair in range(num_pairs):
        record = FIELDS * pair
        table.postings[table.records[record + POSTINGS]] = 0
        into_bucket(pair, table.records[record + COUNT], buckets, table.records)
    collect_postings(words, table)


@uncounted_loop
def merge_pairs(words, table, queue, tokens, neighbours, merges, state, until):
    """Merge the best pair again and again.

    Args:
        words: `WorkingWords`, rewritten in place, as all that follow.
        table: `PairTable`.
        queue: `Queue`.
        tokens: `Tokens`.
        neighbours: `Neighbours`.
        merges: int64; receives the key of each pair merged.
        state: int64 [STATE_SIZE], the numbers named in these three files. The first NUM_GIVEN merges are
            the pairs 0, 1, ... of `table` in this order; the queue chooses the others.
        until: Come back when NUM_MERGES is this number.

    Returns:
        DONE, EXHAUSTED (no pair reaches the threshold), GROW_PAIRS or GROW_TOKENS (an array may become too
        small: nothing is lost, enlarge it and call again).
    """
    records = table.records
    while state[NUM_MERGES] < until:
        symbol = 256 + state[NUM_MERGES]
        room = min(len(records) // FIELDS, len(table.slots) >> 1)
        if state[NUM_PAIRS] + 2 * symbol + 2 > room:  # two new pairs for each neighbour, at most
            return GROW_PAIRS
        if tokens.starts[symbol] + 2 * state[LONGEST] > len(tokens.arena):
            return GROW_TOKENS
        if state[NUM_MERGES] < state[NUM_GIVEN]:
            pair = state[NUM_MERGES]
        else:
            pair = take_best(queue, records, tokens, state)
            if pair < 0:
                return EXHAUSTED
        merges[state[NUM_MERGES]] = records[FIELDS * pair + KEY]
        left, right = pair_parts(records[FIELDS * pair + KEY])
        _add_token(left, right, symbol, tokens, state)
        num_notes = _merge_everywhere(pair, left, right, symbol, words, table, neighbours, state)
        _update_pairs(left, right, symbol, table, queue, tokens, neighbours, state)
        _fill_postings(num_notes, table, neighbours, state)
        records[FIELDS * pair + COUNT] = 0
        state[NUM_MERGES] += 1
    return DONE
