"""tiktoken's files: one token a line, base64 and rank <-> vocabulary and merges.

    IHRoZQ== 279        the bytes " the" have rank 279, which is also their id

The file has no merges: a pair may merge when its bytes are a token, the lowest rank first. This is byte-pair
encoding when every token comes from exactly two of lower rank, and then we recover the pair: run the merges
of lower rank on the token's bytes; the two parts that are left are it. Proof that the ids are equal: were
another pair (x, y) of the same bytes z ever merged, then x and y would be what the lower ranks leave of z,
and so be the recovered pair. The file names neither the split pattern nor the special tokens, which the
reader must say; guessing would give almost the right ids, the worst kind of wrong.

Source: https://github.com/openai/tiktoken/blob/main/tiktoken/load.py and src/lib.rs.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from scratchlm import runtime
from scratchlm.tokenizer.formats.gpt2 import check_plain
from scratchlm.tokenizer.formats.reading import MAX_VOCAB_SIZE, decode, read_bytes, saved_problem, shown
from scratchlm.tokenizer.formats.saved import special_bytes

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

SUFFIX = ".tiktoken"

_MAX_WORK = 1 << 32
"""Sum of the squares of the tokens' lengths: about the steps of recovering merges. o200k has 2^24; the limit
takes 3 s and stops files of huge tokens."""


def load_tiktoken(
    path: Path, *, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> "BPETokenizer":
    """Load a tokenizer from a file of ranks.

    Args:
        path: The file, such as cl100k_base.tiktoken.
        pattern: Name of the split pattern, which the file does not tell: "gpt2" for r50k and p50k, "cl100k",
            "o200k".
        special_tokens: Special token -> id; the file does not tell them either. None by default.

    Raises:
        ValueError: The file is missing or damaged, or there is no pattern; the message names it.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer
    from scratchlm.tokenizer.pretokenize import PATTERNS

    path = Path(path)
    if pattern is None:
        raise ValueError(
            f"{path}: a file of ranks does not name its split pattern; say it, pattern=...: "
            f"{', '.join(PATTERNS)} (r50k and p50k use gpt2)."
        )
    ranks = read_ranks(path)
    with saved_problem(path):
        tokens = sorted(ranks, key=ranks.__getitem__)
        merges = recover_merges(tokens)
        vocab = {id: token for token, id in ranks.items()}
        for name, id in (special_tokens or {}).items():
            if id in vocab:
                raise ValueError(f"the special token {shown(name)} has the id {id} of {shown(vocab[id])}")
            vocab[id] = special_bytes(name)
        return BPETokenizer(vocab, merges, list(special_tokens or {}), pattern=pattern)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a file of ranks: token -> rank.

    Raises:
        ValueError: The file is missing or damaged; the message names it.
    """
    path = Path(path)
    lines = decode(path, read_bytes(path)).replace("\r\n", "\n").split("\n")
    ranks: dict[bytes, int] = {}
    with saved_problem(path):
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            token, rank = _parse(line, number)
            if token in ranks:
                raise ValueError(f"line {number}: the token {shown(token)} stands there twice")
            ranks[token] = rank
        if not ranks:
            raise ValueError("it is empty")
        if len(set(ranks.values())) < len(ranks):
            raise ValueError("two tokens have the same rank")
    return ranks


def _parse(line: str, number: int) -> tuple[bytes, int]:
    encoded, _, digits = line.partition(" ")
    try:
        token = binascii.a2b_base64(encoded.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        token = b""
    # A greater id has more digits than the limit; int() of thousands of them takes time.
    rank = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 9 else MAX_VOCAB_SIZE
    if not token or rank >= MAX_VOCAB_SIZE:
        raise ValueError(
            f"line {number}, {shown(line)}, is not a token in base64, a blank and its rank "
            f"(a whole number from 0 to {MAX_VOCAB_SIZE - 1})"
        )
    return token, rank


def recover_merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair of tokens that makes each token of several bytes.

    Example: [b"a", b"b", b"c", b"ab", b"abc"] -> [(b"a", b"b"), (b"ab", b"c")].

    Args:
        tokens: Distinct tokens in order of rank.

    Raises:
        ValueError: A token does not come from exactly two of lower rank, or is very long.
    """
    from scratchlm.tokenizer.compiled.last_parts import split_entries

    lengths = np.array([len(token) for token in tokens], np.int64)
    work = float((lengths.astype(np.float64) ** 2).sum())
    if work > _MAX_WORK:
        raise ValueError(f"its tokens are too long (up to {int(lengths.max()):,} bytes)")
    numbers = {token: number for number, token in enumerate(tokens) if len(token) == 1}
    for value in range(256):
        if bytes([value]) not in numbers:
            raise ValueError(f"the single byte 0x{value:02X} has no rank; byte-level BPE needs all 256 bytes")
    longest = int(lengths.max())
    left_over, counts = np.zeros((len(tokens), 2), np.int64), np.zeros(len(tokens), np.int64)
    split_entries(
        np.frombuffer(bytearray(b"".join(tokens)), np.uint8),
        np.array([0, *accumulate(lengths.tolist())], np.int64),
        np.array([numbers[bytes([value])] for value in range(256)], np.int64),
        empty_pairs(len(tokens)),
        np.arange(len(tokens), dtype=np.int64),
        1,
        np.zeros(longest, np.int64),
        np.zeros(longest, np.int64),
        left_over,
        counts,
    )
    wrong = np.flatnonzero((counts != 2) & (lengths > 1))
    if len(wrong):
        token, count = tokens[wrong[0]], int(counts[wrong[0]])
        raise ValueError(
            f"token {shown(token)}, number {wrong[0]} in order of rank: the tokens of lower rank leave "
            f"{count} parts of it in place of two; is this a vocabulary of byte-pair encoding?"
        )
    made = np.flatnonzero(lengths > 1)
    return [(tokens[left], tokens[right]) for left, right in left_over[made].tolist()]


def empty_pairs(num_merges: int) -> Int64[np.ndarray, " slots"]:
    """A table for `num_merges` pairs that is at most half full."""
    return np.full(2 << max(4, (2 * num_merges).bit_length()), -1, np.int64)


def save_tiktoken(tokenizer: "BPETokenizer", path: Path) -> None:
    """Write the ranks; special tokens and the split pattern have no place in the file.

    Raises:
        ValueError: The ids are no ranks: read again, the file would give other ids.
    """
    check_plain(tokenizer, "a file of ranks")
    special_ids = set(tokenizer.special_tokens.values())
    ordinary = {id: token for id, token in sorted(tokenizer.vocab.items()) if id not in special_ids}
    advice = "a file of ranks would give other ids; write tokenizer.json or vocab.json + merges.txt."
    try:
        recovered = recover_merges(list(ordinary.values()))
    except ValueError as error:
        raise ValueError(f"the ids are no ranks ({str(error).rstrip('.')}); {advice}") from None
    for rank, (ours, theirs) in enumerate(zip(tokenizer.merges, recovered, strict=False)):
        if ours != theirs:
            raise ValueError(
                f"the ids are no ranks: merge {rank} makes {shown(ours[0] + ours[1])} of {ours}, but in the "
                f"order of ids {shown(theirs[0] + theirs[1])} of {theirs} comes there; {advice}"
            )
    if len(recovered) != len(tokenizer.merges):
        raise ValueError(
            f"the ids are no ranks: {len(tokenizer.merges)} merges make {len(recovered)} tokens; {advice}"
        )
    lines = [f"{base64.b64encode(token).decode('ascii')} {id}\n" for id, token in ordinary.items()]
    runtime.write_text_atomically(Path(path), "".join(lines))
