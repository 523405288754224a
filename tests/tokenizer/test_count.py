"""The table of pieces: equal to a dictionary, whatever the pieces, the sizes and the order of adding."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer.compiled.count import LONGEST_KEY, PieceTable
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.merging import SYMBOL_PADDING

PIECES = st.lists(
    st.binary(min_size=1, max_size=40) | st.sampled_from([b" the", b"\0", b"\0\0"]), max_size=60
)


def count(table, *segments):
    """Count segments of pieces that stand in one window, with something else between the segments."""
    text, starts, bounds = bytearray(b"##"), [], [0]
    for pieces in segments:
        for piece in pieces:
            starts.append(len(text))
            text += piece
        starts.append(len(text))
        text += b"<|special|>"
        bounds.append(len(starts))
    window = np.full(len(text) + PADDING, 0x2B, np.uint8)
    window[: len(text)] = np.frombuffer(bytes(text), np.uint8)
    table.count(window, np.array(starts, np.int32), np.array(bounds, np.int32))
    window[:] = 0  # a window's text does not last
    return table


def content(table):
    words = table.words()
    assert not words.symbols[words.starts[-1] :].any()
    assert len(words.symbols) == words.starts[-1] + SYMBOL_PADDING
    text, starts = words.symbols.astype(np.uint8).tobytes(), words.starts.tolist()
    pieces = [text[start:stop] for start, stop in itertools.pairwise(starts)]
    assert len(set(pieces)) == len(pieces)
    return dict(zip(pieces, words.counts.tolist(), strict=True))


def expected(*segments):
    counts = Counter(piece for pieces in segments for piece in pieces)
    return {piece: count for piece, count in counts.items() if len(piece) > 1}


def random_pieces(seed, num_pieces, num_distinct, longest):
    rng = random.Random(seed)
    kinds = [rng.randbytes(rng.randint(1, longest)) for _ in range(num_distinct)]
    return rng.choices(kinds, k=num_pieces)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=5))
def test_counts_equal_those_of_a_dictionary(segments):
    table = count(PieceTable(), *segments)
    assert content(table) == expected(*segments)
    assert table.num_pieces == len({piece for pieces in segments for piece in pieces})
    assert table.num_occurrences == sum(map(len, segments))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(PIECES, min_size=1, max_size=5))
def test_adding_tables_equals_counting_everything_in_one(segments):
    total = PieceTable()
    for pieces in segments:
        total.add(count(PieceTable(), pieces))
    assert content(total) == expected(*segments)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 14, 15, 16, 17, 23, 24, 25, 255, 256, 271, 70_000])
def test_pieces_that_differ_in_one_byte_anywhere_are_distinct(length):
    base = bytes(range(1, 256)) * (length // 255 + 1)
    pieces = [
        base[:length],
        base[: length - 1] + b"\0",
        b"\0" + base[1:length],
        base[: length - 1],
        base[:length],
    ]
    pieces = [piece for piece in pieces if piece]
    assert content(count(PieceTable(), pieces)) == expected(pieces)


@pytest.mark.parametrize("longest", [LONGEST_KEY, 60])
def test_tables_grow_without_losing_a_count(longest):
    table, segments = PieceTable(), []
    for seed in range(8):
        segments.append(random_pieces(seed, 9000, 1000 * 2**seed % 70_001, longest))
        count(table, segments[-1])
    assert content(table) == expected(*segments)
    assert table.num_occurrences == 8 * 9000


def test_blocks_end_inside_and_between_segments():
    for sizes in ([2047, 1], [2048], [2049, 2047], [1, 4096, 0, 0, 3], [1] * 5000, [0] * 3000):
        segments = [random_pieces(size, size, 50, 20) for size in sizes]
        assert content(count(PieceTable(), *segments)) == expected(*segments)


def test_similar_pieces_do_not_crowd_the_table():
    """A bad hash shows as seconds here: numbers, words that differ at one end, and one table into another."""
    numbers = [b"%012d" % (7 * number) for number in range(150_000)]
    table = count(PieceTable(), numbers, [b" %06d" % number for number in range(150_000)])
    copy = PieceTable()
    copy.add(table)
    copy.add(table)
    assert copy.num_pieces == 300_000
    assert copy.num_occurrences == 600_000


def test_counts_beyond_32_and_63_bits_of_anything_stay_exact():
    table = count(PieceTable(), [b"ab"] * 3, [b"longer than fifteen bytes"])
    for _ in range(40):
        twice = PieceTable()
        twice.add(table)
        twice.add(table)
        table = twice
    assert content(table) == {b"ab": 3 * 2**40, b"longer than fifteen bytes": 2**40}


def test_the_rarest_pieces_are_dropped_and_the_loss_is_told():
    pieces = [b"aa"] * 5 + [b"bb"] * 4 + [b"a piece of thirty bytes or more"] * 3 + [b"cc"] * 2 + [b"dd"] * 2
    table = count(PieceTable(), pieces)
    assert table.drop_rarest(5) == 0
    assert table.drop_rarest(4) == 4  # "cc" and "dd" are equally rare: both go, whatever their place
    assert content(table) == {b"aa": 5, b"bb": 4, b"a piece of thirty bytes or more": 3}
    assert table.drop_rarest(1) == 7
    assert content(table) == {b"aa": 5}
    count(table, [b"cc", b"aa"])
    assert content(table) == {b"aa": 6, b"cc": 1}


def test_an_empty_table_has_no_words():
    table = count(PieceTable(), [], [b"x"])
    assert content(table) == {}
    assert content(PieceTable()) == {}
