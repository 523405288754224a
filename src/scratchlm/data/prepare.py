"""Preparing: a corpus and a tokenizer come in, a folder of token shards comes out.

    corpus.portions -> read and encoded by `workers`, threads or processes
                    -> in the order of the corpus -> ShardWriter

Every document is followed by the end-of-text id; the texts of special tokens in it are plain text. Portions
are encoded at the same time and written in the order of the corpus, at most `queue_size` of them in memory,
so the shards are the same bytes for any number of workers, any chunk size and any queue size, and memory
stays bounded. What an interruption leaves behind is used by the next call, also by one with another engine
(see shard_writer.py): finished shards are kept, their part of the corpus is not encoded again.

An engine is who does the work: `encode_in_threads` here, processes.py, ray_engine.py. One worker is this
thread, which reads, encodes and writes by turns; the others read and encode beside it. Threads share one
interpreter, whose lock does not matter where compiled code does all the work: plain text and a byte-pair
encoding. Elsewhere it lets one of them at a time go on; processes do not share it.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

from scratchlm.data.corpora import Chunk, Corpus, Portion, Split
from scratchlm.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from scratchlm.data.shards import MANIFEST, TokenDataset, read_manifest, token_dtype
from scratchlm.data.sums import Leaf, leaf_sum
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.batches import insert_id, map_in_order
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
    sums: tuple[tuple[Leaf, str], ...] = ()
    """What was read for the corpus's fingerprint."""


class Job(NamedTuple):
    """What a worker is asked to do."""

    portion: Portion | None
    """What to read and encode."""
    num_skipped: int
    """Chunks at its beginning that are done already."""
    leaf: Leaf | None
    """What to read for the corpus's fingerprint: bytes of about the same place."""


class Work(NamedTuple):
    """What an engine is asked to encode, and how."""

    corpus: Corpus
    split: Split
    tokenizer: Tokenizer
    num_chunks_done: int
    """Chunks at the beginning that are done already."""
    workers: int
    chunk_size: int
    queue_size: int


Engine = Callable[[Work], Iterator[Encoded]]
"""Yields what is left of the corpus, encoded, in its order."""

