"""Writing token shards: ids come in document by document, a whole folder of shards comes out, or none.

The ids go to `folder.partial`. Whenever a shard is full its file gets its name, and progress.json records how
far the input had come: number of chunks, and ids of the next ones that are stored already. A writer
that finds such a folder from the same source, with files that still have their checksums, goes on there: the
caller skips `num_chunks_done` of its chunks, the writer drops the ids that it has. `close` writes the
manifest last, flushes all to the disk and renames the folder.

    memory = one block of document starts; the ids themselves are not kept

Checksums are made of the ids as they come; only the last shard is read again, since the number of ids stands
at the beginning of a file. A second thread sends finished files to the disk while the next are written.
"""

import bisect
import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64, Integer

from scratchlm import runtime
from scratchlm.config import Config
from scratchlm.data.shards import (
    HEADER_BYTES,
    MANIFEST,
    Manifest,
    Shard,
    hash_file,
    npy_header,
    partial_folder,
    token_dtype,
)

PROGRESS = "progress.json"
TOKENS_PER_SHARD = 2**26
"""128 MiB of uint16: about half a minute of encoding on two cores, which is what an interruption costs."""


class Position(Config):
    """How far the input had come when a shard was finished."""

    source: str
    """What is being written, by whom: another source starts over."""
    shards: tuple[Shard, ...] = ()
    """The finished shards."""
    num_chunks: int = 0
    """Chunks that are wholly stored."""
    skip_tokens: int = 0
    """Ids of the next chunks that are stored too."""
    num_tokens: int = 0
    """Ids in the finished shards, less `skip_tokens`."""
    num_bytes: int = 0
    """Bytes of text of the chunks that are wholly stored."""
    at_document_start: bool = True
    """Whether the next chunk begins a document."""


