"""A text file -> the ids of its documents in memory, by several threads; `data.encode_file` writes shards.

one<|endoftext|>two     ->     ids of one, ids of two; offsets [0, 1, 2]
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

from scratchlm.runtime import num_cores
from scratchlm.tokenizer.base import END_OF_TEXT, Tokenizer
from scratchlm.tokenizer.batches import Documents, check_threads, map_in_order
from scratchlm.tokenizer.compiled.pages import zeroed_table
from scratchlm.tokenizer.sources import Errors, FileSource


def encode_text_file(
    tokenizer: Tokenizer,
    path: Path,
    *,
    separator: str = END_OF_TEXT,
    num_threads: int | None = None,
    errors: Errors = "strict",
) -> Documents:
    """Encode a file; separators get no id, other special tokens are plain text.

    Args:
        tokenizer: What makes ids of the text.
        path: The file; its ids must fit into memory.
        separator: The text between documents; one at the end of the file opens no empty document.
        num_threads: Threads that encode; all cores by default. The ids do not depend on it.
        errors: What happens to bytes that are no UTF-8: "strict" raises, "replace" puts U+FFFD in their
            place, "lossless" keeps them.

    Raises:
        ValueError: The file is missing or no UTF-8; the message names it.
    """
    num_threads = check_threads(num_cores() if num_threads is None else num_threads)
    with FileSource(path) as source:
        ids, count, offsets = zeroed_table(source.size, tokenizer.dtype), 0, [np.zeros(1, np.int64)]
        free: list[np.ndarray] = []  # memory that is new costs more than the copy out of it
        encode = functools.partial(_encode_range, tokenizer, source, separator, errors, free)
        ranges = tokenizer.cut_source(source, [separator])
        parts = map_in_order(encode, ranges, num_threads=num_threads, num_waiting=2 * num_threads)
        for part in parts:
            ids = _with_room(ids, count, count + part.num_tokens)
            ids[count : count + part.num_tokens] = part.buffer[: part.num_tokens]
            offsets.append(part.ends + count)
            count += part.num_tokens
            free.append(part.buffer)
    found = np.concatenate(offsets)
    if count > found[-1]:  # no separator ends the last document
        found = np.append(found, count)
    return Documents(ids[:count], found)


class _Part(NamedTuple):
    """A range after encoding: its ids at the beginning of a buffer, and where documents end in it."""

    buffer: UInt[np.ndarray, " room"]
    num_tokens: int
    ends: Int64[np.ndarray, " ended"]


def _encode_range(
    tokenizer: Tokenizer,
    source: FileSource,
    separator: str,
    errors: Errors,
    free: list[np.ndarray],
    borders: tuple[int, int],
) -> _Part:
    try:
        ids = free.pop()
    except IndexError:
        ids = np.empty(0, tokenizer.dtype)
    ids = _with_room(ids, 0, borders[1] - borders[0])
    ends, count = [np.empty(0, np.int64)], 0
    for part in tokenizer.encode_source(source, *borders, specials={separator: -1}, errors=errors):
        behind = count + len(part.ids)
        ids = _with_room(ids, count, behind)
        ids[count:behind] = part.ids
        ends.append(part.bounds[1:][part.specials >= 0] + count)
        count = behind
    return _Part(ids, count, np.concatenate(ends))


def _with_room(ids: UInt[np.ndarray, " room"], used: int, wanted: int) -> UInt[np.ndarray, " more_room"]:
    """`ids`, or a larger array that begins with its first `used` entries.

    An id for each byte is room enough but for tokenizers that change text before they encode it.
    """
    if wanted <= len(ids):
        return ids
    larger = zeroed_table(2 * wanted if used else wanted, ids.dtype)
    larger[:used] = ids[:used]
    return larger
