r"""Bytes <-> printable characters, as GPT-2's files show them: b" the\n" <-> "\u0120the\u010a".

JSON and text files hold characters, tokens are bytes. So each byte is shown as one character: the printable
ones of Latin-1 as themselves, the other 68 in their order as U+0100 and following (a blank is U+0120, a
newline U+010A). Every format but tiktoken's writes tokens this way. A whole vocabulary is converted at once,
by one look-up in a table for all its bytes: 200,000 tokens take 0.05 s, one by one 0.4 s.

Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Int16, UInt32

from scratchlm.tokenizer.formats.reading import shown


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte -> the printable character that shows it. Example: 32 -> U+0120."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {
        value: chr(0x100 + number) for number, value in enumerate(others)
    }


@functools.cache
def _codes() -> UInt32[np.ndarray, "256"]:
    """Byte -> code point."""
    return np.array([ord(byte_characters()[value]) for value in range(256)], np.uint32)


@functools.cache
def _values() -> Int16[np.ndarray, " codes"]:
    """Code point -> byte; -1 where it stands for none, as the last entry does for all greater ones."""
    values = np.full(int(_codes().max()) + 2, -1, np.int16)
    values[_codes()] = np.arange(256)
    return values


def to_printable(token: bytes) -> str:
    r"""Show bytes as printable characters: b" the" -> "\u0120the"."""
    characters = byte_characters()
    return "".join(characters[value] for value in token)


def from_printable(text: str) -> bytes:
    """Undo `to_printable`.

    Raises:
        ValueError: A character stands for no byte.
    """
    return all_from_printable([text])[0]


def all_to_printable(tokens: Iterable[bytes]) -> list[str]:
    """`to_printable` of many tokens."""
    tokens = list(tokens)
    codes = _codes()[np.frombuffer(b"".join(tokens), np.uint8)]
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    bounds = accumulate(map(len, tokens), initial=0)
    return [text[start:stop] for start, stop in pairwise(bounds)]


def all_from_printable(texts: Sequence[str]) -> list[bytes]:
    """`from_printable` of many texts.

    Raises:
        ValueError: A character stands for no byte; the message names it and its token.
    """
    # Lone surrogates, which JSON can hold, pass here and stand for no byte.
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    table = _values()
    values = table[np.minimum(codes, len(table) - 1)]
    bounds = list(accumulate(map(len, texts), initial=0))
    if (values < 0).any():
        place = int(np.argmax(values < 0))
        which = int(np.searchsorted(bounds, place, side="right")) - 1
        raise ValueError(
            f"token {shown(texts[which])}: the character {chr(codes[place])!r} stands for no byte"
        )
    joined = values.astype(np.uint8).tobytes()
    return [joined[start:stop] for start, stop in pairwise(bounds)]


def merges_from_printable(pairs: Sequence[Sequence[str]]) -> list[tuple[bytes, bytes]]:
    r"""Pairs of printable tokens -> pairs of tokens: ("\u0120t", "he") -> (b" t", b"he").

    Raises:
        ValueError: A character stands for no byte.
    """
    # Most tokens are parts of several merges: one `bytes` object serves all of them.
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    tokens = dict(zip(texts, all_from_printable(texts), strict=True))
    return [(tokens[left], tokens[right]) for left, right in pairs]


def split_merge_lines(lines: Sequence[str]) -> list[tuple[str, str]]:
    r"""Lines of printable merges -> pairs: "\u0120t he" -> ("\u0120t", "he").

    Raises:
        ValueError: A line is not two printable tokens with one blank between them.
    """
    pairs = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not left or not right:
            raise ValueError(f"merge {shown(line)} is not two tokens separated by one blank")
        pairs.append((left, right))
    return pairs
