"""Texts on which scanners go wrong, and the comparison with the regular expression: for test_scan_*.py."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.scan_regex import regex_scanner

PARTS = (
    *"abABZSstlLverm'' \n\r\t!.(/-129\u00a0\u3000\u2028\x85\u0301\ufe0f\u0903\x00\x1c\u200d\ufeff\U0010ffff",
    *("\u00e9", "\u00c9", "\u017f", "\u01c5", "\u02b0", "\u0416", "\u0436", "\u0451", "\u00bd", "\u2167"),
    *("\u4e2d", "\u6587", "\u3042", "\u30fc", "\u30fb", "\u3099", "\ud55c", "\uff66", "\u0663", "\u2014"),
    *("\U0001d7ce", "\U0001f600", "\u2764", "\U00010400", "\U00010428", "\U000e0100", "\u03b1", "\u0627"),
    *("'s", "'LL", "'Re", "  ", "\r\n", "\n  \n", "1234567", "don't", "    if", "HTTPServer"),
)
"""Every class of character in every length, and what the alternatives of the patterns begin with."""

CONSTRUCTS = (
    *("it's ok", " (x", "(x", "1\u03011", "!\n\n \n  x", "\n\u3000\u4e2d", " \u3000\n", "'\u017fx"),
    *("a's's's", "a'lL's", "a's\u4e2dB", "a's\u0301", "a'sB", "b\u4e2dB", "\u4e2dBB", "B\u4e2dB", "\u00e9's"),
    *("!\u0301\u0301x", "!!\u0301\u0301!", " !\u0301\n/\u0301", "\n/\u0301", "!\n/\n//\u0301!", "\n//\n"),
    *("\u0301BB", "\u0301\u4e2dBB", "!\u4e2d\u0301BB's", "\u2764\ufe0f", " \u2764\ufe0f\u200d\u2764\ufe0f"),
    *("\u4e2dBb", "/\n/x"),
)
"""Where an alternative takes something from another, or gives it back."""

ILL_FORMED = (
    b"\x80\xbf\xc0\x80|\xc3|\xd0|\xe0\x80\x80|\xe4\xb8|\xed\xa0\x80|\xf0\x80\x80\x80|\xf4\x90\x80\x80|\xff"
).split(b"|")

HOSTILE = (" ", "\n ", "!", "'", "a's", "1", "\u4e2dA", "\u0301", "!\u0301", "/\n", "A", "\u3000")
"""What takes long where a run is read again and again."""

FILES = (
    *("udhr.jsonl", "xquad_paragraphs.jsonl", "blns.json", "emoji-test.txt", "utf8_sequence_0x10ffff.txt"),
    *("code_mbpp.jsonl", "code_multipl_e.jsonl", "japanese_wagahai.txt", "gutenberg_french.txt"),
)


def pieces(scan: Callable[..., int], segments: Sequence[tuple[bytes, int]]) -> list[list[int]]:
    """The starts that `scan` writes for segments (text, stop), all in one buffer with noise behind it."""
    ends = np.cumsum([len(text) for text, _ in segments], dtype=np.int32)
    firsts = (ends - [len(text) for text, _ in segments]).astype(np.int32)
    stops = (firsts + [stop for _, stop in segments]).astype(np.int32)
    text = np.random.default_rng(len(ends)).integers(0, 256, ends[-1] + PADDING, np.uint8)
    text[: ends[-1]] = np.frombuffer(b"".join(text for text, _ in segments), np.uint8)
    starts = np.empty(len(text) + len(ends) + 128, np.int32)
    bounds = np.empty(len(ends) + 1, np.int32)
    count = scan(text, firsts, stops, ends, character_classes(), starts, bounds)
    assert bounds[-1] == count
    return [
        (starts[begin:stop] - first).tolist()
        for first, begin, stop in zip(firsts, bounds[:-1], bounds[1:], strict=True)
    ]


def assert_equal_pieces(
    scan: Callable[..., int], pattern: str, segments: Sequence[tuple[bytes, int]]
) -> None:
    """`scan` splits each segment as the regular expression called `pattern` does."""
    found = pieces(scan, segments)
    wanted = pieces(regex_scanner(pattern), segments)
    for segment, got, want in zip(segments, found, wanted, strict=True):
        assert got == want, segment


def random_segments(num_segments: int, rng: random.Random) -> list[tuple[bytes, int]]:
    """Some of the parts in random order, often repeated, sometimes damaged; or cut short."""
    segments = []
    for _ in range(num_segments):
        known = [part.encode() for part in rng.sample(PARTS, rng.choice([2, 4, 8, len(PARTS)]))]
        damage = rng.choice([0, 0, 0.1])
        length = rng.choice([3, 8, 20, 60])
        chosen = [rng.choice(known) * rng.choice([1, 1, 1, 2, 3, 40]) for _ in range(length)]
        text = b"".join(rng.choice(ILL_FORMED) if rng.random() < damage else part for part in chosen)
        segments.append((text, rng.choice([len(text), rng.randint(0, len(text))])))
    return segments


def segments_at_every_offset() -> Iterator[list[tuple[bytes, int]]]:
    """For each construct: at each place of a block and over its edges, behind and before other classes."""
    around = ((b"a", b"b"), (b"B", b"B"), (b" ", b" c"), (b"!", b"\n"), (b"1", b"2"), (b"\n", b"!"))
    for construct in PARTS + CONSTRUCTS:
        text = construct.encode()
        yield [
            (before * offset + text + after, offset + len(text))
            for offset in range(131)
            for before, after in around
        ]


def segments_of_every_character() -> list[tuple[bytes, int]]:
    """Each character of the first two planes behind and before letters and punctuation."""
    codes = [code for code in range(0x80, 0x20000) if not 0xD800 <= code < 0xE000]
    texts = [f"{before}{chr(code)}{after}".encode() for code in codes for before, after in ("aB", "!b")]
    return [(text, len(text)) for text in texts]
