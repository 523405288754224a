"""Texts -> BPETokenizer, fast: distinct pieces are counted while the texts stream by, then pairs merged.

    "low lower low"  -> windows: low| lower| low     what no merge may cross
                     -> count:   low 2, lower 1      each distinct piece once
                     -> merge:   l o -> lo, lo w -> low, ...    the most frequent pair, again and again
                     -> vocabulary: special tokens, bytes, merges

The same three steps as `bpe_reference.train_bpe_reference`, with the same result. Memory holds the distinct
pieces, never the text, and the result does not depend on the number of threads. Step by step: `windows`
(reading and splitting), `piece_counts` and `compiled.count` (counting), `merging` (merging).
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from scratchlm.runtime import num_cores
from scratchlm.tokenizer import TOKENIZERS
from scratchlm.tokenizer.base import END_OF_TEXT, check_name, check_specials
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import Pair, Tie, byte_order
from scratchlm.tokenizer.merging import Progress, Words, learn_merges, words_of
from scratchlm.tokenizer.piece_counts import Job, add_tables, count_jobs, jobs_of_files, jobs_of_texts
from scratchlm.tokenizer.pretokenize import compiled
from scratchlm.tokenizer.sources import Errors
from scratchlm.tokenizer.train_profile import TrainingProfile
from scratchlm.tokenizer.windows import Splitter

log = logging.getLogger("scratchlm")

_SECONDS_BETWEEN_REPORTS = 0.05  # what an eye can follow


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
        tie: Tie = "bytes",
        max_pieces: int | None = None,
        num_threads: int | None = None,
        errors: Errors = "strict",
    ) -> None:
        """Choose the settings.

        Args:
            vocab_size: Number of ids in all: special tokens, 256 bytes, merges.
            pattern: Split pattern: gpt2, cl100k, o200k, llama3 or qwen2.
            special_tokens: Texts that become one id and are never merged with anything.
            tie: Which of several equally frequent pairs is merged (see `bpe_reference.Tie`), and the order of
                the ids: special tokens, bytes, merges; with "raw" bytes, merges, special tokens; with "hf"
                the bytes in the order of the characters that show them, as Hugging Face's tokenizers.
            max_pieces: The most kinds of pieces to keep in memory, for text that has more than fit: at about
                100 bytes each; the rarest are forgotten. None: all are kept.
            num_threads: Threads that count; None: one for each core. The result does not depend on it.
            errors: What happens to bytes of files that are no UTF-8: "strict" is an error, "replace" puts
                U+FFFD there, "lossless" learns from the bytes as they are.

        Raises:
            ValueError: The vocabulary has no room for the bytes and special tokens, or a setting is not
            known or out of range.
        """
        compiled(pattern)
        self.pattern = pattern
        self.special_tokens = tuple(check_specials(special_tokens))
        self.vocab_size = vocab_size
        self.tie: Tie = tie
        self.max_pieces = max_pieces
        self.num_threads = num_cores() if num_threads is None else num_threads
        self.errors: Errors = errors
        check_name(tie, get_args(Tie), "tie rule")
        check_name(errors, get_args(Errors), "errors setting")
        if vocab_size < 256 + len(self.special_tokens):
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and "
                f"{len(self.special_tokens)} special tokens need at least {256 + len(self.special_tokens)}."
            )
        for name in self.special_tokens:
            if len(name.encode("utf-8")) == 1:
                raise ValueError(
                    f"special token {name!r}: a single byte, which has an id already; choose a longer text "
                    "that ordinary text does not hold, such as '<|name|>'."
                )
        for name, number in (("max_pieces", max_pieces), ("num_threads", num_threads)):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number}: must be at least 1, or None.")

    def train(
        self,
        texts: Iterable[str],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> BPETokenizer:
        """Learn the merges from `texts`; each text is split for itself.

        Raises:
            ValueError: There is no text, or it holds no two adjacent bytes to merge.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        jobs = jobs_of_texts(texts, self.pattern, self.special_tokens)
        return self._train(jobs, "", 0, progress, profile)

    def train_on_file(
        self,
        path: Path | Sequence[Path],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> BPETokenizer:
        """Learn the merges from a file of text, or from several, each a text of its own.

        Raises:
            ValueError: A file is missing, not UTF-8, or there is nothing to merge; the message names it.
        """
        paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
        jobs = jobs_of_files(paths, self.pattern, self.special_tokens)
        num_bytes = sum(one.stat().st_size for one in paths if one.is_file())
        where = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
        return self._train(jobs, f"{where or 'no file'}: ", num_bytes, progress, profile)

    def _train(
        self,
        jobs: Iterable[Job],
        where: str,
        num_bytes: int,
        progress: Progress | None,
        profile: TrainingProfile | None,
    ) -> BPETokenizer:
        reports, profile = _Reports(progress), profile or TrainingProfile()
        load_merging = threading.Thread(target=_load_merging)
        words = self._count(jobs, num_bytes, reports, profile, load_merging)
        if not profile.num_occurrences:
            raise ValueError(f"{where}the training text is empty: nothing to learn a vocabulary from.")
        num_merges = self.vocab_size - 256 - len(self.special_tokens)
        with profile.phase("merge"):
            if load_merging.ident is not None:
                load_merging.join()
            merges = learn_merges(words, num_merges, tie=self.tie, progress=reports)
            reports.flush()
        profile.num_merges = len(merges)
        if num_merges and not merges:
            raise ValueError(
                f"{where}the training text holds no two adjacent bytes to merge; give more text."
            )
        if len(merges) < num_merges:
            reached = self.vocab_size - num_merges + len(merges)
            log.warning(
                "vocab_size=%d cannot be reached: at %d, the size it has, every piece is one token.",
                self.vocab_size,
                reached,
            )
        with profile.phase("vocabulary"):
            vocab = number_tokens(merges, self.special_tokens, self.tie)
            return BPETokenizer(vocab, merges, self.special_tokens, pattern=self.pattern)

    def _count(
        self,
        jobs: Iterable[Job],
        num_bytes: int,
        reports: "_Reports",
        profile: TrainingProfile,
        load_merging: threading.Thread,
    ) -> Words:
        """Count the distinct pieces; where that takes a while, start `load_merging` meanwhile."""

        def report(done: int) -> None:
            # Not before the loops of counting are there: only one thread at a time can compile.
            if load_merging.ident is None and (done < num_bytes or not num_bytes):
                load_merging.start()
            reports("count", done, max(num_bytes, done) if num_bytes else 0)

        with profile.phase("count"):
            counts = count_jobs(
                jobs,
                lambda: Splitter(self.pattern, self.special_tokens, errors=self.errors),
                num_threads=self.num_threads,
                max_pieces=self.max_pieces,
                report=report,
            )
            reports.flush()
        with profile.phase("combine"):
            table = add_tables(counts.tables, self.num_threads)
            words = table.words()
        profile.num_threads, profile.num_bytes = self.num_threads, counts.num_bytes
        profile.num_pieces, profile.table_bytes = table.num_pieces, table.num_bytes
        profile.num_occurrences = counts.num_occurrences
        if counts.num_dropped:
            log.warning(
                "max_pieces=%d: %d of the text's %d pieces (%.2f %%) are of kinds too rare to keep and were "
                "forgotten; merges may differ from those of the whole text.",
                self.max_pieces,
                counts.num_dropped,
                counts.num_occurrences,
                100 * counts.num_dropped / counts.num_occurrences,
            )
        return words


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    scheme: str = "bpe",
    tie: Tie = "bytes",
    max_pieces: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
    profile: TrainingProfile | None = None,
) -> BPETokenizer:
    """Learn a byte-pair encoding from texts; for the settings see `BPETrainer`.

    scheme="superbpe" lets the last tenth of the merges cross words (see `superbpe`).

    Raises:
        ValueError: As `BPETrainer`.
    """
    kind = TOKENIZERS.get(check_name(scheme, ("bpe", "superbpe"), "scheme"))
    trainer = kind(
        vocab_size=vocab_size,
        special_tokens=tuple(special_tokens),
        pattern=pattern,
        tie=tie,
        max_pieces=max_pieces,
        num_threads=num_threads,
    )
    return trainer.train(texts, progress, profile=profile)


