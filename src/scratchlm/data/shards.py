"""Token shards: .npy files beside a manifest come in, one long array of ids goes out, cut into documents.

    folder/
      tokens-00000.npy     uint16, or uint32 where the vocabulary needs it; np.load opens it
      starts-00000.npy     int64: where the documents that begin in this shard start, counted over all shards
      manifest.json        counts, sha256 of every file, the tokenizer's fingerprint

All shards but the last hold `tokens_per_shard` ids and a document runs on from one into the next. While they
are written they lie in `folder.partial` beside a progress file; the manifest comes last and then the folder
takes its name, so a folder called `folder` is always whole. Opening checks the tokenizer's fingerprint, every
header and every size: reading past the end of a memory-mapped file that was cut off kills the process without
an error.
"""

import bisect
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from numpy.lib import format as npy
from pydantic import Field

from scratchlm.config import Config

MANIFEST = "manifest.json"
FORMAT = "scratchlm-tokens"
VERSION = 1
HEADER_BYTES = 128
"""Bytes before the data in our .npy files: numpy pads a one-dimensional header to this length."""


class Shard(Config):
    """One pair of files."""

    tokens: str
    """Name of the file of ids."""
    starts: str
    """Name of the file of document starts."""
    num_tokens: int
    """Ids in it."""
    num_documents: int
    """Documents that begin in it."""
    tokens_sha256: str
    """Checksum of the file of ids, header and all (as `sha256sum` prints it)."""
    starts_sha256: str
    """Checksum of the file of document starts."""


class Manifest(Config):
    """What a folder of shards says about itself."""

    format: str = FORMAT
    """Always this word: other folders are refused."""
    version: int = VERSION
    """Version of the layout."""
    dtype: str
    """uint16 or uint32."""
    vocab_size: int
    """Every id is below this."""
    tokenizer_fingerprint: str
    """Which tokenizer the ids belong to."""
    tokens_per_shard: int
    """Ids in every shard but the last."""
    num_tokens: int
    """Ids in all shards."""
    num_documents: int
    """Documents in all shards."""
    num_bytes: int
    """UTF-8 bytes of the text that the ids encode: what bits per byte divide by."""
    shards: tuple[Shard, ...]
    """The files in order."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What the writer adds: corpus, split, end-of-text id."""


