"""Texts -> BPETokenizer, fast: distinct pieces are counted while the texts stream by, then pairs merged.

The result equals `bpe_reference.train_bpe_reference`. Memory holds the distinct pieces, never the text. The
loops are in bpe_numba (splitting, counting) and bpe_numba_merges (merging).
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from scratchlm.tokenizer import TOKENIZERS
from scratchlm.tokenizer.base import END_OF_TEXT, check_specials
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_numba import LENGTH, START, VALUE, count_pieces
from scratchlm.tokenizer.bpe_numba_merges import (
    EXHAUSTED,
    GROW_PAIRS,
    GROW_TOKENS,
    NUM_MERGES,
    NUM_PAIRS,
    Pairs,
    Tokens,
    Words,
    count_pairs,
    merge_pairs,
    rebuild_slots,
)
from scratchlm.tokenizer.pretokenize import CUT_CHARACTERS, compiled, parts, split_to_bytes, stable_prefix
from scratchlm.tokenizer.streaming import cut_stream, repair_surrogates, specials_pattern

log = logging.getLogger("scratchlm")

Progress = Callable[[str, int, int], None]
"""Called as (phase, done, total): "count" in bytes of text (total 0 where unknown), "merge" in merges."""

_MERGES_PER_REPORT = 512


@TOKENIZERS.register("bpe")
class BPETrainer:
    """Byte-level byte-pair encoding, trained on the corpus."""

    tokenizer = BPETokenizer

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt2",
        special_tokens: tuple[str, ...] = (END_OF_TEXT,),
    ) -> None:
        """Choose the settings.

        Args:
            vocab_size: Number of ids in all: special tokens, 256 bytes, merges.
            pattern: Split pattern: gpt2, cl100k, o200k, llama3 or qwen2.
            special_tokens: Texts that become one id and are never merged with anything.

        Raises:
            ValueError: The vocabulary has no room for the bytes and special tokens, or the pattern is not
            known.
        """
        compiled(pattern)
        self.special_tokens = tuple(check_specials(special_tokens))
        self.pattern = pattern
        self.vocab_size = vocab_size
        if vocab_size < 256 + len(self.special_tokens):
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and "
                f"{len(self.special_tokens)} special tokens need at least {256 + len(self.special_tokens)}."
            )

    def train(self, texts: Iterable[str], progress: Progress | None = None) -> BPETokenizer:
        """Learn the merges from `texts`; each text is split for itself.

        Raises:
            ValueError: There is no text, or it holds no two adjacent bytes to merge.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        return self._train(self._segments(texts), progress or _no_progress, 0)

    def train_on_file(self, path: Path, progress: Progress | None = None) -> BPETokenizer:
        """Learn the merges from a UTF-8 file, read in chunks.

        Raises:
            ValueError: The file is missing, not UTF-8, or holds nothing to merge; the message names it.
        """
        path = Path(path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                chunks = iter(lambda: file.read(CUT_CHARACTERS), "")
                stream = cut_stream(
                    chunks,
                    specials=specials_pattern(self.special_tokens),
                    stable_prefix=lambda text: stable_prefix(text, self.pattern),
                    held_characters=CUT_CHARACTERS,
                )
                segments = (text for text, _ in stream)
                return self._train(segments, progress or _no_progress, path.stat().st_size)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error}); convert it first.") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _segments(self, texts: Iterable[str]) -> Iterator[str]:
        specials = specials_pattern(self.special_tokens).pattern
        for text in texts:
            repaired = repair_surrogates(text)
            for segment in specials.split(repaired) if specials is not None else [repaired]:
                yield from parts(segment, self.pattern)

    def _train(self, segments: Iterable[str], progress: Progress, num_bytes: int) -> BPETokenizer:
        table = _PieceTable()
        done = 0
        for batch in _batches(segments):
            buffer, ends = split_to_bytes(batch, self.pattern)
            table.count(buffer, ends)
            done += len(buffer)
            progress("count", done, max(num_bytes, done) if num_bytes else 0)
        if done == 0:
            raise ValueError("the training text is empty: nothing to learn a vocabulary from.")
        num_merges = self.vocab_size - 256 - len(self.special_tokens)
        merges = _learn_merges(table.words(), num_merges, progress)
        if num_merges and not merges:
            raise ValueError("the training text holds no two adjacent bytes to merge; give more text.")
        if len(merges) < num_merges:
            reached = self.vocab_size - num_merges + len(merges)
            log.warning(
                "vocab_size=%d cannot be reached: at %d, the size it has, every piece is one token.",
                self.vocab_size,
                reached,
            )
        tokens = [name.encode("utf-8") for name in self.special_tokens]
        tokens += [bytes([value]) for value in range(256)] + [left + right for left, right in merges]
        return BPETokenizer(dict(enumerate(tokens)), merges, self.special_tokens, pattern=self.pattern)


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Progress | None = None,
) -> BPETokenizer:
    """Learn a byte-pair encoding; ids are special tokens, then the 256 bytes, then the merges.

    Raises:
        ValueError: As `BPETrainer`.
    """
    trainer = BPETrainer(vocab_size=vocab_size, special_tokens=tuple(special_tokens), pattern=pattern)
    return trainer.train(texts, progress)


