"""What the compares of bytes claim about whole scripts is true of every character they cover."""

import itertools

import pytest

from scratchlm.tokenizer.compiled.unicode_classes import LETTERS, MARK, OTHER, character_classes
from scratchlm.tokenizer.compiled.wide_characters import (
    EASTERN_SIGNS,
    THREE_BYTE_LETTERS,
    TWO_BYTE_LETTERS,
    WESTERN_SIGNS,
)


def characters(row):
    """All characters of a row: pairs of the first byte and how many."""
    counts = [range(first, first + count) for first, count in zip(row[0::2], row[1::2], strict=True)]
    for sequence in itertools.product(*counts):
        yield bytes(sequence).decode("utf-8")  # strict: the row holds well-formed characters only


def classes_of(row):
    return {character: int(character_classes()[ord(character)]) for character in characters(row)}


@pytest.mark.parametrize("row", TWO_BYTE_LETTERS + THREE_BYTE_LETTERS)
def test_every_character_of_a_row_of_letters_is_a_letter(row):
    wrong = [character for character, kind in classes_of(row).items() if kind < LETTERS]
    assert not wrong


@pytest.mark.parametrize("row", WESTERN_SIGNS + EASTERN_SIGNS)
def test_every_character_of_a_row_of_signs_is_neither_letter_number_nor_blank(row):
    wrong = [character for character, kind in classes_of(row).items() if kind not in (OTHER, MARK)]
    assert not wrong


def test_frequent_characters_are_covered():
    covered = {character for row in TWO_BYTE_LETTERS + THREE_BYTE_LETTERS for character in characters(row)}
    covered |= {character for row in WESTERN_SIGNS + EASTERN_SIGNS for character in characters(row)}
    assert set("\u00e9\u00fc\u0142\u03bb\u0436\u0451\u05d0\u0627") <= covered
    assert set("\u4e2d\u6587\u3042\u30ab\u30fc\ud55c\u2019\u3002\uff0c") <= covered