PORTION_CHARACTERS = 2**22
"""What a worker reads and encodes at a time: some 15 ms of work; handing it out and back takes 1 ms."""


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: Split,
    workers: int = 2,
    chunk_size: int = PORTION_CHARACTERS,
    queue_size: int = 8,
    progress: Progress | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    engine: Engine | None = None,
) -> PrepareStats:
    """Encode one split of a corpus into shards; does nothing when they are there already.

    Args:
        corpus: Where the text comes from.
        tokenizer: What makes ids of it.
        folder: Where the shards shall lie. It appears when all of them are there; until then they lie in
            `folder.partial`, and another call with the same corpus and tokenizer goes on from there.
        split: "train" or "valid".
        workers: Threads or processes that encode, at least 1.
        chunk_size: Characters that are read and encoded at a time, at least 1.
        queue_size: How many such portions may wait, at least 1; memory is about queue_size * chunk_size.
        progress: Called after every portion.
        tokens_per_shard: Ids in every shard but the last.
        engine: Who encodes; threads of this process by default.

    Raises:
        ValueError: The corpus is empty or damaged, or `folder` holds something else.
        OSError: The disk is full or not writable.
    """
    for name, value in (("workers", workers), ("chunk_size", chunk_size), ("queue_size", queue_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    began = time.perf_counter()
    if (folder / MANIFEST).is_file():
        return statistics(open_same(folder, tokenizer, description(corpus, tokenizer, split)), began)
    with ShardWriter(
        folder,
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokens_per_shard=tokens_per_shard,
        source=lambda: repr([corpus.name, corpus.identity(), split, tokenizer.end_of_text_id]),
    ) as writer:
        work = Work(corpus, split, tokenizer, writer.num_chunks_done, workers, chunk_size, queue_size)
        total = corpus.num_bytes(split)
        for ids, ends, num_bytes, num_chunks, sums in (engine or encode_in_threads)(work):
            corpus.learn(dict(sums))
            writer.add_documents(ids, ends, num_bytes=num_bytes, num_chunks=num_chunks)
            if progress is not None and num_chunks:
                progress(writer.num_bytes, total, writer.num_documents, writer.num_tokens)
        if writer.num_tokens == 0:
            raise ValueError(f"{corpus.name}: its {split} split holds no text; give it some to learn from.")
        writer.close(description(corpus, tokenizer, split))
    return statistics(TokenDataset.open(folder), began)


def encode_in_threads(work: Work) -> Iterator[Encoded]:
    """Read and encode in threads, the engine that needs no start-up; one worker is this thread."""
    encode = functools.partial(do_job, tokenizer=work.tokenizer)
    return map_in_order(encode, jobs_left(work), num_threads=work.workers, num_waiting=work.queue_size)


def jobs_left(work: Work) -> Iterator[Job]:
    """Yield the portions that are not done, and with each the next bytes that the fingerprint needs."""
    for left, leaf in itertools.zip_longest(_portions_left(work), work.corpus.content().leaves):
        yield Job(*(left or (None, 0)), leaf)


def _portions_left(work: Work) -> Iterator[tuple[Portion, int]]:
    done = work.num_chunks_done
    for portion in work.corpus.portions(work.split, work.chunk_size):
        if done < portion.num_chunks:
            yield portion, done
        done = max(0, done - portion.num_chunks)


def do_job(job: Job, tokenizer: Tokenizer) -> Encoded:
    """Do what a worker is asked to.

    Raises:
        ValueError: As `encode_portion`.
    """
    done = encode_portion(job.portion, job.num_skipped, tokenizer) if job.portion else _nothing(tokenizer)
    return done if job.leaf is None else done._replace(sums=((job.leaf, leaf_sum(job.leaf)),))


def _nothing(tokenizer: Tokenizer) -> Encoded:
    return Encoded(np.empty(0, tokenizer.dtype), np.empty(0, np.int64), 0, 0)


def encode_portion(portion: Portion, skipped: int, tokenizer: Tokenizer) -> Encoded:
    """Read and encode a portion without the `skipped` chunks at its beginning.

    Raises:
        ValueError: The text is damaged, or no longer the one that was cut into portions.
    """
    texts = portion.load() if portion.load is not None else None
    chunks = list(portion.read()) if texts is None else []
    num_chunks = len(chunks) if texts is None else len(texts.firsts)
    if num_chunks != portion.num_chunks:
        raise ValueError(
            f"the text has changed while it was read ({num_chunks} pieces where {portion.num_chunks} were); "
            "run the same command again."
        )
    if texts is None:
        return encode_item(chunks[skipped:], tokenizer)
    firsts, stops = texts.firsts[skipped:], texts.stops[skipped:]
    ids, offsets = tokenizer.encode_spans(texts.data, firsts, stops, behind=tokenizer.end_of_text_id)
    return Encoded(ids, offsets[1:], int((stops - firsts).sum()), len(firsts))


def description(
    corpus: Corpus, tokenizer: Tokenizer, split: Split, *, with_fingerprint: bool = True
) -> dict[str, Any]:
    """Return what the manifest says of the text: the same text and tokenizer give the same words."""
    fingerprint = {"corpus_fingerprint": corpus.fingerprint()} if with_fingerprint else {}
    return {"corpus": corpus.name, **fingerprint, "split": split, "end_of_text_id": tokenizer.end_of_text_id}


def encode_item(item: list[Chunk], tokenizer: Tokenizer) -> Encoded:
    """Encode one item, special tokens as plain text, and put the end-of-text id where a document ends."""
    texts = [repair_surrogates(chunk.text) for chunk in item]
    ids, offsets = tokenizer.encode_documents(texts)
    places = offsets[1:][np.array([chunk.ends_document for chunk in item])]
    ends = places + np.arange(1, len(places) + 1)
    with_ends = insert_id(
        ids.astype(token_dtype(tokenizer.vocab_size), copy=False), places, tokenizer.end_of_text_id
    )
    num_bytes = sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts)
    return Encoded(with_ends, ends, num_bytes, len(item))


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