def train_bpe_on_file(
    path: Path | Sequence[Path],
    *,
    vocab_size: int,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    tie: Tie = "bytes",
    max_pieces: int | None = None,
    num_threads: int | None = None,
    errors: Errors = "strict",
    progress: Progress | None = None,
    profile: TrainingProfile | None = None,
) -> BPETokenizer:
    """Like `train_bpe`, on a file of any size, or on several.

    Raises:
        ValueError: As `BPETrainer`, naming the file.
    """
    trainer = BPETrainer(
        vocab_size=vocab_size,
        special_tokens=tuple(special_tokens),
        pattern=pattern,
        tie=tie,
        max_pieces=max_pieces,
        num_threads=num_threads,
        errors=errors,
    )
    return trainer.train_on_file(path, progress, profile=profile)


def number_tokens(merges: Sequence[Pair], special_tokens: Sequence[str], tie: Tie) -> dict[int, bytes]:
    """Id -> bytes, in the order that belongs to the rule for ties (see `BPETrainer`)."""
    specials = [name.encode("utf-8") for name in special_tokens]
    ordinary = [*byte_order(tie), *(left + right for left, right in merges)]
    return dict(enumerate(ordinary + specials if tie == "raw" else specials + ordinary))


def _load_merging() -> None:
    """Load or compile the loops of merging: 0.1 or 3 seconds in a new process."""
    learn_merges(words_of([(b"aab", 2), (b"ab", 1)]), 2)


class _Reports:
    """Hands progress on, not more often than someone can look at it; the last report of a phase always."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._next = 0.0
        self._held: tuple[str, int, int] | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._held = (phase, done, total)
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held back."""
        if self._held is not None and self._progress is not None:
            self._progress(*self._held)
        self._held = None
        self._next = time.monotonic() + _SECONDS_BETWEEN_REPORTS