class ShardWriter:
    """Append ids; whole shards appear in `folder.partial`, and `folder` itself when `close` is called.

    Use it in a `with` block: leaving it by an error removes the unfinished shard and keeps the finished ones.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocab_size: int,
        tokenizer_fingerprint: str,
        tokens_per_shard: int = TOKENS_PER_SHARD,
        source: Callable[[], str] | None = None,
    ) -> None:
        """Begin, or go on where a writer of the same `source` was interrupted.

        Args:
            folder: Where the shards shall lie; must not exist, or be empty.
            vocab_size: Every id is below this; decides between uint16 and uint32.
            tokenizer_fingerprint: Which tokenizer the ids belong to.
            tokens_per_shard: Ids in every shard but the last, at least 1.
            source: Gives what identifies the input, asked for when it is needed; None to start over in any
                case.

        Raises:
            ValueError: `folder` holds something.
            OSError: The disk is full or not writable.
        """
        if tokens_per_shard < 1:
            raise ValueError(f"tokens_per_shard={tokens_per_shard} must be at least 1.")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: is there already and not empty; remove it or choose another folder.")
        self.folder, self.partial = folder, partial_folder(folder)
        self.vocab_size, self.dtype = vocab_size, token_dtype(vocab_size)
        self.tokenizer_fingerprint, self.tokens_per_shard = tokenizer_fingerprint, tokens_per_shard
        self._ask_source = source
        with naming(self.partial):
            position = self._resume()
        self.num_chunks_done = position.num_chunks  # the caller's chunks that it need not add again
        self.num_tokens, self.num_bytes = position.num_tokens, position.num_bytes
        self._num_chunks, self._skip = position.num_chunks, position.skip_tokens
        self._at_start = position.at_document_start
        self._shards = list(position.shards)
        self._border = sum(shard.num_tokens for shard in self._shards)  # ids in finished shards
        self._starts: list[int] = []  # of documents that begin behind the finished shards
        self._file: BinaryIO | None = None
        self._in_file = 0
        self._full_header = npy_header(self.dtype, tokens_per_shard)
        self._sum = hashlib.sha256()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushed: list[Future[None]] = []
        for shard in self._shards:
            self._flush_later(shard)

    @property
    def num_documents(self) -> int:
        """Documents begun so far."""
        return sum(shard.num_documents for shard in self._shards) + len(self._starts)

    def add(self, ids: Integer[np.ndarray, " length"], *, ends_document: bool, num_bytes: int) -> None:
        """Append the ids of one chunk.

        Args:
            ids: Token ids below the vocabulary size, the end-of-text id included where the document ends.
            ends_document: Whether the next chunk begins another document.
            num_bytes: UTF-8 bytes of the text that the ids encode.

        Raises:
            ValueError: An id is too large or negative.
            OSError: The disk is full or not writable.
        """
        self.add_documents(ids, np.array([len(ids)] if ends_document else [], np.int64), num_bytes=num_bytes)

    def add_documents(
        self,
        ids: Integer[np.ndarray, " length"],
        ends: Int64[np.ndarray, " ended"],
        *,
        num_bytes: int,
        num_chunks: int = 1,
    ) -> None:
        """Append the ids of several chunks, in which any number of documents may end.

        Args:
            ids: As for `add`.
            ends: For each document that ends in them, the place in `ids` behind its last id; ascending.
            num_bytes: UTF-8 bytes of the text that the ids encode.
            num_chunks: Chunks that count as done afterwards.

        Raises:
            ValueError: An id is too large or negative.
            OSError: The disk is full or not writable.
        """
        if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise ValueError(
                f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {self.vocab_size}: "
                "the tokenizer and vocab_size do not belong together."
            )
        begins = np.unique(np.concatenate([np.zeros(int(self._at_start), np.int64), ends]))
        begins = begins[begins < len(ids)] + self.num_tokens
        # What begins below the border was stored before a restart.
        self._starts += begins[begins >= self._border].tolist()
        with naming(self.partial):
            self._append(ids.astype(self.dtype, copy=False))
        self._num_chunks += num_chunks
        self.num_tokens += ids.size
        self.num_bytes += num_bytes
        if len(ids) or len(ends):
            self._at_start = bool(len(ends)) and int(ends[-1]) == len(ids)

    def close(self, extra: dict[str, Any] | None = None) -> Manifest:
        """Write the last shard and the manifest, then give the folder its name.

        Raises:
            ValueError: Nothing was added, or less than an interrupted writer had stored.
            OSError: The disk is full or not writable.
        """
        if self._skip:
            raise ValueError(
                f"{self.partial}: the input has changed since it was interrupted; remove this folder."
            )
        if self.num_tokens == 0:
            raise ValueError(f"{self.folder}: no ids to write; the corpus is empty.")
        with naming(self.partial):
            if self._in_file:
                self._finish_shard()
            manifest = Manifest(
                dtype=self.dtype.name,
                vocab_size=self.vocab_size,
                tokenizer_fingerprint=self.tokenizer_fingerprint,
                tokens_per_shard=self.tokens_per_shard,
                num_tokens=self.num_tokens,
                num_documents=self.num_documents,
                num_bytes=self.num_bytes,
                shards=tuple(self._shards),
                extra=extra or {},
            )
            for done in self._flushed:
                done.result()
            runtime.write_text_atomically(self.partial / MANIFEST, manifest.to_json())
            (self.partial / PROGRESS).unlink(missing_ok=True)
            if self.folder.is_dir():
                self.folder.rmdir()  # empty, as checked at the start; the system refuses otherwise
            self.partial.rename(self.folder)
            runtime.flush(self.folder.parent)
        return manifest

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._flusher.shutdown(wait=True, cancel_futures=True)
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
        if not self._shards and not self.folder.exists():
            shutil.rmtree(self.partial, ignore_errors=True)

    @functools.cached_property
    def _source(self) -> str:
        """Input and layout; empty where nothing may be used again."""
        if self._ask_source is None:
            return ""
        layout = [self._ask_source(), self.vocab_size, self.tokenizer_fingerprint, self.tokens_per_shard]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()

    @property
    def _temporary(self) -> Path:
        return self.partial / f"tokens-{len(self._shards):05d}.npy.tmp"

    def _append(self, ids: np.ndarray) -> None:
        """Write `ids`, less those that are stored already, and finish every shard that gets full."""
        offset = min(self._skip, len(ids))
        self._skip -= offset
        while offset < len(ids):
            if self._file is None:
                self._file = self._temporary.open("wb")
                self._file.write(bytes(HEADER_BYTES))
                self._sum = hashlib.sha256(self._full_header)
            piece = np.ascontiguousarray(ids[offset : offset + self.tokens_per_shard - self._in_file])
            self._file.write(piece)
            self._sum.update(piece)
            self._in_file += len(piece)
            offset += len(piece)
            if self._in_file == self.tokens_per_shard:
                self._finish_shard(skip_tokens=offset)

    def _finish_shard(self, *, skip_tokens: int = 0) -> None:
        """Give the open shard its header, checksum and name, then note the position of the input."""
        assert self._file is not None
        name = f"{len(self._shards):05d}.npy"
        self._file.seek(0)
        self._file.write(npy_header(self.dtype, self._in_file))
        self._file.close()
        is_full = self._in_file == self.tokens_per_shard
        num_starts = bisect.bisect_left(self._starts, self._border + self._in_file)
        starts = np.array(self._starts[:num_starts], dtype=np.int64)
        starts_bytes = npy_header(starts.dtype, len(starts)) + starts.tobytes()
        (self.partial / f"starts-{name}").write_bytes(starts_bytes)
        shard = Shard(
            tokens=f"tokens-{name}",
            starts=f"starts-{name}",
            num_tokens=self._in_file,
            num_documents=len(starts),
            tokens_sha256=self._sum.hexdigest() if is_full else hash_file(self._temporary),
            starts_sha256=hashlib.sha256(starts_bytes).hexdigest(),
        )
        self._temporary.rename(self.partial / shard.tokens)
        self._flush_later(shard)
        self._file, self._starts = None, self._starts[num_starts:]
        self._shards.append(shard)
        self._border += self._in_file
        self._in_file = 0
        self._note_position(skip_tokens)

    def _flush_later(self, shard: Shard) -> None:
        for name in (shard.tokens, shard.starts):
            self._flushed.append(self._flusher.submit(runtime.flush, self.partial / name))

    def _note_position(self, skip_tokens: int) -> None:
        position = Position(
            source=self._source,
            shards=tuple(self._shards),
            num_chunks=self._num_chunks,
            skip_tokens=skip_tokens,
            num_tokens=self.num_tokens,
            num_bytes=self.num_bytes,
            at_document_start=self._at_start,
        )
        temporary = self.partial / f"{PROGRESS}.tmp"
        temporary.write_text(position.to_json(), encoding="utf-8")
        temporary.replace(self.partial / PROGRESS)

    def _resume(self) -> Position:
        """Where an interrupted writer of the same source stopped if its files are whole, else the start."""
        position, found = Position(source=""), None
        with contextlib.suppress(ValueError, FileNotFoundError, NotADirectoryError):
            found = Position.model_validate_json((self.partial / PROGRESS).read_text(encoding="utf-8"))
        if found and self._source and found.source == self._source and self._are_whole(found.shards):
            position = found
        kept = {PROGRESS, *(name for shard in position.shards for name in (shard.tokens, shard.starts))}
        if not position.shards and self.partial.is_dir():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        for path in self.partial.iterdir():
            if path.name not in kept:
                path.unlink()
        return position

    def _are_whole(self, shards: tuple[Shard, ...]) -> bool:
        return all(
            (self.partial / shard.tokens).is_file()
            and hash_file(self.partial / shard.tokens) == shard.tokens_sha256
            and (self.partial / shard.starts).is_file()
            and hash_file(self.partial / shard.starts) == shard.starts_sha256
            for shard in shards
        )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an error of the disk that names none ("No space left on device")."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
