"""scan_cl100k against the regular expressions of cl100k and qwen2, window for window."""

import functools
import random

import numpy as np
import pytest

from scratchlm.tokenizer.compiled.scan_cl100k import scan_cl100k
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.scan_regex import regex_scanner

SCANNERS = {
    "cl100k": functools.partial(scan_cl100k, digits=3),
    "qwen2": functools.partial(scan_cl100k, digits=1),
}
PARTS = (
    *"abZSstlLverm'' \n\r\t!.(/-129\u00a0\u3000\u2028\x85\u0301\ufe0f\u0903\x00\x1c\u200d\ufeff\U0010ffff",
    *("\u00e9", "\u00c9", "\u017f", "\u01c5", "\u02b0", "\u0416", "\u0436", "\u0451", "\u00bd", "\u2167"),
    *("\u4e2d", "\u6587", "\u3042", "\u30fc", "\u30fb", "\u3099", "\ud55c", "\uff66", "\u0663", "\u2014"),
    *("\U0001d7ce", "\U0001f600", "\u2764", "\U00010400", "\U00010428", "\U000e0100"),
    *("'s", "'LL", "'Re", "  ", "\r\n", "\n  \n", "1234567", "don't", "    if"),
)
"""Every class of character in every length, and what the alternatives of the patterns begin with."""
CONSTRUCTS = (
    *(
        "it's ok",
        " (x",
        "(x",
        "1\u03011",
        "!\n\n \n  x",
        "\n\u3000\u4e2d",
        " \u3000\n",
        "'\u017fx",
        "\u00e9's",
    ),
)
ILL_FORMED = (
    b"\x80\xbf\xc0\x80|\xc3|\xd0|\xe0\x80\x80|\xe4\xb8|\xed\xa0\x80|\xf0\x80\x80\x80|\xf4\x90\x80\x80|\xff"
).split(b"|")
FILES = (
    "udhr.jsonl",
    "xquad_paragraphs.jsonl",
    "blns.json",
    "emoji-test.txt",
    "utf8_sequence_0x10ffff.txt",
    "code_mbpp.jsonl",
)
NUM_TEXTS = 20_000


def pieces(scan, segments):
    """The starts that `scan` writes for segments (text, stop), all of them in one buffer."""
    ends = np.cumsum([len(text) for text, _ in segments], dtype=np.int32)
    firsts = (ends - [len(text) for text, _ in segments]).astype(np.int32)
    stops = (firsts + [stop for _, stop in segments]).astype(np.int32)
    text = np.random.default_rng(len(ends)).integers(0, 256, ends[-1] + PADDING, np.uint8)
    text[: ends[-1]] = np.frombuffer(b"".join(text for text, _ in segments), np.uint8)
    starts = np.empty(len(text) + len(ends) + 128, np.int32)
    bounds = np.empty(len(ends) + 1, np.int32)
    count = scan(text, firsts, stops, ends, character_classes(), starts, bounds)
    return [
        (starts[begin:stop] - first).tolist()
        for first, begin, stop in zip(firsts, bounds[:-1], [*bounds[1:-1], count], strict=True)
    ]


def assert_equal_pieces(pattern, segments):
    found = pieces(SCANNERS[pattern], segments)
    wanted = pieces(regex_scanner(pattern), segments)
    for segment, got, want in zip(segments, found, wanted, strict=True):
        assert got == want, segment


def random_text(rng):
    """Some of the parts in random order, often repeated, sometimes damaged."""
    known = [part.encode() for part in rng.sample(PARTS, rng.choice([2, 4, 8, len(PARTS)]))]
    damage = rng.choice([0, 0, 0.1])
    chosen = [rng.choice(known) * rng.choice([1, 1, 1, 2, 3, 40]) for _ in range(rng.choice([3, 8, 20, 60]))]
    return b"".join(rng.choice(ILL_FORMED) if rng.random() < damage else part for part in chosen)


@pytest.mark.parametrize("pattern", SCANNERS)
def test_pieces_are_those_of_the_expression_on_adversarial_texts(pattern):
    rng = random.Random(0)
    for _ in range(NUM_TEXTS // 200):
        texts = [random_text(rng) for _ in range(200)]
        assert_equal_pieces(
            pattern, [(text, rng.choice([len(text), rng.randint(0, len(text))])) for text in texts]
        )


@pytest.mark.parametrize("pattern", SCANNERS)
def test_every_construct_is_seen_at_every_offset_of_a_block(pattern):
    for construct in PARTS + CONSTRUCTS:
        text = construct.encode()
        segments = [
            (before * offset + text + after, offset + len(text))
            for offset in range(131)
            for before, after in ((b"a", b"b"), (b" ", b" c"), (b"!", b"\n"), (b"1", b"2"))
        ]
        assert_equal_pieces(pattern, segments)


@pytest.mark.parametrize("pattern", SCANNERS)
@pytest.mark.parametrize("name", FILES)
def test_pieces_of_real_files_are_those_of_the_expression(pattern, name, shared_data):
    data = (shared_data / "tokenizer" / name).read_bytes()[:600_000]
    assert_equal_pieces(pattern, [(data, len(data))])


def test_every_character_has_the_class_of_the_table():
    """The scripts that are told by compares agree with the table, behind a letter and behind punctuation."""
    characters = [chr(code) for code in range(0x80, 0xD800)]
    texts = [f"{before}{character}b".encode() for character in characters for before in "a!"]
    assert_equal_pieces("cl100k", [(text, len(text)) for text in texts])


def test_segments_are_independent_and_may_be_empty():
    assert pieces(SCANNERS["cl100k"], [(b"ab", 2), (b"", 0), (b"cd 's", 5)]) == [[0, 2], [0], [0, 2, 4, 5]]


def test_text_behind_the_stop_is_looked_at_but_not_split():
    segments = [(b"a  b", 3), (b"a  ", 3), (b"a\n  b", 3), (b"a\n  \n", 3)]
    assert pieces(SCANNERS["cl100k"], segments) == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 3]]
