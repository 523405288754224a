r"""Which tokens may become one token when merges may cross words: at most so many words, no ": ".

    " by the" + " way"   3 words                    shape = words << 4 | flags for both ends
    " th" + "e"          1 word: they join inside

A symbol's shape is one int64, and the shape of a merged symbol follows from its parts' shapes. A shape that
is not allowed counts as very many words, so nothing that contains it is allowed either. The same functions
run inside compiled loops, on numbers, and with NumPy, on arrays.

Source: Liu et al. 2025, "SuperBPE: Space Travel for Language Models", https://arxiv.org/abs/2503.13423,
appendix A.1: at most four words, and no token with ": ", which would swallow the end of a prompt.
"""

# ruff: noqa: ANN001, ANN201 - numbers or arrays; the docstrings name them

import numpy as np
from jaxtyping import Int64

from scratchlm.tokenizer.compiled.uncounted import uncounted_part

_ENDS_IN_WORD, _BEGINS_IN_WORD, _ENDS_IN_COLON, _BEGINS_WITH_BLANK = 1, 2, 4, 8
_FLAGS_OF_BEGIN, _FLAGS_OF_END = _BEGINS_IN_WORD | _BEGINS_WITH_BLANK, _ENDS_IN_WORD | _ENDS_IN_COLON
_WORDS = 4  # place of the number of words: behind the flags
_TOO_MANY = 1 << 40


def joined_shape(left, right):
    """The shape of a symbol whose parts have these shapes."""
    inside_word = left & (right >> 1) & 1
    colon_blank = (left >> 2) & (right >> 3) & 1
    words = (left >> _WORDS) + (right >> _WORDS) - inside_word + colon_blank * _TOO_MANY
    return words << _WORDS | left & _FLAGS_OF_BEGIN | right & _FLAGS_OF_END


def num_words(shape):
    """Words that the symbol touches."""
    return shape >> _WORDS


joined_shape_part = uncounted_part(joined_shape)
num_words_part = uncounted_part(num_words)


def byte_shapes() -> Int64[np.ndarray, "256"]:
    """The shapes of the single bytes; words are what ASCII's white space separates."""
    values = np.arange(256)
    in_word = ~np.isin(values, np.frombuffer(b" \t\n\r\v\f", np.uint8))
    shapes = in_word * (1 << _WORDS | _ENDS_IN_WORD | _BEGINS_IN_WORD)
    shapes[ord(":")] |= _ENDS_IN_COLON
    shapes[ord(" ")] |= _BEGINS_WITH_BLANK
    return shapes.astype(np.int64)
