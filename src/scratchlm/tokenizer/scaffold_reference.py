"""Scaffold-BPE in plain Python: texts -> merges and scaffold tokens; a piece and these -> visible tokens.

    train:   merge the most frequent pair, as BPE does; a part that is now rarer than the next candidate
             becomes a scaffold: it stays for merging, leaves the vocabulary, and waits among the candidates
             with its own frequency, where its turn may come again
    encode:  byte-pair encoding with all tokens; then each scaffold left over falls into its two parts,
             these too if they are scaffolds

"Arizona" is made of "Ari" and "zona". Once it is merged, "zona" hardly stands alone any more; ordinary BPE
keeps a row of the embedding for it, this method gives the row to a token that occurs. The vocabulary size
counts the tokens that are no scaffolds. This file is slow and is the oracle of `scaffold`.

Source: Lian et al. 2024, "Scaffold-BPE: Enhancing Byte Pair Encoding for Large Language Models with Simple
and Effective Scaffold Token Removal", https://arxiv.org/abs/2404.17808, algorithms 1 and 2. Where the paper
leaves a choice: the 256 bytes never become scaffolds (any text can be encoded); a waiting scaffold is
compared by the pair that made it; ties go to the greatest (bytes, bytes) as in `bpe_reference`; merging a
token with itself takes two of it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_reference import Pair, Word, count_words, encode_piece_reference, merge


class ScaffoldMerges(NamedTuple):
    """What training gives: all merges in order, and the tokens that only serve to make others."""

    merges: list[Pair]
    scaffolds: set[bytes]


def train_scaffold_reference(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
) -> ScaffoldMerges:
    """Learn merges until special tokens, bytes and visible tokens are `vocab_size`, or no pair is left."""
    words = count_words(texts, special_tokens=special_tokens, pattern=pattern)
    merges: list[Pair] = []
    waiting: dict[bytes, Pair] = {}  # scaffold -> the pair that made it
    candidates, _ = _frequencies(words, waiting)
    while candidates and len(special_tokens) + 256 + len(merges) - len(waiting) < vocab_size:
        best = max(candidates, key=lambda pair: (candidates[pair], pair))
        if best[0] + best[1] in waiting:
            del waiting[best[0] + best[1]]  # it is frequent enough again: back into the vocabulary
            candidates, _ = _frequencies(words, waiting)
            continue
        merges.append(best)
        words = Counter({merge(word, best): count for word, count in words.items()})
        candidates, frequencies = _frequencies(words, waiting)
        next_frequency = max(candidates.values(), default=0)
        makers = {left + right: (left, right) for left, right in merges}
        for part in best:
            if part in makers and frequencies[part] < next_frequency:
                waiting[part] = makers[part]
        candidates, _ = _frequencies(words, waiting)
    return ScaffoldMerges(merges, set(waiting))


def _frequencies(words: Counter[Word], waiting: Mapping[bytes, Pair]) -> tuple[Counter[Pair], Counter[bytes]]:
    """Frequency of every candidate that occurs (pairs, and scaffolds by their pair) and of every token."""
    pairs: Counter[Pair] = Counter()
    tokens: Counter[bytes] = Counter()
    for word, count in words.items():
        for token in word:
            tokens[token] += count
        for pair in pairwise(word):
            pairs[pair] += count
    for token, pair in waiting.items():
        pairs[pair] += tokens[token]
    return +pairs, tokens


def encode_piece_scaffold_reference(
    piece: bytes, ranks: dict[Pair, int], scaffolds: Collection[bytes]
) -> list[bytes]:
    """Split the bytes of one piece into visible tokens.

    Args:
        piece: One piece of the split pattern.
        ranks: Each merge -> its place in the list of merges, those that make scaffolds too.
        scaffolds: The tokens that must not be in the result.
    """
    makers = {left + right: (left, right) for left, right in ranks}
    tokens: list[bytes] = []
    for token in encode_piece_reference(piece, ranks):
        tokens += visible_parts(token, makers, scaffolds)
    return tokens


def visible_parts(token: bytes, makers: Mapping[bytes, Pair], scaffolds: Collection[bytes]) -> list[bytes]:
    """Demolish a token: undo merges until no scaffold is left.

    Example: scaffolds b"zona" and b"zon", made of (b"zon", b"a") and (b"z", b"on") -> [b"z", b"on", b"a"].
    """
    if token not in scaffolds:
        return [token]
    left, right = makers[token]
    return visible_parts(left, makers, scaffolds) + visible_parts(right, makers, scaffolds)