class TokenDataset:
    """Token ids on disk, memory-mapped: one long array, cut into documents."""

    def __init__(
        self, folder: Path, manifest: Manifest, tokens: Sequence[np.ndarray], starts: np.ndarray
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.document_starts: np.ndarray = starts
        self._tokens = list(tokens)
        self._ends = np.cumsum([len(shard) for shard in tokens]).tolist()

    @classmethod
    def open(
        cls, folder: Path, *, tokenizer_fingerprint: str | None = None, verify: bool = False
    ) -> "TokenDataset":
        """Open a folder of shards after checking that it is whole.

        Args:
            folder: What `prepare` or `ShardWriter` wrote.
            tokenizer_fingerprint: The tokenizer that the caller will use; None to take whatever is there.
            verify: Also compare every file's sha256 (reads everything once).

        Raises:
            ValueError: No shards, damaged shards, or shards of another tokenizer.
        """
        manifest = read_manifest(folder)
        if tokenizer_fingerprint is not None and manifest.tokenizer_fingerprint != tokenizer_fingerprint:
            raise ValueError(
                f"{folder}: these ids belong to tokenizer {manifest.tokenizer_fingerprint[:12]}, not to "
                f"{tokenizer_fingerprint[:12]}; prepare the corpus again with the tokenizer that you use."
            )
        tokens, starts = [], []
        for shard in manifest.shards:
            if verify:
                _check_hash(folder / shard.tokens, shard.tokens_sha256)
                _check_hash(folder / shard.starts, shard.starts_sha256)
            tokens.append(_map(folder / shard.tokens, np.dtype(manifest.dtype), shard.num_tokens))
            starts.append(_map(folder / shard.starts, np.dtype(np.int64), shard.num_documents))
        return cls(folder, manifest, tokens, starts[0] if len(starts) == 1 else np.concatenate(starts))

    @property
    def num_tokens(self) -> int:
        """Ids in all shards, end-of-text ids among them."""
        return self.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return self.manifest.num_documents

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return self.manifest.num_bytes

    @property
    def fingerprint(self) -> str:
        """Identify the ids and where documents begin: sha256 over the checksums of all shards."""
        sums = [f"{shard.tokens_sha256} {shard.starts_sha256}" for shard in self.manifest.shards]
        return hashlib.sha256("\n".join(sums).encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        """uint16 or uint32."""
        return np.dtype(self.manifest.dtype)

    @property
    def end_of_text_id(self) -> int:
        """The id that ends every document.

        Raises:
            ValueError: Whoever wrote the shards did not say.
        """
        if "end_of_text_id" not in self.manifest.extra:
            raise ValueError(
                f"{self.folder}: {MANIFEST} names no end_of_text_id; prepare the corpus again, or write the "
                "shards with close({'end_of_text_id': ID})."
            )
        return int(self.manifest.extra["end_of_text_id"])

    def read(self, start: int, length: int) -> Integer[np.ndarray, " length"]:
        """Ids start .. start + length - 1, across shard borders; a read-only view inside one shard.

        Raises:
            ValueError: They do not all exist.
        """
        if start < 0 or length < 0 or start + length > self.num_tokens:
            raise ValueError(
                f"{self.folder}: ids {start} to {start + length} were asked for; there are {self.num_tokens}."
            )
        pieces = []
        index = bisect.bisect_right(self._ends, start)
        while length > 0:
            offset = start - (self._ends[index - 1] if index else 0)
            piece = self._tokens[index][offset : offset + length]
            pieces.append(piece)
            start, length, index = start + len(piece), length - len(piece), index + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def document(self, index: int) -> Integer[np.ndarray, " length"]:
        """All ids of document `index`, its end-of-text id included.

        Raises:
            ValueError: There is no such document.
        """
        if not 0 <= index < self.num_documents:
            raise ValueError(f"{self.folder}: no document {index}; there are 0 to {self.num_documents - 1}.")
        start, end = self.document_bounds(index)
        return self.read(start, end - start)

    def document_bounds(self, index: int) -> tuple[int, int]:
        """First id of document `index` and first id after it."""
        after = index + 1
        end = self.num_tokens if after == self.num_documents else int(self.document_starts[after])
        return int(self.document_starts[index]), end


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest.

    Raises:
        ValueError: There is none, or it is not ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        partial = partial_folder(folder)
        hint = (
            f"its preparation was interrupted ({partial} is there): run it again and it goes on."
            if partial.is_dir()
            else "prepare a corpus first."
        )
        raise ValueError(f"{folder}: no token shards here ({MANIFEST} is missing); {hint}")
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged or not a manifest of token shards ({reason}).") from None
    if manifest.format != FORMAT or manifest.version != VERSION or manifest.dtype not in ("uint16", "uint32"):
        raise ValueError(
            f"{path}: format {manifest.format!r} version {manifest.version} of {manifest.dtype!r}; "
            f"this program reads {FORMAT!r} version {VERSION} of 'uint16' or 'uint32'. Prepare it again."
        )
    names = [name for shard in manifest.shards for name in (shard.tokens, shard.starts)]
    if any(Path(name).name != name or name in (".", "..", "") for name in names):
        raise ValueError(f"{path}: names a file outside its folder; prepare the corpus again.")
    counted = (
        sum(shard.num_tokens for shard in manifest.shards),
        sum(s.num_documents for s in manifest.shards),
    )
    if counted != (manifest.num_tokens, manifest.num_documents):
        raise ValueError(f"{path}: the counts of its shards do not add up; prepare the corpus again.")
    return manifest


def partial_folder(folder: Path) -> Path:
    """Where the shards of `folder` lie until they are all there."""
    return folder.with_name(folder.name + ".partial")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type for ids below `vocab_size`: uint16 up to 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """The first 128 bytes of an .npy file (version 1.0) of `count` items; written last, over zeros."""
    description = f"{{'descr': {npy.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': ({count},), }}"
    body = description.encode("ascii").ljust(HEADER_BYTES - 11) + b"\n"
    return npy.magic(1, 0) + len(body).to_bytes(2, "little") + body


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, expected: str) -> None:
    if path.is_file() and hash_file(path) != expected:
        raise ValueError(
            f"{path}: its sha256 is not the one in {MANIFEST}: damaged; prepare the corpus again."
        )


def _map(path: Path, dtype: np.dtype, count: int) -> Integer[np.ndarray, " count"]:
    """Map one .npy file after checking its size and header."""
    if not path.is_file():
        raise ValueError(f"{path}: missing, but {MANIFEST} names it; prepare the corpus again.")
    size, expected = path.stat().st_size, HEADER_BYTES + count * dtype.itemsize
    if size != expected:
        raise ValueError(
            f"{path}: {size} bytes long instead of {expected}: cut off or damaged; prepare it again."
        )
    with path.open("rb") as file:
        if file.read(HEADER_BYTES) != npy_header(dtype, count):
            raise ValueError(
                f"{path}: its header is not that of {count} {dtype} ids; prepare the corpus again."
            )
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
