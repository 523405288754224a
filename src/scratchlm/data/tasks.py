"""Preparing in tasks: a corpus is cut into blocks, each task encodes every n-th, merging puts them in order.

    corpus:   block 0   block 1   block 2   block 3   block 4      portions of BLOCK_CHARACTERS
    task 0 of 2:  0                   2                   4    ->  folder.tasks/0-of-2/  and  0-of-2.json
    task 1 of 2:            1                   3              ->  folder.tasks/1-of-2/  and  1-of-2.json
    merge:        0         1         2         3         4    ->  folder/

Tasks know nothing of each other: they run on as many machines as there are, at any time, in any order, and
one that was lost runs again. Each reads its own blocks where the corpus can say where they stand (plain text:
see portions.py), else all of the text; each computes its share of the checksums that make the corpus's
fingerprint. A task's mark (0-of-2.json) is written last and says which blocks it has and the checksum of
their shards; merging looks for all marks, verifies all checksums, and copies. The shards are the same bytes
as those of `prepare`, whatever the number of tasks.

What tasks must agree on is told before all bytes have been read by one of them: sizes of the files, and how
many documents stand in every block of the corpus.
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from scratchlm.config import Config, load
from scratchlm.data.corpora import Corpus, Portion, Split
from scratchlm.data.prepare import (
    PORTION_CHARACTERS,
    Encoded,
    Job,
    PrepareStats,
    Progress,
    description,
    do_job,
    open_same,
    statistics,
)
from scratchlm.data.shard_writer import TOKENS_PER_SHARD, ShardWriter
from scratchlm.data.shards import MANIFEST, TokenDataset, partial_folder
from scratchlm.data.sums import Content, Leaf, fingerprint_of, hash_of, leaf_sum
from scratchlm.lock import run_lock
from scratchlm.runtime import num_cores, write_text_atomically
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.batches import map_in_order

BLOCK_CHARACTERS = PORTION_CHARACTERS
"""Small beside a task, large beside the work of putting it back in order."""
COPIED_IDS = 2**22
"""Ids that merging holds at once: 16 MB."""


class Block(Config):
    """One block of the corpus, encoded."""

    number: int
    """Its place in the corpus."""
    num_tokens: int
    """Ids in it."""
    num_bytes: int
    """Bytes of its text."""


class Mark(Config):
    """What a finished task says of itself."""

    task: int
    """Its number, from 0."""
    num_tasks: int
    """Tasks in all."""
    vocab_size: int
    """Of the tokenizer."""
    tokenizer_fingerprint: str
    """Which tokenizer encoded."""
    extra: dict[str, Any]
    """Corpus, split and end-of-text id, as in the manifest of the whole, which also has the fingerprint."""
    form: list[Any]
    """What the fingerprint is made of; see sums.py. Empty where `extra` has it."""
    num_leaves: int
    """How many checksums it needs."""
    sums: dict[str, str]
    """Checksums of the task's share of the leaves, by their number."""
    fingerprint: str | None
    """Of the task's shards; None if it has no block."""
    blocks: tuple[Block, ...]
    """In the corpus's order."""
    block_characters: int
    """Characters of a block: all tasks must cut alike."""
    num_blocks: int
    """Blocks in the whole corpus: all tasks must have read the same."""
    cuts: str
    """sha256 of the number of chunks of each of them, and of the sizes of the files."""


