"""scan_o200k against the regular expression of o200k."""

import itertools
import random
import time

import pytest
import scanned_texts

from scratchlm.tokenizer.compiled.scan_o200k import scan_o200k


def test_adversarial_texts_are_split_as_the_expression_splits_them():
    rng = random.Random(1)
    for _ in range(150):
        scanned_texts.assert_equal_pieces(scan_o200k, "o200k", scanned_texts.random_segments(200, rng))


def test_every_construct_is_seen_at_every_offset_of_a_block():
    for segments in scanned_texts.segments_at_every_offset():
        scanned_texts.assert_equal_pieces(scan_o200k, "o200k", segments)


@pytest.mark.parametrize("name", scanned_texts.FILES)
def test_real_files_are_split_as_the_expression_splits_them(name, shared_data):
    data = (shared_data / "tokenizer" / name).read_bytes()[:300_000]
    scanned_texts.assert_equal_pieces(scan_o200k, "o200k", [(data, len(data))])


def test_every_character_has_the_class_of_the_table():
    scanned_texts.assert_equal_pieces(scan_o200k, "o200k", scanned_texts.segments_of_every_character())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("getHTTPServer's ID", ["get", "HTTPServer's", " ID"]),
        ("a's's's", ["a's", "'s's"]),
        ("\u4e2d\u6587GPT", ["\u4e2d\u6587", "GPT"]),
        ("\u4e2d\u6587GPT\u306f", ["\u4e2d\u6587GPT\u306f"]),
        ("b\u4e2dB", ["b\u4e2d", "B"]),
        ("!\u0301x !\u0301x", ["!\u0301x", " !\u0301", "x"]),
        ("!\n/usr", ["!\n/", "usr"]),
    ],
)
def test_words_end_where_the_pattern_gives_back(text, wanted):
    data = text.encode()
    (starts,) = scanned_texts.pieces(scan_o200k, [(data, len(data))])
    found = [data[first:stop].decode() for first, stop in itertools.pairwise(starts)]
    assert found == wanted


@pytest.mark.parametrize("part", scanned_texts.HOSTILE)
def test_no_text_takes_more_than_linear_time(part):
    text = ("\u4e2d" + part * 2_000_000).encode()[:2_000_000]
    scanned_texts.pieces(scan_o200k, [(b"a", 1)])
    before = time.perf_counter()
    scanned_texts.pieces(scan_o200k, [(text, len(text))])
    assert time.perf_counter() - before < 5  # some 10 ms; in quadratic time minutes
