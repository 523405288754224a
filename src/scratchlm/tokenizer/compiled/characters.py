"""Bytes -> one character: its class and its length; what is no UTF-8 is a character of one byte, class OTHER.

    lead      length   second byte
    00-7F     1
    C2-DF     2        80-BF
    E0-EF     3        80-BF; from A0 after E0, to 9F after ED (surrogates)
    F0-F4     4        80-BF; from 90 after F0, to 8F after F4

Source: The Unicode Standard, table 3-7, "Well-Formed UTF-8 Byte Sequences".
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import OTHER
from scratchlm.tokenizer.compiled.vector import load


@uncounted_part
def _follows(text, i, end):
    """Is text[i] a continuation byte before `end`?"""
    return i < end and (load(text, i) & 0xC0) == 0x80


@uncounted_loop
def code_point_at(text, i, end):
    """The code point at text[i] and its number of bytes; -1 and 1 where no well-formed character starts."""
    lead = np.int64(load(text, i))
    if lead < 0x80:
        return lead, np.int64(1)
    if lead < 0xC2 or lead > 0xF4 or not _follows(text, i + 1, end):
        return np.int64(-1), np.int64(1)
    second = np.int64(load(text, i + 1))
    if lead < 0xE0:
        return ((lead & 31) << 6) | (second & 63), np.int64(2)
    if not _follows(text, i + 2, end):
        return np.int64(-1), np.int64(1)
    third = np.int64(load(text, i + 2))
    if lead < 0xF0:
        code = ((lead & 15) << 12) | ((second & 63) << 6) | (third & 63)
        if code < 0x800 or 0xD800 <= code < 0xE000:
            return np.int64(-1), np.int64(1)
        return code, np.int64(3)
    if not _follows(text, i + 3, end):
        return np.int64(-1), np.int64(1)
    fourth = np.int64(load(text, i + 3))
    code = ((lead & 7) << 18) | ((second & 63) << 12) | ((third & 63) << 6) | (fourth & 63)
    if code < 0x10000 or code > 0x10FFFF:
        return np.int64(-1), np.int64(1)
    return code, np.int64(4)


@uncounted_part
def class_at(text, i, end, classes):
    """The class of the character at text[i] and its number of bytes."""
    code, length = code_point_at(text, i, end)
    if code < 0:
        return np.int64(OTHER), length
    return np.int64(load(classes, code)), length


@uncounted_loop
def class_of(text, i, end, classes):
    """`class_at`, as a call: decoding is too large to be compiled into every place that asks."""
    return class_at(text, i, end, classes)


@uncounted_loop
def character_start(text, first, i, end):
    """Where the character that text[i] belongs to starts, not before `first`."""
    if (load(text, i) & 0xC0) == 0x80:
        for back in range(1, 4):
            place = i - back
            if place < first:
                break
            if (load(text, place) & 0xC0) != 0x80:
                _, length = code_point_at(text, place, end)
                return place if length > back else i
    return i