def prepare_task(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: Split,
    task: int,
    num_tasks: int,
    workers: int = 2,
    queue_size: int = 8,
    progress: Progress | None = None,
) -> Mark | None:
    """Encode one task's blocks; does nothing if its mark is there and fits.

    Returns:
        The mark, or None if the tasks of this corpus have been merged already.

    Args:
        corpus: Where the text comes from.
        tokenizer: What makes ids of it.
        folder: Where the merged shards shall lie; the tasks' lie in `folder.tasks`.
        split: "train" or "valid".
        task: Which task this is, 0 .. num_tasks - 1.
        num_tasks: Tasks in all, at least 1.
        workers: As `prepare`.
        queue_size: As `prepare`.
        progress: Called after every block; bytes are those of this task.

    Raises:
        ValueError: There is no such task, another process works on it, or what is there is of another corpus
            or tokenizer.
        OSError: The disk is full or not writable.
    """
    if not 0 <= task < num_tasks:
        raise ValueError(f"task={task}: must be 0 to {num_tasks - 1}, with num_tasks={num_tasks}.")
    if (folder / MANIFEST).is_file():
        open_same(folder, tokenizer, description(corpus, tokenizer, split))
        return None
    content = corpus.content()
    extra = description(corpus, tokenizer, split, with_fingerprint=not content.leaves)
    place, path = _places(folder, task, num_tasks)
    with run_lock(place.with_name(place.name + ".lock"), doing="encoding"):
        if path.is_file():
            return _same_mark(path, extra, content, tokenizer)
        for leftover in (place, partial_folder(place)):  # of this task, interrupted
            shutil.rmtree(leftover, ignore_errors=True)
        own = _OwnJobs(corpus.portions(split, BLOCK_CHARACTERS), content.leaves, task, num_tasks)
        total = corpus.num_bytes(split)
        told = functools.partial(_tell, progress, None if total is None else total // num_tasks)
        blocks, sums = _write_blocks(own, place, tokenizer, extra, told, workers, queue_size)
        mark = Mark(
            task=task,
            num_tasks=num_tasks,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            extra=extra,
            form=content.form,
            num_leaves=len(content.leaves),
            sums=sums,
            fingerprint=TokenDataset.open(place).fingerprint if blocks else None,
            blocks=tuple(blocks),
            block_characters=BLOCK_CHARACTERS,
            num_blocks=len(own.num_chunks),
            cuts=hash_of(own.num_chunks, _sizes(content)),
        )
        write_text_atomically(path, mark.to_json())
    return mark


def merge_tasks(
    folder: Path, *, tokens_per_shard: int = TOKENS_PER_SHARD, progress: Progress | None = None
) -> PrepareStats:
    """Verify all tasks' shards, put their blocks in the corpus's order, remove the tasks' folder.

    Args:
        folder: As given to `prepare_task`.
        tokens_per_shard: As `prepare`.
        progress: Called after every block.

    Raises:
        ValueError: A task is missing, its shards are damaged, or tasks do not belong together.
        OSError: The disk is full or not writable.
    """
    began = time.perf_counter()
    tasks = folder.with_name(folder.name + ".tasks")
    if (folder / MANIFEST).is_file():  # merged; an interruption may have kept the tasks' folder
        dataset = TokenDataset.open(folder)
        shutil.rmtree(tasks, ignore_errors=True)
        return statistics(dataset, began)
    if not tasks.is_dir():
        raise ValueError(f"{tasks}: no task is done; run scratchlm data prepare ... --task 0 --num-tasks N.")
    with run_lock(tasks / "merge.lock", doing="merging"):
        marks = _all_marks(tasks)
        with ThreadPoolExecutor(num_cores(), thread_name_prefix="verify") as pool:
            datasets = list(pool.map(functools.partial(_open_task, folder), marks))
        order = sorted((block.number, mark.task, block) for mark in marks for block in mark.blocks)
        if [number for number, _, _ in order] != list(range(marks[0].num_blocks)):
            raise ValueError(f"{tasks}: a block is missing or there twice; remove it, run all tasks again.")
        if not order:
            raise ValueError(f"{tasks}: no task found any text; check the corpus.")
        told = functools.partial(_tell, progress, sum(block.num_bytes for _, _, block in order))
        places = [0] * len(marks)
        with ShardWriter(
            folder,
            vocab_size=marks[0].vocab_size,
            tokenizer_fingerprint=marks[0].tokenizer_fingerprint,
            tokens_per_shard=tokens_per_shard,
        ) as writer:
            for _, task, block in order:
                _copy(datasets[task], places[task], block, writer, marks[0].extra["end_of_text_id"])
                places[task] += block.num_tokens
                told(writer)
            writer.close(_whole_extra(tasks, marks))
    shutil.rmtree(tasks)
    return statistics(TokenDataset.open(folder), began)


def tasks_left(folder: Path, num_tasks: int) -> list[int]:
    """Return the tasks whose mark is not there."""
    return [task for task in range(num_tasks) if not _places(folder, task, num_tasks)[1].is_file()]


def _places(folder: Path, task: int, num_tasks: int) -> tuple[Path, Path]:
    """A task's folder of shards and its mark."""
    name = f"{task}-of-{num_tasks}"
    tasks = folder.with_name(folder.name + ".tasks")
    return tasks / name, tasks / f"{name}.json"


class _OwnJobs:
    """What is one task's: its blocks and its leaves, each with its number."""

    def __init__(
        self, portions: Iterable[Portion], leaves: Sequence[Leaf], task: int, num_tasks: int
    ) -> None:
        self.num_chunks: list[int] = []
        """Of every block of the corpus; known at the end."""
        self._portions, self._leaves, self._task, self._num_tasks = portions, leaves, task, num_tasks

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        for number, (portion, leaf) in enumerate(itertools.zip_longest(self._portions, self._leaves)):
            if portion is not None:
                self.num_chunks.append(portion.num_chunks)
            if number % self._num_tasks == self._task:
                yield number, Job(portion, 0, leaf)


def _write_blocks(
    own: _OwnJobs,
    place: Path,
    tokenizer: Tokenizer,
    extra: dict[str, Any],
    told: Callable[[ShardWriter], None],
    workers: int,
    queue_size: int,
) -> tuple[list[Block], dict[str, str]]:
    """Encode a task's blocks into its folder; return their table, empty if there is none, and the sums."""
    blocks: list[Block] = []
    sums: dict[str, str] = {}
    encode = functools.partial(_do_numbered, tokenizer=tokenizer)
    with ShardWriter(
        place, vocab_size=tokenizer.vocab_size, tokenizer_fingerprint=tokenizer.fingerprint
    ) as writer:
        for number, done in map_in_order(encode, iter(own), num_threads=workers, num_waiting=queue_size):
            sums |= {str(number): found for _, found in done.sums}
            if done.num_chunks:
                writer.add_documents(done.ids, done.ends, num_bytes=done.num_bytes)
                blocks.append(Block(number=number, num_tokens=done.ids.size, num_bytes=done.num_bytes))
                told(writer)
        if blocks:
            writer.close(extra)
    if not blocks:
        shutil.rmtree(partial_folder(place), ignore_errors=True)
    return blocks, sums


def _do_numbered(numbered: tuple[int, Job], tokenizer: Tokenizer) -> tuple[int, Encoded]:
    number, job = numbered
    return number, do_job(job, tokenizer)


def _sizes(content: Content) -> list[int]:
    return [path.stat().st_size for path in dict.fromkeys(leaf.path for leaf in content.leaves)]


def _tell(progress: Progress | None, total: int | None, writer: ShardWriter) -> None:
    if progress is not None:
        progress(writer.num_bytes, total, writer.num_documents, writer.num_tokens)


def _same_mark(path: Path, extra: dict[str, Any], content: Content, tokenizer: Tokenizer) -> Mark:
    """The mark of a task that is done, if it is of this text and tokenizer."""
    found = _read_mark(path)
    same = (found.extra, found.form, found.tokenizer_fingerprint) == (
        extra,
        content.form,
        tokenizer.fingerprint,
    )
    if not same or any(leaf_sum(content.leaves[int(number)]) != seen for number, seen in found.sums.items()):
        raise ValueError(
            f"{path}: of another corpus, split or tokenizer; remove {path.parent} or take another folder."
        )
    return found


def _read_mark(path: Path) -> Mark:
    try:
        return load(Mark, path)
    except (ValueError, ValidationError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it and run its task again.") from None


def _belongs_to(mark: Mark) -> tuple[Any, ...]:
    """What all tasks of one corpus have in common."""
    return mark.extra, mark.form, mark.tokenizer_fingerprint, mark.block_characters, mark.cuts


def _all_marks(tasks: Path) -> list[Mark]:
    found = [_read_mark(path) for path in sorted(tasks.glob("*-of-*.json"))]
    if not found:
        raise ValueError(f"{tasks}: no task is done; run scratchlm data prepare ... --task 0 --num-tasks N.")
    numbers = {mark.num_tasks for mark in found}
    if len(numbers) > 1:
        raise ValueError(
            f"{tasks}: tasks of {' and of '.join(map(str, sorted(numbers)))}; remove those of one number."
        )
    marks = {mark.task: mark for mark in found}
    missing = [str(task) for task in range(numbers.pop()) if task not in marks]
    if missing:
        raise ValueError(
            f"{tasks}: task {', '.join(missing)} of {found[0].num_tasks} is not done; run "
            f"scratchlm data prepare ... --task {missing[0]} --num-tasks {found[0].num_tasks}."
        )
    first = marks[0]
    for mark in found:
        if _belongs_to(mark) != _belongs_to(first):
            raise ValueError(
                f"{tasks}: task {mark.task} is of another corpus, split or tokenizer than task 0, or cut "
                "otherwise; run it again."
            )
    return [marks[task] for task in range(first.num_tasks)]


def _whole_extra(tasks: Path, marks: list[Mark]) -> dict[str, Any]:
    """What the manifest says of the text, with the fingerprint that all tasks have worked on."""
    extra, form = marks[0].extra, marks[0].form
    if not form:
        return extra
    sums = {int(number): found for mark in marks for number, found in mark.sums.items()}
    if sorted(sums) != list(range(marks[0].num_leaves)):
        raise ValueError(f"{tasks}: a checksum of the text is missing; remove it, run all tasks again.")
    fingerprint = fingerprint_of(form, [sums[number] for number in sorted(sums)])
    return {"corpus": extra["corpus"], "corpus_fingerprint": fingerprint, **extra}


def _open_task(folder: Path, mark: Mark) -> TokenDataset | None:
    if mark.fingerprint is None:
        return None
    place, path = _places(folder, mark.task, mark.num_tasks)
    dataset = TokenDataset.open(place, tokenizer_fingerprint=mark.tokenizer_fingerprint, verify=True)
    if dataset.fingerprint != mark.fingerprint:
        raise ValueError(f"{place}: not the shards that {path.name} names; remove both, run the task again.")
    return dataset


def _copy(dataset: TokenDataset, start: int, block: Block, writer: ShardWriter, end_of_text_id: int) -> None:
    """Append one block; texts hold no end-of-text id, so every one of them ends a document."""
    for first in range(0, block.num_tokens, COPIED_IDS):
        ids = dataset.read(start + first, min(COPIED_IDS, block.num_tokens - first))
        ends = np.flatnonzero(ids == end_of_text_id) + 1
        last = first + len(ids) == block.num_tokens
        writer.add_documents(ids, ends, num_bytes=block.num_bytes if last else 0)
