"""The plain scanner against the regular expressions of all patterns: random, damaged and real text."""

import functools
import random
import time

import numpy as np
import pytest

from scratchlm.tokenizer.compiled.scan_scalar import CL100K, GPT2, O200K, QWEN2, scan_scalar
from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.pretokenize import PATTERNS
from scratchlm.tokenizer.scan_regex import regex_scanner

CODES = {"gpt2": GPT2, "cl100k": CL100K, "qwen2": QWEN2, "o200k": O200K}
ILL_FORMED = (
    *(b"\x80", b"\xbf\xbf", b"\xc0\x80", b"\xc3", b"\xe0\x80\x80", b"\xe4\xb8", b"\xed\xa0\x80"),
    *(b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xff"),
)
PARTS = (
    *("a", "B", "Z", "s", "S", "t", "ll", "RE", "v", "e", "M", "d", "'", "'s", "'LL", "'\u017f", "'Ve"),
    *(" ", "  ", "\n", "\r", "\t", "\x0b", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x00", "/"),
    *("1", "42", "1234567", "\u0663", "\u00bd", "\u2167", "\U0001d7ce", "!", "(", ".", "\u2014", "\u30fb"),
    *("\u0301", "\ufe0f", "\u0903", "\u200d", "\u00e9", "\u00c9", "\u017f", "\u01c5", "\u02b0", "\u212a"),
    *("\u0416", "\u0436", "\u4e2d", "\u6587", "\u3042", "\u30fc", "\ud55c", "\uff66", "\U00010400"),
    *("\U0001f600", "\u2764\ufe0f", "\U0010ffff", "\ufeff", "\ue000"),
)
FILES = (
    *("udhr.jsonl", "xquad_paragraphs.jsonl", "blns.json", "emoji-test.txt", "utf8_sequence_0x10ffff.txt"),
    *("code_mbpp.jsonl", "japanese_wagahai.txt"),
)
NUM_TEXTS = 20_000


def pieces(scan, texts):
    """The starts of the pieces in each text; the texts stand in one buffer, behind them noise."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int32)
    firsts = ends - np.array([len(text) for text in texts], np.int32)
    joined = np.frombuffer(b"".join(texts), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, PADDING, np.uint8)
    starts = np.empty(len(joined) + len(texts) + 128, np.int32)
    bounds = np.empty(len(texts) + 1, np.int32)
    text = np.concatenate([joined, noise])
    count = scan(text, firsts, ends, ends, character_classes(), starts, bounds)
    assert bounds[-1] == count
    return [
        (starts[begin:stop] - first).tolist()
        for first, begin, stop in zip(firsts, bounds[:-1], bounds[1:], strict=True)
    ]


def scalar(pattern):
    return functools.partial(scan_scalar, pattern=CODES[pattern])


def random_text(rng):
    """A few of the parts in random order, some repeated; mostly blanks in a third of the texts."""
    known = rng.sample(PARTS, rng.choice([2, 3, 5, 10, len(PARTS)]))
    known += rng.choice([[], [], [" ", "\n", "\r", "\t", " \n"]])
    damage = rng.choice([0, 0, 0.1])
    return b"".join(
        rng.choice(ILL_FORMED)
        if rng.random() < damage
        else rng.choice(known).encode() * rng.choice([1, 1, 1, 2, 5])
        for _ in range(rng.randint(0, 30))
    )


@pytest.mark.parametrize("pattern", CODES)
def test_pieces_are_those_of_the_expression_on_adversarial_texts(pattern):
    rng = random.Random(1)
    for _ in range(NUM_TEXTS // 500):
        texts = [random_text(rng) for _ in range(500)]
        found, wanted = pieces(scalar(pattern), texts), pieces(regex_scanner(pattern), texts)
        assert found == wanted, next(
            pair for pair in zip(texts, found, wanted, strict=True) if pair[1] != pair[2]
        )


@pytest.mark.parametrize("pattern", CODES)
@pytest.mark.parametrize("name", FILES)
def test_pieces_of_real_files_are_those_of_the_expression(pattern, name, shared_data):
    data = (shared_data / "tokenizer" / name).read_bytes()[:300_000]
    assert pieces(scalar(pattern), [data]) == pieces(regex_scanner(pattern), [data])


def test_every_character_is_split_as_the_expression_splits_it():
    characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    texts = [f"'{character}a!{character}' {character}{character}\n".encode() for character in characters]
    assert pieces(scalar("o200k"), texts) == pieces(regex_scanner("o200k"), texts)


def test_llama3_splits_as_cl100k():
    assert PATTERNS["llama3"] == PATTERNS["cl100k"]


def test_worked_examples():
    assert pieces(scalar("gpt2"), [b"it's 2048!\n\n  ok"]) == [[0, 2, 4, 9, 10, 13, 16]]
    assert pieces(scalar("cl100k"), [b"it's 2048!\n\n  ok"]) == [[0, 2, 4, 5, 8, 9, 12, 13, 16]]
    assert pieces(scalar("o200k"), [b"HTTPServer's AB\xe4\xb8\xadC"]) == [[0, 12, 18, 19]]


@pytest.mark.parametrize("pattern", CODES)
@pytest.mark.parametrize("unit", [*" \naA'1\u0301", " \n", "\n ", "\r\n\t", "/\n", "\u4e2dA", "A\u0301"])
def test_time_is_linear_in_the_text(pattern, unit):
    """Quadratic time for half a megabyte of one run would be minutes."""
    data = unit.encode()
    start = time.perf_counter()
    pieces(scalar(pattern), [data * (500_000 // len(data))])
    pieces(scalar(pattern), [b"\xe4\xb8\xad" + data * (500_000 // len(data)) + b"!"])
    assert time.perf_counter() - start < 5
