"""scan_cl100k against the regular expressions of cl100k and qwen2."""

import functools
import random
import time

import pytest
import scanned_texts

from scratchlm.tokenizer.compiled.scan_cl100k import scan_cl100k

SCANNERS = {
    "cl100k": functools.partial(scan_cl100k, digits=3),
    "qwen2": functools.partial(scan_cl100k, digits=1),
}


@pytest.mark.parametrize("pattern", SCANNERS)
def test_adversarial_texts_are_split_as_the_expression_splits_them(pattern):
    rng = random.Random(0)
    for _ in range(100):
        segments = scanned_texts.random_segments(200, rng)
        scanned_texts.assert_equal_pieces(SCANNERS[pattern], pattern, segments)


def test_every_construct_is_seen_at_every_offset_of_a_block():
    for segments in scanned_texts.segments_at_every_offset():
        scanned_texts.assert_equal_pieces(SCANNERS["cl100k"], "cl100k", segments)


@pytest.mark.parametrize("pattern", SCANNERS)
@pytest.mark.parametrize("name", scanned_texts.FILES)
def test_real_files_are_split_as_the_expression_splits_them(pattern, name, shared_data):
    data = (shared_data / "tokenizer" / name).read_bytes()[:300_000]
    scanned_texts.assert_equal_pieces(SCANNERS[pattern], pattern, [(data, len(data))])


def test_every_character_has_the_class_of_the_table():
    segments = scanned_texts.segments_of_every_character()
    scanned_texts.assert_equal_pieces(SCANNERS["cl100k"], "cl100k", segments)


def test_segments_are_independent_and_may_be_empty():
    found = scanned_texts.pieces(SCANNERS["cl100k"], [(b"ab", 2), (b"", 0), (b"cd 's", 5)])
    assert found == [[0, 2], [0], [0, 2, 4, 5]]


def test_text_behind_the_stop_is_looked_at_but_not_split():
    segments = [(b"a  b", 3), (b"a  ", 3), (b"a\n  b", 3), (b"a\n  \n", 3)]
    found = scanned_texts.pieces(SCANNERS["cl100k"], segments)
    assert found == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 3]]


@pytest.mark.parametrize("part", scanned_texts.HOSTILE)
def test_no_text_takes_more_than_linear_time(part):
    text = ("\n" + part * 2_000_000).encode()[:2_000_000]
    scanned_texts.pieces(SCANNERS["cl100k"], [(b"a", 1)])
    before = time.perf_counter()
    scanned_texts.pieces(SCANNERS["cl100k"], [(text, len(text))])
    assert time.perf_counter() - before < 5  # some 10 ms; in quadratic time minutes
