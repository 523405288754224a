"""Which scanner is chosen, and that it is one of the pattern's own."""

import itertools

import numpy as np
import pytest

from scratchlm.tokenizer.compiled.unicode_classes import character_classes
from scratchlm.tokenizer.compiled.vector import PADDING
from scratchlm.tokenizer.pretokenize import SCANNED_PATTERNS, choose_scanner, pretokenize

TEXT = "It's 12345 o'clock,\r\n\n  HTTPServer'S caf\u00e9 \u4e2d\u6587A\u3000\u0301x!\n/\n\t\tend  "


def pieces(scan, text):
    data = text.encode()
    buffer = np.frombuffer(data + bytes(PADDING), np.uint8).copy()
    first, end = np.array([0], np.int32), np.array([len(data)], np.int32)
    starts, bounds = np.empty(len(data) + 129, np.int32), np.empty(2, np.int32)
    count = scan(buffer, first, end, end, character_classes(), starts, bounds)
    return [data[start:stop].decode() for start, stop in itertools.pairwise(starts[:count])]


@pytest.mark.parametrize("pattern", SCANNED_PATTERNS)
@pytest.mark.parametrize("implementation", ["auto", "vector", "scalar"])
def test_the_chosen_scanner_splits_as_the_expression(pattern, implementation):
    assert pieces(choose_scanner(pattern, implementation), TEXT) == pretokenize(TEXT, pattern)


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="pattern 'gpt5' is not known; choose one of gpt2, cl100k"):
        choose_scanner("gpt5")
