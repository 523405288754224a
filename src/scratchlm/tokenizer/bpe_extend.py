"""A tokenizer and more text -> a larger one whose old ids stay; or a smaller one with the first merges only.

    merges  a b | ab c | d e            old: applied to the new text first, in their order
                         ab cd | ...    new: learnt from what they leave

That is ordinary training, interrupted and continued: with the same text and split pattern the result is that
of training in one go. With other text it teaches a trained tokenizer a language or a subject; with another
split pattern it is the second stage of SuperBPE (`superbpe`). Cutting keeps the first merges, which is what
training would have given at the smaller size.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from scratchlm.runtime import num_cores
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import Tie
from scratchlm.tokenizer.merging import Progress, Words, learn_merges
from scratchlm.tokenizer.normalization import normalize
from scratchlm.tokenizer.piece_counts import Job, add_tables, count_jobs, jobs_of_texts
from scratchlm.tokenizer.sources import Errors
from scratchlm.tokenizer.windows import Splitter

log = logging.getLogger("scratchlm")


def extend_bpe(
    tokenizer: BPETokenizer,
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: str | None = None,
    tie: Tie = "bytes",
    max_words: int | None = None,
    max_pieces: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> BPETokenizer:
    """Learn more merges from `texts`.

    Args:
        tokenizer: Its ids, merges and special tokens are kept.
        texts: Split each for itself.
        vocab_size: Number of ids afterwards.
        pattern: Split pattern for learning and from then on; None: the tokenizer's own.
        tie: Which of several equally frequent pairs is merged.
        max_words: The most words that a new token may touch, where the pattern leaves words together.
        max_pieces: The most kinds of pieces to keep in memory; None: all.
        num_threads: Threads that count; None: one for each core.
        progress: Called as (phase, done, total): "count" in bytes, "replay" and "merge" in merges.

    Raises:
        ValueError: There is no room for new ids, nothing to learn from, or the tokenizer has merges that
            contradict each other.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string; pass a list of texts: [text].")
    pattern = tokenizer.pattern if pattern is None else pattern
    composed = (normalize(text, tokenizer.normalization) for text in texts)
    jobs = jobs_of_texts(composed, pattern, list(tokenizer.special_tokens))
    words = count_words_of(
        jobs,
        pattern,
        list(tokenizer.special_tokens),
        max_pieces=max_pieces,
        num_threads=num_threads,
        progress=progress,
    )
    return extend_from_words(
        tokenizer,
        words,
        vocab_size=vocab_size,
        pattern=pattern,
        tie=tie,
        max_words=max_words,
        progress=progress,
    )


def count_words_of(
    jobs: Iterable[Job],
    pattern: str,
    specials: Sequence[str],
    *,
    max_pieces: int | None = None,
    num_threads: int | None = None,
    errors: Errors = "strict",
    progress: Progress | None = None,
) -> Words:
    """Count the distinct pieces of all jobs (see `piece_counts`)."""
    report = progress or (lambda phase, done, total: None)
    counts = count_jobs(
        jobs,
        lambda: Splitter(pattern, specials, errors=errors),
        num_threads=num_cores() if num_threads is None else num_threads,
        max_pieces=max_pieces,
        report=lambda done: report("count", done, 0),
    )
    return add_tables(counts.tables, 1).words()


def extend_from_words(
    tokenizer: BPETokenizer,
    words: Words,
    *,
    vocab_size: int,
    pattern: str,
    tie: Tie = "bytes",
    max_words: int | None = None,
    progress: Progress | None = None,
) -> BPETokenizer:
    """`extend_bpe` from pieces that are counted already; `words` is used up."""
    num_merges = vocab_size - tokenizer.vocab_size
    if num_merges < 1:
        raise ValueError(
            f"vocab_size={vocab_size}: the tokenizer has {tokenizer.vocab_size} ids already; choose more, or "
            "make it smaller with cut_vocabulary."
        )
    learnt = learn_merges(
        words, num_merges, tie=tie, given=tokenizer.merges, max_words=max_words, progress=progress
    )
    if not learnt:
        raise ValueError("the text holds no pair of tokens that could be merged; give more text.")
    if len(learnt) < num_merges:
        reached = vocab_size - num_merges + len(learnt)
        log.warning("vocab_size=%d cannot be reached: at %d no pair is left to merge.", vocab_size, reached)
    vocab = tokenizer.vocab
    known = set(vocab.values())  # it may hold tokens that no merge makes
    new = [token for token in dict.fromkeys(left + right for left, right in learnt) if token not in known]
    vocab.update(enumerate(new, tokenizer.vocab_size))
    return _like(tokenizer, vocab, [*tokenizer.merges, *learnt], pattern)


def cut_vocabulary(tokenizer: BPETokenizer, vocab_size: int) -> BPETokenizer:
    """Keep the first merges only; the tokens that are left are numbered anew, in their order.

    Raises:
        ValueError: The vocabulary is smaller than that already, or what no merge makes needs more room.
    """
    vocab = tokenizer.vocab
    merges = list(tokenizer.merges)
    made = Counter(left + right for left, right in merges)
    removed: set[bytes] = set()
    smallest = len(vocab) - len(made)
    if not smallest <= vocab_size <= len(vocab):
        raise ValueError(
            f"vocab_size={vocab_size}: this tokenizer can be cut to {smallest} (bytes, special tokens and "
            f"others that no merge makes) up to {len(vocab)}, which it has."
        )
    while len(vocab) - len(removed) > vocab_size:
        left, right = merges.pop()
        made[left + right] -= 1
        if not made[left + right]:
            removed.add(left + right)
    kept = [token for _, token in sorted(vocab.items()) if token not in removed]
    return _like(tokenizer, dict(enumerate(kept)), merges, tokenizer.pattern)


def _like(
    tokenizer: BPETokenizer, vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], pattern: str
) -> BPETokenizer:
    """A tokenizer with the same special tokens and settings."""
    return BPETokenizer(
        vocab,
        merges,
        list(tokenizer.special_tokens),
        pattern=pattern,
        ignore_merges=tokenizer.ignore_merges,
        normalization=tokenizer.normalization,
    )
