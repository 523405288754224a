r"""BPE-dropout: a text -> ids with merges left out at random; every seed gives another result.

    probability 0     "un|related" as `encode` gives it
    probability 0.1   "un|rel|ated", "un|related", "u|n|related", ...
    probability 1     single bytes

A model that sees a word cut in several ways learns what it is made of. At every step the possible merges are
considered in their order (rank, then place); each is passed over with `probability`, and the first that is
not is made. When all have been passed over, the piece is done. This is for training data; what the trained
model is asked is encoded as usual.

The random numbers are a pure function of seed, place and draw: the byte of the text at which the piece
begins, and how many merges the piece has considered. So neither cuts of a long text nor threads change the
result. The function counts in steps and mixes the counter until it looks random (SplitMix64).

Sources: Provilkov et al. 2020, "BPE-Dropout: Simple and Effective Subword Regularization",
https://arxiv.org/abs/1910.13267, algorithm 1, as in the source; Steele et al. 2014, "Fast Splittable
Pseudorandom Number Generators", https://doi.org/10.1145/2714064.2660195.
"""

import numpy as np
from jaxtyping import UInt

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import Pair, Word
from scratchlm.tokenizer.compiled.dropout import (
    ENTRIES_PER_BYTE,
    GOLDEN,
    MIX_FACTORS,
    MIX_SHIFTS,
    RANDOM_BITS,
    encode_window_with_dropout,
)
from scratchlm.tokenizer.compiled.encode_short import empty_pairs, fill_pairs
from scratchlm.tokenizer.normalization import normalize
from scratchlm.tokenizer.scaffold import ScaffoldTokenizer
from scratchlm.tokenizer.sources import BytesSource
from scratchlm.tokenizer.streaming import repair_surrogates
from scratchlm.tokenizer.windows import WINDOW_BYTES, Splitter, Window

_64_BITS = 2**64 - 1


def encode_with_dropout(
    tokenizer: BPETokenizer | ScaffoldTokenizer, text: str, *, probability: float, seed: int
) -> UInt[np.ndarray, " tokens"]:
    """Encode one text; for several, keep a `DropoutEncoder`.

    Args:
        tokenizer: Where the merges come from.
        text: Any string; special tokens in it are plain text.
        probability: How often a merge that is considered is passed over, 0 to 1; 0.1 is usual.
        seed: A whole number from 0 to 2^64 - 1; give every text and every pass its own.

    Raises:
        ValueError: The probability or the seed is out of range, or the tokenizer has no merges.
    """
    return DropoutEncoder(tokenizer, probability=probability).encode(text, seed=seed)


class DropoutEncoder:
    """Encodes text with merges left out at random; one may serve several threads."""

    def __init__(self, tokenizer: BPETokenizer | ScaffoldTokenizer, *, probability: float) -> None:
        """Prepare the tables.

        Args:
            tokenizer: Where the merges come from; of Scaffold-BPE all merges count, then scaffolds fall.
            probability: How often a merge that is considered is passed over, 0 to 1; 0.1 is usual.

        Raises:
            ValueError: The probability is out of range, or the tokenizer has no merges.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability}: must be from 0 (no dropout) to 1 (single bytes).")
        if not isinstance(tokenizer, BPETokenizer | ScaffoldTokenizer):
            raise ValueError(
                f"dropout leaves out merges, and a {type(tokenizer).__name__} has none; use a BPE tokenizer."
            )
        self._tokenizer = tokenizer
        expanded = tokenizer.expanded if isinstance(tokenizer, ScaffoldTokenizer) else tokenizer
        self._pattern, self._normalization = expanded.pattern, expanded.normalization
        self._threshold = np.uint64(_threshold(probability))
        symbols = {bytes([value]): value for value in range(256)}
        for rank, (left, right) in enumerate(expanded.merges):
            symbols.setdefault(left + right, 256 + rank)
        merges = [(symbols[left], symbols[right], symbols[left + right]) for left, right in expanded.merges]
        columns = np.array(merges, np.int32).reshape(-1, 3).T.copy()
        self._products = columns[2]
        self._pairs = empty_pairs(len(merges))
        fill_pairs(self._pairs, columns[0], columns[1])
        ids = {token: id for id, token in expanded.vocab.items()}
        self._ids = np.zeros(256 + len(merges), np.int32)
        for token, symbol in symbols.items():
            self._ids[symbol] = ids[token]

    def encode(self, text: str, *, seed: int) -> UInt[np.ndarray, " tokens"]:
        """Return the ids of `text`, in which special tokens are plain text.

        Args:
            text: Any string.
            seed: A whole number from 0 to 2^64 - 1; the same seed gives the same ids.

        Raises:
            ValueError: The seed is out of range.
        """
        if not 0 <= seed <= _64_BITS:
            raise ValueError(f"seed={seed}: must be from 0 to 2^64 - 1.")
        if self._threshold == 0:
            return self._tokenizer.encode_to_numpy(text)
        data = normalize(repair_surrogates(text), self._normalization).encode("utf-8")
        splitter = Splitter(self._pattern, window_bytes=max(1, min(len(data), WINDOW_BYTES)))
        found = [np.zeros(0, np.int32)]
        for window in splitter.windows(BytesSource(data)):
            found.append(self._encode_window(window, np.uint64(seed)))
        ids = np.concatenate(found)
        if isinstance(self._tokenizer, ScaffoldTokenizer):
            ids = self._tokenizer.demolish(ids)
        return ids.astype(self._tokenizer.dtype)

    def _encode_window(self, window: Window, seed: np.uint64) -> np.ndarray:
        longest = int(np.diff(window.starts).max(initial=1))
        places = [np.empty(longest, np.int32) for _ in range(4)]
        heaps = [np.empty(ENTRIES_PER_BYTE * longest, np.int64) for _ in range(2)]
        output = np.empty(window.num_bytes, np.int32)
        count = encode_window_with_dropout(
            window.text,
            window.starts,
            window.bounds,
            window.position,
            seed,
            self._threshold,
            self._pairs,
            self._products,
            self._ids,
            (*places, *heaps),
            output,
        )
        return output[:count]


def encode_piece_with_dropout_reference(
    piece: bytes, ranks: dict[Pair, int], *, probability: float, seed: int, place: int
) -> Word:
    """Split the bytes of one piece into tokens: the plain version, read it first.

    Args:
        piece: One piece of the split pattern.
        ranks: Each merge -> its place in the list of merges.
        probability: How often a merge that is considered is passed over.
        seed: Of the random numbers.
        place: The byte of the text at which the piece begins.
    """
    word: Word = tuple(bytes([value]) for value in piece)
    draws = 0
    while True:
        possible = sorted(
            (ranks[word[i], word[i + 1]], i) for i in range(len(word) - 1) if (word[i], word[i + 1]) in ranks
        )
        for _, i in possible:
            draws += 1
            if random_number(seed, place, draws) >= _threshold(probability):
                word = (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
                break
        else:
            return word


def random_number(seed: int, place: int, draw: int) -> int:
    """A whole number below 2^53 that looks random; draws of a piece count from 1."""
    return _mix(_mix(seed + GOLDEN * (place + 1)) + GOLDEN * draw) >> (64 - RANDOM_BITS)


def _mix(number: int) -> int:
    number &= _64_BITS
    for shift, factor in zip(MIX_SHIFTS, (*MIX_FACTORS, 1), strict=True):
        number = (number ^ (number >> shift)) * factor & _64_BITS
    return number


def _threshold(probability: float) -> int:
    """Random numbers below this one pass a merge over: none for 0, all for 1."""
    return round(probability * 2**RANDOM_BITS)
