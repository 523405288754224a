"""Text -> ids by byte-pair encoding, fast: each distinct piece is merged once, then copied from a cache.

The result equals `bpe_reference.encode_reference`; the loops are in bpe_numba. The cache is bounded (about
5 MB) and is emptied when full. Threads do not share one: each call borrows a workspace and gives it back.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer.bpe_numba import SHORT_BYTES, encode_pieces, fill_pairs
from scratchlm.tokenizer.pretokenize import parts, split_to_bytes

CACHED_PIECES = 1 << 16
"""Distinct pieces in a cache: most words of an English corpus, in about 5 MB."""

_KEPT_BYTES = 1 << 16
"""Scratch space for pieces up to this length is kept between calls."""


class _Workspace:
    """One thread's cache of pieces and scratch space."""

    def __init__(self) -> None:
        self.slots = np.zeros(2 * CACHED_PIECES, np.int32)
        self.records = np.zeros((CACHED_PIECES, 4), np.int64)
        self.arena = np.zeros(16 * CACHED_PIECES, np.uint8)
        self.cached_ids = np.zeros(8 * CACHED_PIECES, np.int32)
        self.used = np.zeros(3, np.int64)
        self.scratch = _scratch(SHORT_BYTES)

    def scratch_for(self, num_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if num_bytes <= len(self.scratch[0]):
            return self.scratch
        scratch = _scratch(2 * num_bytes)
        if num_bytes <= _KEPT_BYTES:
            self.scratch = scratch
        return scratch


def _scratch(num_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.zeros(num_bytes, np.int32),
        np.zeros(3 * num_bytes, np.int64),
        np.zeros((2, num_bytes), np.int64),
    )


class Encoder:
    """Encodes ordinary text with one list of merges."""

    def __init__(
        self, ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], *, pattern: str
    ) -> None:
        """Prepare the tables and compile the loops, so that no later call allocates much.

        Args:
            ids: Bytes -> id for the 256 bytes and every part and product of a merge.
            merges: Pairs in order of rank.
            pattern: Name of the split pattern.
        """
        self._pattern = pattern
        self._byte_ids = np.array([ids[bytes([value])] for value in range(256)], np.int32)
        size = 1 << max(4, (4 * len(merges)).bit_length())
        self._pairs = np.full(2 * size, -1, np.int64)
        columns = [
            [ids[left] for left, _ in merges],
            [ids[right] for _, right in merges],
            [ids[left + right] for left, right in merges],
        ]
        fill_pairs(self._pairs, *(np.array(column, np.int32) for column in columns))
        self._free = [_Workspace()]
        self.encode("a\u00e9")

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return the ids of `text`, which must have no lone surrogates."""
        with self._workspace() as workspace:
            found = [self._encode_part(part, workspace) for part in parts(text, self._pattern)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[_Workspace]:
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = _Workspace()
        yield workspace
        self._free.append(workspace)

    def _encode_part(self, text: str, workspace: _Workspace) -> Int32[np.ndarray, " tokens"]:
        buffer, ends = split_to_bytes([text], self._pattern)
        out = np.empty(len(buffer), np.int32)
        longest = int(np.diff(ends, prepend=0).max(initial=0))
        count = encode_pieces(
            buffer,
            ends,
            out,
            self._byte_ids,
            self._pairs,
            workspace.slots,
            workspace.records,
            workspace.arena,
            workspace.cached_ids,
            workspace.used,
            *workspace.scratch_for(longest),
        )
        return out[:count].copy()
