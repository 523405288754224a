"""Byte-pair encoding in plain Python: texts -> vocabulary and merges; a piece of text and merges -> tokens.

    train:   count all adjacent pairs; merge the most frequent pair everywhere; repeat
    encode:  merge the adjacent pair that was learnt first; repeat until no pair was ever learnt

A token is a byte string; at first each byte is one. The text is split into pieces before (pretokenize.py)
and no merge crosses a piece, so counting the distinct pieces once is enough. Among equally frequent pairs
a rule chooses (`Tie`), which makes the result unique: by default the greatest (bytes, bytes). Pairs are
counted with overlap ("aaa" holds two pairs of "a") and merged from the left without ("aaa" -> "aa", "a").
This file is slow and is the oracle: `merging`, `bpe_train` and `bpe_encode` must give the same result.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
https://arxiv.org/abs/1508.07909, algorithm 1; on bytes as in GPT-2; ties as in Stanford CS336, assignment 1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.formats.printable import byte_characters
from scratchlm.tokenizer.pretokenize import pretokenize
from scratchlm.tokenizer.streaming import repair_surrogates, specials_pattern

Pair = tuple[bytes, bytes]
Word = tuple[bytes, ...]

Tie = Literal["bytes", "hf", "raw", "assembled_bytes"]
"""Which of several equally frequent pairs is merged.

bytes: the greatest (bytes, bytes), as in Stanford CS336.
hf: the smallest (id, id), as in Hugging Face: ids of single bytes by `byte_order`, then the merges.
raw: the smallest (id, id), as in rustbpe: ids of single bytes by value, then the merges.
assembled_bytes: the smallest (bytes, bytes), as gigatoken's rule of this name.
"""


def train_bpe_reference(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    tie: Tie = "bytes",
) -> tuple[dict[int, bytes], list[Pair]]:
    """Learn a vocabulary from `texts`.

    Returns:
        Id -> bytes (special tokens, then the 256 bytes, then the merges in order) and the merges in order;
        fewer than asked when no pair is left.
    """
    words = count_words(texts, special_tokens=special_tokens, pattern=pattern)
    merges = learn_merges_reference(words, vocab_size - 256 - len(special_tokens), tie=tie)
    tokens = [name.encode("utf-8") for name in special_tokens]
    tokens += [bytes([value]) for value in range(256)] + [left + right for left, right in merges]
    return dict(enumerate(tokens)), merges


def learn_merges_reference(
    words: Counter[Word],
    num_merges: int,
    *,
    tie: Tie = "bytes",
    given: Sequence[Pair] = (),
    max_words: int | None = None,
) -> list[Pair]:
    """Learn merges from words and how often each occurs.

    Args:
        words: Each word is a tuple of tokens.
        num_merges: How many to learn, the given ones not counted.
        tie: Which of several equally frequent pairs goes first.
        given: Merges to apply first, in this order.
        max_words: The most words that a new token may touch; one with ": " is then not made either.
            None: no such limits.

    Returns:
        The new merges in order.
    """
    for pair in given:
        words = merge_everywhere(words, pair)
    merges = list(given)
    while len(merges) < len(given) + num_merges:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                if max_words is None or touches_few_words(pair, max_words):
                    counts[pair] += count
        if not counts:
            break
        most = max(counts.values())
        best = choose([pair for pair in counts if counts[pair] == most], merges, tie)
        merges.append(best)
        words = merge_everywhere(words, best)
    return merges[len(given) :]


def choose(pairs: Sequence[Pair], merges: Sequence[Pair], tie: Tie) -> Pair:
    """The one of several equally frequent pairs that is merged."""
    if tie == "bytes":
        return max(pairs)
    if tie == "assembled_bytes":
        return min(pairs)
    tokens = [*byte_order(tie), *(left + right for left, right in merges)]
    order = {token: number for number, token in enumerate(tokens)}
    return min(pairs, key=lambda pair: (order[pair[0]], order[pair[1]]))


def touches_few_words(pair: Pair, max_words: int) -> bool:
    """Whether SuperBPE may make this token: b" by the" touches two words; none with b": "."""
    token = pair[0] + pair[1]
    return len(token.split()) <= max_words and b": " not in token


def byte_order(tie: Tie) -> list[bytes]:
    """The 256 bytes in the order in which their ids break ties by "hf" or "raw".

    Hugging Face's trainer sorts the bytes by the characters that show them in files.
    """
    values = sorted(range(256), key=byte_characters().__getitem__) if tie == "hf" else range(256)
    return [bytes([value]) for value in values]


def count_words(texts: Iterable[str], *, special_tokens: Sequence[str], pattern: str) -> Counter[Word]:
    """How often each distinct piece, a tuple of single bytes, stands in `texts` outside of special tokens."""
    specials = specials_pattern(special_tokens).pattern
    words: Counter[Word] = Counter()
    for text in texts:
        text = repair_surrogates(text)
        for segment in specials.split(text) if specials is not None else [text]:
            for piece in pretokenize(segment, pattern):
                words[tuple(bytes([value]) for value in piece.encode("utf-8"))] += 1
    return words


def merge_everywhere(words: Counter[Word], pair: Pair) -> Counter[Word]:
    """Merge `pair` in all words; words that become equal count together."""
    merged: Counter[Word] = Counter()
    for word, count in words.items():
        merged[merge(word, pair)] += count
    return merged


def merge(word: Word, pair: Pair) -> Word:
    """Merge `pair` in `word` from the left.

    Example: word=(b"a", b"b", b"a", b"b", b"c"), pair=(b"a", b"b") -> (b"ab", b"ab", b"c").
    """
    merged: list[bytes] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return tuple(merged)


def encode_piece_reference(piece: bytes, ranks: dict[Pair, int]) -> Word:
    """Split the bytes of one piece into tokens.

    Args:
        piece: One piece of the split pattern.
        ranks: Each merge -> its place in the list of merges; the smallest goes first, the leftmost on a tie.
    """
    word: Word = tuple(bytes([value]) for value in piece)
    while len(word) > 1:
        place = min(range(len(word) - 1), key=lambda i: ranks.get((word[i], word[i + 1]), len(ranks)))
        if (word[place], word[place + 1]) not in ranks:
            break
        word = (*word[:place], word[place] + word[place + 1], *word[place + 2 :])
    return word


def encode_reference(
    text: str, vocab: dict[int, bytes], merges: Sequence[Pair], *, pattern: str = "gpt2"
) -> list[int]:
    """Return the ids of `text`, in which special tokens are plain text."""
    ranks: dict[Pair, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair, rank)
    ids = {token: id for id, token in reversed(vocab.items())}
    pieces = pretokenize(repair_surrogates(text), pattern)
    return [ids[token] for piece in pieces for token in encode_piece_reference(piece.encode("utf-8"), ranks)]
