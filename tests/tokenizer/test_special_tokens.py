"""The finder of special tokens gives what a regular expression with the longest name first gives."""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.special_tokens import SpecialsFinder
from scratchlm.tokenizer.streaming import cut_specials, specials_pattern

FAMILIES = {
    "one": ["<|endoftext|>"],
    "overlapping": ["<|a|>", "<|a|><|a|>", "<|", "a", "|><"],
    "one byte each": ["<", ">", "|"],
    "many pairs": [f"{first}{second}" for first in "<|a" for second in "abcdefgh>|"],
    "many first bytes": [
        "<|",
        *"ghijklmn",
        "a|",
        "b",
        "c>",
        "d",
        "e",
        "f",
        "|a",
        ">>",
        "\u00e9",
        "\u4e2d\u6587",
    ],
    "a thousand": [f"<|reserved_{number}|>" for number in range(1000)],
    "not ascii": ["\u00e9", "\u4e2d", "\u4e2d\u6587", "\U0001f600"],
    "NUL": ["\0", "\0\0\0"],
}
PIECES = [*"<|>abcdef\u00e9\u4e2d\u6587\0 \n", "<|a|>", "<|reserved_1", "7|>", "<|endoftext|>", "\U0001f600"]


def buffer_of(data):
    buffer = np.full(len(data) + PADDING, ord("<"), np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    return buffer


def found_by_regex(names, data):
    ordered = sorted(names, key=len, reverse=True)
    pattern = re.compile(b"|".join(re.escape(name.encode()) for name in ordered), re.DOTALL)
    return [(match.start(), match.group().decode()) for match in pattern.finditer(data)]


def found(finder, data, first=0, end=None):
    places, which = finder.find(buffer_of(data), first, len(data) if end is None else end)
    assert places.dtype == which.dtype == np.int32
    return [(int(place), finder.names[name]) for place, name in zip(places, which, strict=True)]


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=90))
def test_finds_what_a_regular_expression_finds(names, pieces):
    data = "".join(pieces).encode()
    assert found(SpecialsFinder(names), data) == found_by_regex(names, data)


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES)
def test_finds_every_name_at_every_place_of_a_block(names):
    finder = SpecialsFinder(names)
    for name in names[:40]:
        for place in (*range(0, 4), *range(58, 70), 127, 128):
            data = b"-" * place + name.encode() + b"-"
            assert found(finder, data) == [(place, name)]


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES)
def test_looks_only_where_it_is_told(names):
    finder = SpecialsFinder(names)
    data = ("xx<|a|><|a|><|reserved_99|>\u00e9\u4e2d\u6587abc\0\0\0" * 9).encode()
    for first in range(0, 70, 3):
        for end in range(first, len(data), 17):
            inside = [(place + first, name) for place, name in found_by_regex(names, data[first:end])]
            assert found(finder, data, first, end) == inside


def test_the_number_of_finds_has_no_limit():
    finder = SpecialsFinder(["<", "<>"])
    data = b"<><" * 3000
    assert found(finder, data) == found_by_regex(finder.names, data)


def test_a_very_long_name_is_found_and_its_beginning_is_not():
    long = "<|" + "long" * 20_000 + "|>"
    finder = SpecialsFinder(["<|end|>", long])
    assert finder.longest == len(long)
    text = f"a{long[:-1]}<|end|>{long}<|end|>"
    parts = list(cut_specials(text, finder))
    assert parts == [(f"a{long[:-1]}", "<|end|>"), ("", long), ("", "<|end|>")]


def test_bytes_that_are_no_text_hide_nothing():
    finder = SpecialsFinder(["<|a|>"])
    assert found(finder, b"\xff\xc3<|a|>\x80\xed\xa0<|a|") == [(2, "<|a|>")]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(names=st.sampled_from(list(FAMILIES.values())), pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_spans_are_those_of_the_naive_twin(names, pieces):
    text = "".join(pieces)
    assert list(SpecialsFinder(names).spans(text)) == list(specials_pattern(names).spans(text))


def test_cut_gives_the_text_back():
    finder = SpecialsFinder(FAMILIES["overlapping"])
    parts = list(cut_specials("x\u00e9<|a|><|a|><|a|>\u4e2d|>", finder))
    assert parts == [("x\u00e9", "<|a|><|a|>"), ("", "<|a|>"), ("\u4e2d|>", None)]
    assert list(cut_specials("", finder)) == []
    assert list(cut_specials("plain", SpecialsFinder([]))) == [("plain", None)]


def test_repeated_names_count_as_the_first():
    assert found(SpecialsFinder(["a", "b", "a"]), b"ba") == [(0, "b"), (1, "a")]
    places, which = SpecialsFinder(["a", "b", "a"]).find(buffer_of(b"ba"), 0, 2)
    assert (places.tolist(), which.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises(ValueError, match=r"special token .*: must be valid text of at least one character"):
        SpecialsFinder(["<|a|>", name])


def test_a_thousand_names_cost_no_more_than_one():
    text = buffer_of(b"The quick brown fox is < the lazy dog, and so on. " * 40_000)

    def seconds(names):
        finder, best = SpecialsFinder(names), 1.0
        for _ in range(9):
            began = time.perf_counter()
            finder.find(text, 0, len(text) - PADDING)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(FAMILIES["a thousand"]) < 3 * seconds(FAMILIES["one"])
