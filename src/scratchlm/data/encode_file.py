"""Text files -> a folder of token shards, as fast as the tokenizer goes: no corpus, no documents in memory.

    file    one<|endoftext|>two ...          ranges of some megabytes, cut where no token can cross
    ranges  |-------|------|-------|         encoded by threads, each reading its own
    shards  ids of one, end, ids of two, end, ...     written in the order of the file

The ids are those of `encode(text, allowed_special={separator}, disallowed_special=())`: the file byte for
byte, blank lines and all, only the separator is a token; other special tokens are plain text. A last document
that no separator ends gets one. Ranges depend on the text alone, so the shards are the same bytes for any
number of threads. `prepare` does the same for any corpus, with splits and rules for blank documents.
"""

import contextlib
import functools
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

from scratchlm import runtime
from scratchlm.data.prepare import PrepareStats, Progress, statistics
from scratchlm.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from scratchlm.data.shards import TokenDataset
from scratchlm.tokenizer import END_OF_TEXT, Tokenizer
from scratchlm.tokenizer.base import check_name
from scratchlm.tokenizer.batches import check_threads, map_in_order
from scratchlm.tokenizer.sources import Errors, FileSource

WAITING_RANGES = 2
"""Ranges in memory for each thread: one at work, one done and waiting to be written."""


class _Range(NamedTuple):
    """What a thread takes at a time; `ends_file` where nothing follows."""

    source: FileSource
    start: int
    stop: int
    ends_file: bool


class _Block(NamedTuple):
    """A range after encoding; `ends` are the places behind each document that ends in it."""

    ids: UInt[np.ndarray, " length"]
    ends: Int64[np.ndarray, " ended"]
    num_bytes: int


def encode_file(
    tokenizer: Tokenizer,
    paths: Path | Sequence[Path],
    folder: Path,
    *,
    separator: str = END_OF_TEXT,
    num_threads: int | None = None,
    errors: Errors = "strict",
    tokens_per_shard: int = TOKENS_PER_SHARD,
    progress: Progress | None = None,
) -> PrepareStats:
    """Encode text files into shards.

    Args:
        tokenizer: What makes ids of them.
        paths: The files, in the order in which they shall be encoded; the end of a file ends a document.
        folder: Where the shards shall lie. It appears when all of them are there; after an interruption the
            finished ones lie in `folder.partial`, and another call with the same files goes on from there.
        separator: The special token between documents.
        num_threads: Threads that encode, at least 1; all cores by default. The shards do not depend on it.
        errors: What happens to bytes that are no UTF-8: "strict" raises, "replace" puts U+FFFD in their
            place, "lossless" keeps them.
        tokens_per_shard: Ids in every shard but the last.
        progress: Called after every range.

    Raises:
        ValueError: A file is missing or no UTF-8, there is no text, or `folder` holds something.
        OSError: The disk is full or not writable.
    """
    began = time.perf_counter()
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    check_name(errors, ("strict", "replace", "lossless"), "rule for bytes that are no UTF-8")
    num_threads = check_threads(runtime.num_cores() if num_threads is None else num_threads)
    separator_id = tokenizer.encode(separator, allowed_special={separator})[0]
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(FileSource(path)) for path in files]
        writer = stack.enter_context(
            ShardWriter(
                folder,
                vocab_size=tokenizer.vocab_size,
                tokenizer_fingerprint=tokenizer.fingerprint,
                tokens_per_shard=tokens_per_shard,
                source=functools.partial(_identity, files, separator, errors),
            )
        )
        encode = functools.partial(
            _encode_range, tokenizer=tokenizer, separator=separator, separator_id=separator_id, errors=errors
        )
        ranges = itertools.islice(_ranges(tokenizer, sources, separator), writer.num_chunks_done, None)
        blocks = map_in_order(
            encode, ranges, num_threads=num_threads, num_waiting=WAITING_RANGES * num_threads
        )
        total = sum(source.size for source in sources)
        for block in stack.enter_context(contextlib.closing(blocks)):
            writer.add_documents(block.ids, block.ends, num_bytes=block.num_bytes)
            if progress is not None:
                progress(writer.num_bytes, total, writer.num_documents, writer.num_tokens)
        if writer.num_tokens == 0:
            raise ValueError(f"{', '.join(map(str, files))}: empty, there is no text to encode.")
        writer.close({"corpus": [path.name for path in files], "end_of_text_id": separator_id})
    return statistics(TokenDataset.open(folder), began)


def _identity(files: Sequence[Path], separator: str, errors: str) -> str:
    """Which files with which settings: others, or the same changed since, are another source."""
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((stamps, separator, errors)).encode("utf-8", "surrogateescape")).hexdigest()


def _ranges(tokenizer: Tokenizer, sources: Sequence[FileSource], separator: str) -> Iterator[_Range]:
    for source in sources:
        for start, stop in tokenizer.cut_source(source, [separator]):
            yield _Range(source, start, stop, ends_file=stop == source.size)


def _encode_range(
    task: _Range, *, tokenizer: Tokenizer, separator: str, separator_id: int, errors: Errors
) -> _Block:
    """Encode one range; where it ends a file it ends a document."""
    arrays, ends = [np.empty(0, tokenizer.dtype)], [np.empty(0, np.int64)]
    num_tokens = num_bytes = 0
    for part in tokenizer.encode_source(
        task.source, task.start, task.stop, specials={separator: separator_id}, errors=errors
    ):
        ended = part.specials >= 0
        arrays.append(part.ids.astype(tokenizer.dtype))  # a copy: the next part comes in the same buffer
        ends.append(part.bounds[1:][ended] + num_tokens)
        num_tokens += len(part.ids)
        num_bytes += part.num_bytes - int(ended.sum()) * len(separator.encode("utf-8"))
    ids, places = np.concatenate(arrays), np.concatenate(ends)
    if task.ends_file and num_tokens > (places[-1] if len(places) else 0):
        ids, places = np.append(ids, tokenizer.dtype.type(separator_id)), np.append(places, num_tokens + 1)
    return _Block(ids, places, num_bytes)
