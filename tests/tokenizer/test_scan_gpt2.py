"""The scanner of GPT-2's pattern against the expression itself: random, damaged, real text, block edges."""

import itertools
import random

import numpy as np
import pytest

from scratchlm.tokenizer.compiled.scan_gpt2 import scan_gpt2
from scratchlm.tokenizer.compiled.scan_scalar import GPT2, scan_scalar
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.scan_regex import regex_scanner

PARTS = [
    *("the", "a", " ", "  ", "\n", "\t", "'", "'s", "'ll", "'re", "'v", "'t", "7", "42", "!", ".."),
    *("\u00e9", "\u4f60", "\u3042", "\u30fb", "\u3000", "\u00a0", "\u0301", "\U0001f600", "\u2019"),
    *(
        "\u0416",
        "\u03bb",
        "\u0627",
        "\u064b",
        "\u3002",
        "\ud55c",
        "\u2028",
        "\u0663",
        "\u00bd",
        "\u00d7",
        "\u0085",
        "\u180e",
        "\u017f",
    ),
]
DAMAGED = [
    b"\xff",
    b"\xe4\xbd",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc3",
    b"\xf0\x9f\x98",
    b"\xc0\x80",
]


def scanned(scan, data, segments):
    """Starts and bounds; what stands behind the text is noise."""
    text = np.random.default_rng(len(data)).integers(0, 256, len(data) + PADDING, np.uint8)
    text[: len(data)] = np.frombuffer(data, np.uint8)
    firsts, stops, ends = (np.array(column, np.int32) for column in zip(*segments, strict=True))
    starts = np.zeros(len(data) + len(segments) + 128, np.int32)
    bounds = np.zeros(len(segments) + 1, np.int32)
    count = scan(text, firsts, stops, ends, character_classes(), starts, bounds)
    return starts[:count].tolist(), bounds.tolist()


def scalar_scanner(*arguments):
    return scan_scalar(*arguments, GPT2)


def check(data, segments=None):
    segments = segments or [(0, len(data), len(data))]
    assert scanned(scan_gpt2, data, segments) == scanned(regex_scanner("gpt2"), data, segments), (
        data,
        segments,
    )


@pytest.mark.parametrize("damage", [0.0, 0.03, 0.2])
def test_random_text_in_one_segment_and_in_two(damage):
    draw = random.Random(1)
    for _ in range(4000):
        parts = [
            draw.choice(DAMAGED) if draw.random() < damage else draw.choice(PARTS).encode()
            for _ in range(draw.randrange(120))
        ]
        data = b"".join(parts)
        middle = draw.randrange(len(data) + 1)
        check(data)
        check(data, [(0, middle, middle), (middle, len(data), len(data))])


def test_long_random_text_is_split_as_the_scalar_scanner_does():
    draw = random.Random(2)
    for _ in range(200):
        texts = [
            b"".join(
                draw.choice(DAMAGED) if draw.random() < 0.02 else draw.choice(known).encode()
                for _ in range(draw.randrange(300))
            )
            for known in (draw.sample(PARTS, draw.choice([2, 3, 6, 12, len(PARTS)])) for _ in range(100))
        ]
        ends = list(itertools.accumulate(map(len, texts), initial=0))
        segments = [(first, end, end) for first, end in itertools.pairwise(ends)]
        data = b"".join(texts)
        assert scanned(scan_gpt2, data, segments) == scanned(scalar_scanner, data, segments), data


CONSTRUCTS = [
    *("'s x", "'ll", "'", "'ve'", "  x", "\n\n", "7a", "\u3000\u3000x", "\u4f60\u597d", "\u3042\u3042."),
    *("\u00a0a", "\U0001f600a", "\u0416\u0416", "\u2028", "\u00a0\u00a0\u00a0"),
]
FILES = [
    "japanese_wagahai.txt",
    *("udhr.jsonl", "xquad_paragraphs.jsonl", "blns.json", "emoji-test.txt", "utf8_sequence_0x10ffff.txt"),
    *("code_mbpp.jsonl", "gutenberg_french.txt"),
]


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_every_construct_at_every_place_of_a_block(construct):
    for place in range(131):
        for filler in ("a", "\u4f60", " ", "7", "\u0416"):
            check((filler * place + construct + "zz").encode())
            check((filler * place + construct).encode())


def test_text_behind_the_stop_is_looked_at_and_not_split():
    data = b"one two  three"
    starts, _ = scanned(scan_gpt2, data, [(0, 7, 14)])
    assert starts == [0, 3, 7]
    assert scanned(scan_gpt2, b"ab  ", [(0, 2, 4)])[0] == [0, 2]


def test_empty_segments_have_only_their_stop():
    assert scanned(scan_gpt2, b"ab", [(0, 0, 0), (0, 2, 2), (2, 2, 2)]) == ([0, 0, 2, 2], [0, 1, 3, 4])


def test_letters_that_are_settled_by_their_first_bytes_are_letters():
    for code in [*range(0x4E00, 0xA000), *range(0xB000, 0xD000), *range(0xC0, 0x100), *range(0x400, 0x480),
                 *range(0x3040, 0x3100)]:  # fmt: skip
        check((chr(code) * 12 + "!").encode())


@pytest.mark.parametrize("name", FILES)
def test_real_text(shared_data, name):
    data = (shared_data / "tokenizer" / name).read_bytes()[:400_000]
    check(data)
