"""Byte-pair encoding in plain Python: texts -> vocabulary and merges; a piece of text and merges -> tokens.

    train:   count all adjacent pairs; merge the most frequent pair everywhere; repeat
    encode:  merge the adjacent pair that was learnt first; repeat until no pair was ever learnt

A token is a byte string; at first each byte is one. The text is split into pieces before (pretokenize.py)
and no merge crosses a piece, so counting the distinct pieces once is enough. Among equally frequent pairs
the greatest (bytes, bytes) pair is merged, which makes the result unique. Pairs are counted with overlap
("aaa" holds two pairs of "a") and merged from the left without ("aaa" -> "aa", "a"). This file is slow and
is the oracle: `bpe_train` and `bpe_encode` must give the same result.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
https://arxiv.org/abs/1508.07909, algorithm 1; on bytes as in GPT-2; ties as in Stanford CS336, assignment 1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.pretokenize import pretokenize
from scratchlm.tokenizer.streaming import repair_surrogates, specials_pattern

Pair = tuple[bytes, bytes]
Word = tuple[bytes, ...]


def train_bpe_reference(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
) -> tuple[dict[int, bytes], list[Pair]]:
    """Learn a vocabulary from `texts`.

    Returns:
        Id -> bytes (special tokens, then the 256 bytes, then the merges in order) and the merges in order;
        fewer than asked when no pair is left.
    """
    words = count_words(texts, special_tokens=special_tokens, pattern=pattern)
    merges: list[Pair] = []
    while len(special_tokens) + 256 + len(merges) < vocab_size:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = Counter({merge(word, best): count for word, count in words.items()})
    tokens = [name.encode("utf-8") for name in special_tokens]
    tokens += [bytes([value]) for value in range(256)] + [left + right for left, right in merges]
    return dict(enumerate(tokens)), merges


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
