r"""SuperBPE: texts -> a BPETokenizer whose later tokens may hold several words, such as " by the way".

    stage 1   | by| the| way|,| I|        ordinary merges inside words        " b" "y", " t" "he", ...
    stage 2   | by the way, I|            the same merges, then others        " by" " the", " by the" " way"

First words, then phrases: the first stage learns as always, with a split pattern that separates words; the
second goes on from its merges with a pattern that separates only numbers, runs of signs and runs of blanks.
A token touches at most four words and never holds ": ". The result is an ordinary BPETokenizer with the
second pattern, so encoding needs nothing new; text takes up to a third fewer tokens at large vocabularies.

Source: Liu et al. 2025, "SuperBPE: Space Travel for Language Models", https://arxiv.org/abs/2503.13423,
section 3 and appendix A.1. As in the source, but the texts are not cut to a length before the second stage.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scratchlm.tokenizer import TOKENIZERS
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_extend import count_words_of, extend_from_words
from scratchlm.tokenizer.bpe_reference import Tie
from scratchlm.tokenizer.bpe_train import BPETrainer
from scratchlm.tokenizer.merging import Progress
from scratchlm.tokenizer.piece_counts import Job, jobs_of_files, jobs_of_texts
from scratchlm.tokenizer.sources import Errors
from scratchlm.tokenizer.train_profile import TrainingProfile

PATTERN = "superbpe"
"""The split pattern of the second stage, and of the tokenizer."""

FIRST_STAGE = 0.9
"""Share of the merges learnt in the first stage: of the paper's settings the one with the best models,
180,000 of 200,000. Fewer give shorter texts: 80,000 are its choice for fewest tokens."""

MAX_WORDS = 4
"""The paper's limit."""


@TOKENIZERS.register("superbpe")
class SuperBPETrainer:
    """Byte-pair encoding whose later tokens may hold several words."""

    tokenizer = BPETokenizer

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        first_stage: int | None = None,
        pattern: str = "gpt2",
        special_tokens: tuple[str, ...] = (END_OF_TEXT,),
        tie: Tie = "bytes",
        max_words: int = MAX_WORDS,
        max_pieces: int | None = None,
        num_threads: int | None = None,
        errors: Errors = "strict",
    ) -> None:
        """Choose the settings.

        Args:
            vocab_size: Number of ids in all: special tokens, 256 bytes, merges of both stages.
            first_stage: Number of merges inside words, before merges may cross words. None: nine tenths.
            pattern: Split pattern of the first stage; the tokenizer has the pattern superbpe.
            special_tokens: Texts that become one id and are never merged with anything.
            tie: Which of several equally frequent pairs is merged.
            max_words: The most words that a token may touch.
            max_pieces: The most kinds of pieces to keep in memory in each stage; None: all. The pieces of
                the second stage are long and hardly ever repeat: they take four bytes a byte of text.
            num_threads: Threads that count; None: one for each core.
            errors: What happens to bytes of files that are no UTF-8; as for "bpe".

        Raises:
            ValueError: The vocabulary has no room for the bytes and special tokens, or a setting is not
            known or out of range.
        """
        ordinary = BPETrainer(vocab_size=vocab_size, special_tokens=special_tokens, pattern=pattern, tie=tie)
        num_merges = vocab_size - 256 - len(ordinary.special_tokens)
        self.first_stage = round(FIRST_STAGE * num_merges) if first_stage is None else first_stage
        if not 1 <= self.first_stage < num_merges:
            raise ValueError(
                f"first_stage={self.first_stage}: must be from 1 to {num_merges - 1}, the merges that "
                f"vocab_size={vocab_size} has room for, less one for the second stage."
            )
        if max_words < 1:
            raise ValueError(f"max_words={max_words}: must be at least 1.")
        self.vocab_size = vocab_size
        self.max_words = max_words
        self._first = BPETrainer(
            vocab_size=vocab_size - num_merges + self.first_stage,
            pattern=pattern,
            special_tokens=special_tokens,
            tie=tie,
            max_pieces=max_pieces,
            num_threads=num_threads,
            errors=errors,
        )

    def train(
        self,
        texts: Iterable[str],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> BPETokenizer:
        """Learn from `texts`, which are read twice; what can be read once only is kept in memory.

        Raises:
            ValueError: There is no text, or it holds nothing to merge.
        """
        kept = texts if isinstance(texts, Sequence) else list(texts)
        first = self._first.train(kept, progress, profile=profile)
        return self._second_stage(first, lambda *how: jobs_of_texts(kept, *how), progress, profile)

    def train_on_file(
        self,
        path: Path | Sequence[Path],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> BPETokenizer:
        """Learn from a file of text, or from several.

        Raises:
            ValueError: A file is missing, not UTF-8, or there is nothing to merge; the message names it.
        """
        paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
        first = self._first.train_on_file(paths, progress, profile=profile)
        return self._second_stage(first, lambda *how: jobs_of_files(paths, *how), progress, profile)

    def _second_stage(
        self,
        first: BPETokenizer,
        jobs: Callable[[str, Sequence[str]], Iterable[Job]],
        progress: Progress | None,
        profile: TrainingProfile | None,
    ) -> BPETokenizer:
        profile = profile or TrainingProfile()
        with profile.phase("count phrases"):
            words = count_words_of(
                jobs(PATTERN, self._first.special_tokens),
                PATTERN,
                self._first.special_tokens,
                max_pieces=self._first.max_pieces,
                num_threads=self._first.num_threads,
                errors=self._first.errors,
                progress=progress,
            )
        with profile.phase("merge phrases"):
            return extend_from_words(
                first,
                words,
                vocab_size=self.vocab_size,
                pattern=PATTERN,
                tie=self._first.tie,
                max_words=self.max_words,
                progress=progress,
            )


def train_superbpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    first_stage: int | None = None,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    tie: Tie = "bytes",
    max_words: int = MAX_WORDS,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> BPETokenizer:
    """Learn a SuperBPE vocabulary from texts; for the settings see `SuperBPETrainer`.

    Raises:
        ValueError: As `SuperBPETrainer`.
    """
    trainer = SuperBPETrainer(
        vocab_size=vocab_size,
        first_stage=first_stage,
        special_tokens=tuple(special_tokens),
        pattern=pattern,
        tie=tie,
        max_words=max_words,
        num_threads=num_threads,
    )
    return trainer.train(texts, progress)
