"""Preparing: a corpus and a tokenizer come in, a folder of token shards comes out.

    corpus.chunks -> items of about `chunk_size` characters -> encoded by `workers` threads
                  -> in the order of the corpus -> ShardWriter

Every document is followed by the end-of-text id; the texts of special tokens in it are plain text. Items are
encoded at the same time and written in the order of the corpus, at most `queue_size` of them in memory, so
the shards are the same bytes for any number of workers, any chunk size and any queue size, and memory stays
bounded. What an interruption leaves behind is used by the next call (see shard_writer.py): finished shards
are kept, their part of the corpus is read but not encoded again.
"""

import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

from scratchlm.data.corpora import Chunk, Corpus, Split
from scratchlm.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from scratchlm.data.shards import MANIFEST, TokenDataset, read_manifest
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.batches import map_in_order
from scratchlm.tokenizer.streaming import repair_surrogates

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


class Encoded(NamedTuple):
    """Some chunks after encoding; `ends` are the places behind each document that ends in them."""

    ids: UInt[np.ndarray, " length"]
    ends: Int64[np.ndarray, " ended"]
    num_bytes: int
    num_chunks: int


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
    extra = description(corpus, tokenizer, split)
    if (folder / MANIFEST).is_file():
        return statistics(open_same(folder, tokenizer, extra), began)
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
        encode = functools.partial(encode_item, tokenizer=tokenizer)
        items = items_of(chunks, chunk_size)
        for ids, ends, num_bytes, num_chunks in map_in_order(
            encode, items, num_threads=workers, num_waiting=queue_size
        ):
            writer.add_documents(ids, ends, num_bytes=num_bytes, num_chunks=num_chunks)
            if progress is not None:
                progress(writer.num_bytes, total, writer.num_documents, writer.num_tokens)
        if writer.num_tokens == 0:
            raise ValueError(f"{corpus.name}: its {split} split holds no text; give it some to learn from.")
        writer.close(extra)
    return statistics(TokenDataset.open(folder), began)


def description(corpus: Corpus, tokenizer: Tokenizer, split: Split) -> dict[str, Any]:
    """Return what the manifest says of the text: the same text and tokenizer give the same words."""
    return {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint(),
        "split": split,
        "end_of_text_id": tokenizer.end_of_text_id,
    }


def items_of(chunks: Iterable[Chunk], chunk_size: int) -> Iterator[list[Chunk]]:
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


def encode_item(item: list[Chunk], tokenizer: Tokenizer) -> Encoded:
    """Encode one item, special tokens as plain text, and put the end-of-text id where a document ends."""
    texts = [repair_surrogates(chunk.text) for chunk in item]
    ids, offsets = tokenizer.encode_documents(texts)
    places = offsets[1:][np.array([chunk.ends_document for chunk in item])]
    return Encoded(
        np.insert(ids, places, tokenizer.end_of_text_id),
        places + np.arange(1, len(places) + 1),
        sum(len(text.encode("utf-8")) for text in texts),
        len(item),
    )


def open_same(folder: Path, tokenizer: Tokenizer, extra: dict[str, Any]) -> TokenDataset:
    """Open shards that are there already, if they are what this preparation would make.

    Raises:
        ValueError: They are of another corpus, split or tokenizer.
    """
    dataset = TokenDataset.open(folder, tokenizer_fingerprint=tokenizer.fingerprint)
    found = read_manifest(folder).extra
    for key, value in extra.items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder}: holds shards with another {key} ({found.get(key)!r}, now {value!r}); "
                "remove it or choose another folder."
            )
    return dataset


def statistics(dataset: TokenDataset, began: float) -> PrepareStats:
    """Say what lies in a folder of shards; `began` is when `time.perf_counter` was read at the start."""
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
