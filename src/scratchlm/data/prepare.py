"""Preparing: a corpus and a tokenizer come in, a folder of token shards comes out.

    corpus.chunks -> items of about `chunk_size` characters -> encoded by `workers` threads
                  -> in the order of the corpus -> ShardWriter

Every document is followed by the end-of-text id. Items are encoded at the same time and written in the order
of the corpus, at most `queue_size` of them in memory, so the shards are the same bytes for any number of
workers, any chunk size and any queue size, and memory stays bounded. What an interruption leaves behind is
used by the next call (see shard_writer.py): finished shards are kept, their part of the corpus is read but
not encoded again.
"""

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

from scratchlm.data.corpora import Chunk, Corpus, Split
from scratchlm.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from scratchlm.data.shards import MANIFEST, TokenDataset, read_manifest, token_dtype
from scratchlm.tokenizer import Tokenizer

Progress = Callable[[int, int | None, int, int], None]
"""Called after each item with (bytes of text done, about how many there are or None, documents, tokens)."""

NUM_EDGE_IDS = 16
"""How many first and last ids the statistics show."""


class PrepareStats(NamedTuple):
    """What came out of a preparation."""

    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    seconds: float
    first_ids: list[int]
    last_ids: list[int]


class _Encoded(NamedTuple):
    """One chunk after encoding."""

    ids: UInt[np.ndarray, " length"]
    ends_document: bool
    num_bytes: int


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: Split,
    workers: int = 2,
    chunk_size: int = 2**20,
    queue_size: int = 8,
    progress: Progress | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> PrepareStats:
    """Encode one split of a corpus into shards; does nothing when they are there already.

    Args:
        corpus: Where the text comes from.
        tokenizer: What makes ids of it.
        folder: Where the shards shall lie. It appears when all of them are there; until then they lie in
            `folder.partial`, and another call with the same corpus and tokenizer goes on from there.
        split: "train" or "valid".
        workers: Threads that encode, at least 1.
        chunk_size: Characters that one thread encodes at a time, at least 1.
        queue_size: How many such pieces may wait, at least 1; memory is about queue_size * chunk_size.
        progress: Called after every piece.
        tokens_per_shard: Ids in every shard but the last.

    Raises:
        ValueError: The corpus is empty or damaged, or `folder` holds something else.
        OSError: The disk is full or not writable.
    """
    for name, value in (("workers", workers), ("chunk_size", chunk_size), ("queue_size", queue_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    began = time.perf_counter()
    extra = {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint(),
        "split": split,
        "end_of_text_id": tokenizer.end_of_text_id,
    }
    if (folder / MANIFEST).is_file():
        return _statistics(_check_same(folder, tokenizer, extra), began)
    source = hashlib.sha256(repr(sorted(extra.items())).encode()).hexdigest()
    with ShardWriter(
        folder,
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokens_per_shard=tokens_per_shard,
        source=source,
    ) as writer:
        chunks = itertools.islice(corpus.chunks(split), writer.num_chunks_done, None)
        total = corpus.num_bytes(split)
        for encoded in _encode_in_order(_items(chunks, chunk_size), tokenizer, workers, queue_size):
            for chunk in encoded:
                writer.add(chunk.ids, ends_document=chunk.ends_document, num_bytes=chunk.num_bytes)
            if progress is not None:
                progress(writer.num_bytes, total, writer.num_documents, writer.num_tokens)
        if writer.num_tokens == 0:
            raise ValueError(f"{corpus.name}: its {split} split holds no text; give it some to learn from.")
        writer.close(extra)
    return _statistics(TokenDataset.open(folder), began)


def _items(chunks: Iterable[Chunk], chunk_size: int) -> Iterator[list[Chunk]]:
    """Collect chunks until they hold `chunk_size` characters; what an item holds never changes the ids."""
    item: list[Chunk] = []
    length = 0
    for chunk in chunks:
        item.append(chunk)
        length += len(chunk.text)
        if length >= chunk_size:
            yield item
            item, length = [], 0
    if item:
        yield item


def _encode_in_order(
    items: Iterator[list[Chunk]], tokenizer: Tokenizer, workers: int, queue_size: int
) -> Iterator[list[_Encoded]]:
    """Encode items in threads and yield them in order, with at most `queue_size` in flight."""
    waiting: deque[Future[list[_Encoded]]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="encode")
    try:
        for item in items:
            if len(waiting) >= queue_size:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_encode, item, tokenizer))
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early: a full disk, Ctrl-C
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(item: list[Chunk], tokenizer: Tokenizer) -> list[_Encoded]:
    """Encode one item and add the end-of-text id where a document ends."""
    arrays = tokenizer.encode_batch([chunk.text for chunk in item])
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.end_of_text_id], dtype=dtype)
    return [
        _Encoded(
            np.concatenate([ids, end]).astype(dtype, copy=False) if chunk.ends_document else ids,
            chunk.ends_document,
            len(chunk.text.encode("utf-8")),
        )
        for chunk, ids in zip(item, arrays, strict=True)
    ]


def _check_same(folder: Path, tokenizer: Tokenizer, extra: dict[str, object]) -> TokenDataset:
    """Open shards that are there already, if they are what this preparation would make."""
    dataset = TokenDataset.open(folder, tokenizer_fingerprint=tokenizer.fingerprint)
    found = read_manifest(folder).extra
    for key, value in extra.items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder}: holds shards with another {key} ({found.get(key)!r}, now {value!r}); "
                "remove it or choose another folder."
            )
    return dataset


def _statistics(dataset: TokenDataset, began: float) -> PrepareStats:
    edge = min(NUM_EDGE_IDS, dataset.num_tokens)
    return PrepareStats(
        documents=dataset.num_documents,
        tokens=dataset.num_tokens,
        bytes=dataset.num_bytes,
        bytes_per_token=dataset.num_bytes / dataset.num_tokens,
        seconds=time.perf_counter() - began,
        first_ids=dataset.read(0, edge).tolist(),
        last_ids=dataset.read(dataset.num_tokens - edge, edge).tolist(),
    )
