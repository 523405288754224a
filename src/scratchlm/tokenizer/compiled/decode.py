r"""Ids -> the bytes they stand for, joined: lengths are summed, then each token is copied in one step.

    heads     the first 16 bytes of every token, filled up with zeros
    lengths   how many bytes it has; -1 for ids that do not exist
    output    "One" + " day" + ...     16 bytes are written each time, the next token overwrites the rest

Nearly all tokens have at most 16 bytes, so copying one is two loads and two stores without a decision. The
rest of a longer one comes from `tails`. An id that does not exist is found while lengths are summed, before
anything is written. The plain twin is `b"".join(tokens[id] for id in ids)`.
"""

# ruff: noqa: ANN001, ANN201 - Numba infers the types; the docstrings name them

import array
import codecs
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8, UInt32

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop
from scratchlm.tokenizer.compiled.vector import load, load_8_bytes, store_8_bytes

HEAD_BYTES = 16
"""Two words of 8 bytes; 1 in 50 of GPT-2's tokens is longer, and they are rare ones."""

_SHORT = 48
"""Up to here a list of ids is joined by Python: a compiled loop's call takes as long (measured: 4 us)."""


@uncounted_loop
def measure_tokens(ids, lengths):
    """Bytes of all ids (uint32), or -1 - place of the first that does not exist."""
    total = np.int64(0)
    for i in range(len(ids)):
        id = np.int64(load(ids, i))
        if id >= len(lengths) or lengths[id] < 0:
            return np.int64(-1 - i)
        total += lengths[id]
    return total


@uncounted_loop
def join_tokens(ids, lengths, heads, places, tails, output):
    """Write the bytes of all ids, which exist, to `output`; return how many.

    Args:
        ids: uint32.
        lengths: int32, bytes of each token.
        heads: uint8, 16 bytes of each token.
        places: int32, where in `tails` the rest of each token is.
        tails: uint8, with 8 bytes of padding.
        output: uint8, room for all and 16 bytes more.
    """
    written = np.int64(0)
    for i in range(len(ids)):
        id = np.int64(load(ids, i))
        length = np.int64(load(lengths, id))
        store_8_bytes(output, written, load_8_bytes(heads, HEAD_BYTES * id))
        store_8_bytes(output, written + 8, load_8_bytes(heads, HEAD_BYTES * id + 8))
        if length > HEAD_BYTES:
            rest = written + HEAD_BYTES
            for k in range(0, length - HEAD_BYTES, 8):
                store_8_bytes(output, rest + k, load_8_bytes(tails, np.int64(load(places, id)) + k))
        written += length
    return written


class Decoder:
    """The bytes of every id of a vocabulary, ready for joining; one serves any number of threads."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        """Lay the tokens out.

        Args:
            token_bytes: Id -> what it stands for; ids may be missing.
        """
        self._token_bytes = token_bytes
        size = max(token_bytes, default=-1) + 1
        tokens = [token_bytes.get(id, b"") for id in range(size)]
        self._lengths = np.fromiter(
            (len(token) if id in token_bytes else -1 for id, token in enumerate(tokens)), np.int32, size
        )
        heads = b"".join(token[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0") for token in tokens)
        self._heads = np.frombuffer(bytearray(heads), np.uint8)
        tails = [token[HEAD_BYTES:] for token in tokens]
        self._places = np.zeros(size, np.int32)
        np.cumsum([len(tail) for tail in tails[:-1]], out=self._places[1:])
        self._tails = np.frombuffer(bytearray(b"".join(tails) + bytes(8)), np.uint8)

    def to_bytes(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> bytes:
        """The bytes of all ids, joined.

        Raises:
            ValueError: One of them does not exist; the message says which and where.
        """
        if isinstance(ids, list) and len(ids) <= _SHORT:
            return self._join_few(ids)
        return self._join(ids).tobytes()

    def to_text(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"], errors: str = "replace") -> str:
        """The text of all ids; `errors` as in `bytes.decode`.

        Raises:
            ValueError: One of them does not exist; the message says which and where.
        """
        if isinstance(ids, list) and len(ids) <= _SHORT:
            return self._join_few(ids).decode("utf-8", errors)
        return codecs.utf_8_decode(self._join(ids), errors, True)[0]

    def _join_few(self, ids: Sequence[int]) -> bytes:
        try:
            return b"".join(map(self._token_bytes.__getitem__, ids))
        except KeyError as error:
            raise self._unknown(error.args[0], list(ids).index(error.args[0])) from None

    def _join(self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]) -> UInt8[np.ndarray, " bytes"]:
        numbers = self._as_uint32(ids)
        num_bytes = measure_tokens(numbers, self._lengths)
        if num_bytes < 0:
            place = -1 - num_bytes
            raise self._unknown(int(ids[place]), place)
        output = np.empty(num_bytes + HEAD_BYTES, np.uint8)
        join_tokens(numbers, self._lengths, self._heads, self._places, self._tails, output)
        return output[:num_bytes]

    def _as_uint32(
        self, ids: Sequence[int] | Integer[np.ndarray, " tokens"]
    ) -> UInt32[np.ndarray, " tokens"]:
        """The ids as the loops want them; the ways are the fastest for a list and for an array."""
        if not isinstance(ids, np.ndarray):
            try:
                numbers = array.array("I", ids)  # four bytes wherever Numba runs
            except OverflowError:
                place = next(i for i, id in enumerate(ids) if not 0 <= id < 1 << 32)
                raise self._unknown(ids[place], place) from None
            return np.frombuffer(numbers, np.uint32) if len(numbers) else np.empty(0, np.uint32)
        if ids.dtype.itemsize > 4 or ids.dtype.kind == "i":
            outside = np.flatnonzero((ids < 0) | (ids >= len(self._lengths)))
            if len(outside):
                raise self._unknown(int(ids[outside[0]]), int(outside[0]))
        return np.array(ids, np.uint32)  # a copy: nobody may change it between measuring and writing

    def _unknown(self, id: object, place: int) -> ValueError:
        return ValueError(
            f"id {id} is not in this tokenizer's vocabulary (0 to {len(self._lengths) - 1}). "
            f"It is number {place} of the ids, counted from 0."
        )
