"""The table of classes equals what `regex` says, one property after the other."""

import time

import numpy as np
import pytest
import regex

from scratchlm.tokenizer.compiled.unicode_classes import (
    CASELESS,
    LETTERS,
    LOWER,
    MARK,
    NUM_CODE_POINTS,
    NUMBER,
    SPACE,
    UPPER,
    character_classes,
    runs_of_regex,
)

TEXT = "".join("\0" if 0xD800 <= code < 0xE000 else chr(code) for code in range(NUM_CODE_POINTS))


@pytest.mark.parametrize(
    ("expression", "kinds"),
    [
        (r"\s", [SPACE]),
        (r"\p{White_Space}", [SPACE]),
        (r"\p{N}", [NUMBER]),
        (r"\p{M}", [MARK]),
        (r"\p{L}", [UPPER, LOWER, CASELESS]),
        (r"[\p{Lu}\p{Lt}]", [UPPER]),
        (r"\p{Ll}", [LOWER]),
        (r"[\p{Lm}\p{Lo}]", [CASELESS]),
    ],
)
def test_the_table_equals_regex_on_every_code_point(expression, kinds):
    expected = np.zeros(NUM_CODE_POINTS, bool)
    for match in regex.finditer(f"{expression}+", TEXT):
        expected[match.start() : match.end()] = True
    found = np.isin(character_classes(), kinds)
    different = np.flatnonzero(found != expected)
    assert not len(different), [f"U+{code:04X}" for code in different[:20]]


def test_the_stored_runs_are_those_of_regex():
    classes = character_classes()
    firsts, kinds = zip(*runs_of_regex(), strict=True)
    assert np.array_equal(np.repeat(np.uint8(kinds), np.diff(firsts, append=NUM_CODE_POINTS)), classes)


def test_letters_are_the_greatest_classes():
    assert min(UPPER, LOWER, CASELESS) == LETTERS > max(SPACE, NUMBER, MARK)


def test_the_table_is_fast_to_make_and_made_once():
    assert character_classes() is character_classes()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        character_classes.__wrapped__()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
