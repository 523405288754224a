"""Safe cuts: every pattern splits the two sides as it splits the whole; UTF-8 is what Python says it is."""

import itertools
import random

import numpy as np
import pytest

from scratchlm.tokenizer.compiled.cuts import first_cut, last_cut, valid_utf8
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.pretokenize import SCANNED_PATTERNS, choose_scanner

PARTS = (
    *(b"a", b"B", b"s", b"re", b"ll", b"'", b"'s", b" ", b"  ", b"\n", b"\r", b"\t", b"/", b"1", b"23", b"!"),
    *"\u00e9 \u017f \u0301 \u00a0 \u3000 \u2028 \x85 \u4e2d\u6587 \u3042".encode().split(b" "),
    *"\U0001f600 \u2014 \u0663 \u01c5".encode().split(b" "),
    *(b"\x80", b"\x80\x80", b"\xc3", b"\xe4\xb8", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xff"),
)  # fmt: skip
"""What the patterns turn on, and bytes that are no UTF-8."""


def padded(data, behind=b""):
    noise = np.random.default_rng(0).integers(0, 256, PADDING, np.uint8)
    return np.concatenate([np.frombuffer(data + behind, np.uint8), noise])


def starts_of(scan, text, segments):
    firsts, stops, ends = (np.array(column, np.int32) for column in zip(*segments, strict=True))
    starts, bounds = np.empty(len(text) + 128, np.int32), np.empty(len(segments) + 1, np.int32)
    scan(text, firsts, stops, ends, character_classes(), starts, bounds)
    return [starts[begin : stop - 1].tolist() for begin, stop in itertools.pairwise(bounds)]


def all_cuts(text, first, end):
    """Every safe cut in order, found from the left."""
    cuts, cut = [], first
    while True:
        cut = first_cut(text, cut, end, end, character_classes())
        if cut < 0:
            return cuts
        cuts.append(cut)


def random_texts(num_texts, seed):
    rng = random.Random(seed)
    for _ in range(num_texts):
        known = rng.sample(PARTS, rng.choice([2, 4, 8, len(PARTS)]))
        yield b"".join(rng.choice(known) for _ in range(rng.randint(1, 25)))


@pytest.mark.parametrize("pattern", SCANNED_PATTERNS)
def test_the_two_sides_of_a_cut_are_split_as_the_whole(pattern):
    scan = choose_scanner(pattern, "scalar")
    num_cuts = 0
    for data in random_texts(2000, seed=1):
        text, size = padded(data), len(data)
        (whole,) = starts_of(scan, text, [(0, size, size)])
        for cut in all_cuts(text, 0, size):
            left, right = starts_of(scan, text, [(0, cut, size), (cut, size, size)])
            assert left + right == whole, (data, cut)
            num_cuts += 1
    assert num_cuts > 2000


@pytest.mark.parametrize("pattern", SCANNED_PATTERNS)
def test_a_cut_holds_whatever_follows_the_known_text(pattern):
    scan = choose_scanner(pattern, "scalar")
    texts = list(random_texts(2000, seed=2))
    for data, behind in itertools.pairwise(texts):
        text, size = padded(data, behind), len(data + behind)
        cut = last_cut(text, 0, len(data), len(data), character_classes())
        if cut >= 0:
            (whole,) = starts_of(scan, text, [(0, size, size)])
            left, right = starts_of(scan, text, [(0, cut, size), (cut, size, size)])
            assert left + right == whole, (data, behind, cut)


def test_the_search_from_the_right_finds_the_last_of_those_from_the_left():
    for data in random_texts(2000, seed=3):
        text, size = padded(data), len(data)
        cuts = all_cuts(text, 0, size)
        for stop in range(size + 1):
            wanted = max((cut for cut in cuts if cut <= stop), default=-1)
            assert last_cut(text, 0, stop, size, character_classes()) == wanted, (data, stop)


@pytest.mark.parametrize(
    ("before", "after"),
    [("cat", " dog"), ("5", " dog"), ("cat", ", dog"), ("\u4e2d", "\u3002"), ("x!\n", "y"), ("\n", "\u0301")],
)
def test_worked_examples_of_cuts(before, after):
    text, size = padded((before + after).encode()), len((before + after).encode())
    assert len(before.encode()) in all_cuts(text, 0, size)


@pytest.mark.parametrize(
    "data", ["don't", "a \u0301", "a  b", "a\u0301", "x\n/", "x\n\u3000", "\u4e2d\u6587", "a 1", ""]
)
def test_no_cut_where_a_pattern_may_reach_over(data):
    assert all_cuts(padded(data.encode()), 0, len(data.encode())) == []


@pytest.mark.parametrize(
    ("before", "known", "behind"), [("a", b"\xe4\xb8", b"\xad"), ("\n", b"\xe3", b"\x80\x80")]
)
def test_no_cut_before_a_character_that_is_not_known_yet(before, known, behind):
    """U+4E2D is a letter and U+3000 a blank, cut short they would be neither."""
    text = padded(before.encode() + known, behind)
    assert last_cut(text, 0, 2, len(before) + len(known), character_classes()) == -1


def first_ill_formed(data):
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return -1


@pytest.mark.parametrize("first", [0, 1, 63])
def test_ill_formed_bytes_are_found_where_python_finds_them(first):
    rng = random.Random(first)
    good = [
        chr(code).encode()
        for code in (0x41, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)
    ]
    for _ in range(3000):
        data = bytearray(b"".join(rng.choice(good) for _ in range(rng.randint(0, 120))))
        for _ in range(rng.choice([0, 1, 1, 2])):
            place = rng.randint(0, len(data))
            data[place : place + rng.randint(0, 1)] = rng.randbytes(rng.randint(0, 2))
        text = padded(bytes(first) + bytes(data))
        wanted = first_ill_formed(bytes(data))
        found = valid_utf8(text, first, first + len(data))
        assert found == (wanted if wanted < 0 else wanted + first), bytes(data)


def test_every_sequence_of_a_lead_and_a_second_byte_is_judged_as_python_does():
    for lead, second in itertools.product(range(0x80, 0x100), range(256)):
        for place in (0, 61, 62, 63):
            data = b"a" * place + bytes([lead, second, 0x80, 0x80]) + b"a" * 80
            assert valid_utf8(padded(data), 0, len(data)) == first_ill_formed(data), data


def test_real_files_are_utf8(shared_data):
    for path in sorted((shared_data / "tokenizer").glob("*.txt")):
        data = path.read_bytes()[:2_000_000]
        assert valid_utf8(padded(data), 0, len(data)) == first_ill_formed(data), path.name