def train_bpe_on_file(
    path: Path,
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Progress | None = None,
) -> BPETokenizer:
    """Like `train_bpe`, on one UTF-8 file of any size.

    Raises:
        ValueError: As `BPETrainer`, naming the file.
    """
    trainer = BPETrainer(vocab_size=vocab_size, special_tokens=tuple(special_tokens), pattern=pattern)
    return trainer.train_on_file(Path(path), progress)


def _no_progress(phase: str, done: int, total: int) -> None:
    """Report to nobody."""


def _batches(segments: Iterable[str]) -> Iterator[list[str]]:
    """Group short texts, so that a call of the compiled loops has something to do."""
    batch, size = [], 0
    for segment in segments:
        batch.append(segment)
        size += len(segment)
        if size >= CUT_CHARACTERS:
            yield batch
            batch, size = [], 0
    if size:
        yield batch


class _PieceTable:
    """Distinct pieces and their counts; grows as they come."""

    def __init__(self) -> None:
        self.slots = np.zeros(1 << 15, np.int32)
        self.records = np.zeros((1 << 14, 4), np.int64)
        self.arena = np.zeros(1 << 17, np.uint8)
        self.used = np.zeros(3, np.int64)

    def count(self, buffer: np.ndarray, ends: np.ndarray) -> None:
        """Count every piece."""
        done = 0
        while True:
            done = count_pieces(buffer, ends, done, self.slots, self.records, self.arena, self.used)
            if done == len(ends):
                return
            self._grow(int(ends[done]))

    def _grow(self, num_bytes: int) -> None:
        if self.used[0] >= len(self.records):
            self.records = np.concatenate([self.records, np.zeros_like(self.records)])
            self.slots = _slots_for(self.records[: self.used[0], 0], 2 * len(self.slots))
        else:
            self.arena = np.concatenate([self.arena, np.zeros(len(self.arena) + num_bytes, np.uint8)])

    def words(self) -> Words:
        """The pieces as words of byte symbols."""
        records = self.records[: self.used[0]]
        return Words(
            self.arena[: self.used[1]].astype(np.int32),
            records[:, START].copy(),
            records[:, LENGTH].astype(np.int32),
            records[:, VALUE].copy(),
        )


def _slots_for(hashes: np.ndarray, size: int) -> np.ndarray:
    """An open-addressing table of `size` slots with entry numbers + 1, filled in rounds of one probe each."""
    slots = np.zeros(size, np.int32)
    entries = np.arange(1, len(hashes) + 1, dtype=np.int32)
    places = hashes & (size - 1)
    while len(entries):
        free = slots[places] == 0
        slots[places[free]] = entries[free]
        left = slots[places] != entries
        entries, places = entries[left], (places[left] + 1) & (size - 1)
    return slots


def _learn_merges(words: Words, num_merges: int, progress: Progress) -> list[tuple[bytes, bytes]]:
    """Merge `num_merges` pairs, fewer when none is left."""
    pairs = _empty_pairs(len(words.symbols) + 1)
    tokens = _byte_tokens(num_merges)
    merges = np.zeros((num_merges, 2), np.int32)
    state = np.zeros(4, np.int64)
    count_pairs(words, pairs, tokens, state)
    while state[NUM_MERGES] < num_merges:
        until = min(num_merges, int(state[NUM_MERGES]) + _MERGES_PER_REPORT)
        outcome = merge_pairs(words, pairs, tokens, merges, state, until)
        if outcome == GROW_PAIRS:
            pairs = _grown_pairs(pairs, int(state[NUM_PAIRS]))
        elif outcome == GROW_TOKENS:
            tokens = _grown_tokens(tokens)
        else:
            progress("merge", int(state[NUM_MERGES]), num_merges)
        if outcome == EXHAUSTED:
            break
    made = [bytes([value]) for value in range(256)]
    learnt = []
    for left, right in merges[: state[NUM_MERGES]].tolist():
        learnt.append((made[left], made[right]))
        made.append(made[left] + made[right])
    return learnt


def _empty_pairs(size: int) -> Pairs:
    whole = [np.empty(size, dtype) for dtype in (np.int32, np.int32, np.int64, np.int64, np.int64)]
    nodes = [np.empty(size, dtype) for dtype in (np.int32, np.int64)]
    heap = [np.empty(size, dtype) for dtype in (np.int64, np.int64)]
    return Pairs(np.zeros(1 << (2 * size).bit_length(), np.int64), *whole, *nodes, *heap)


def _grown_pairs(pairs: Pairs, num_pairs: int) -> Pairs:
    larger = [np.concatenate([array, np.empty_like(array)]) for array in itertools.islice(pairs, 1, None)]
    grown = Pairs(np.zeros(2 * len(pairs.slots), np.int64), *larger)
    rebuild_slots(grown, num_pairs)
    return grown


def _byte_tokens(num_merges: int) -> Tokens:
    starts = np.zeros(256 + num_merges + 1, np.int64)
    starts[:257] = np.arange(257)
    heads = np.zeros(256 + num_merges, np.uint64)
    heads[:256] = np.arange(256, dtype=np.uint64) << np.uint64(56)
    arena = np.zeros(512 + 16 * num_merges, np.uint8)
    arena[:256] = np.arange(256)
    return Tokens(arena, starts, heads)


def _grown_tokens(tokens: Tokens) -> Tokens:
    return tokens._replace(arena=np.concatenate([tokens.arena, np.zeros_like(tokens.arena)]))
