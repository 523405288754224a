"""BPETokenizer: a vocabulary, an ordered list of merges and special tokens -> text to ids and back.

The ids are whatever the vocabulary says: ours number the special tokens first, then the 256 bytes, then the
merges (as CS336's reference); GPT-2 numbers the bytes in another order and its special token last. Ordinary
text never becomes a special token's id, because no merge may make one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer.base import Tokenizer, check_specials
from scratchlm.tokenizer.bpe_encode import Encoder
from scratchlm.tokenizer.formats import from_printable, read_saved, saved_problem, to_printable
from scratchlm.tokenizer.pretokenize import compiled, stable_prefix


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Iterable[str] = (),
        *,
        pattern: str = "gpt2",
    ) -> None:
        """Check the vocabulary and prepare the encoder.

        Args:
            vocab: Id -> bytes; every single byte and every merge's parts and product are in it.
            merges: Pairs of byte strings; the earlier one is merged first.
            special_tokens: Those that the vocabulary lacks are added behind its last id.
            pattern: Name of the split pattern.

        Raises:
            ValueError: Something is missing or contradictory; the message says what.
        """
        compiled(pattern)
        names = check_specials(special_tokens)
        self.pattern = pattern
        self.merges = [(bytes(left), bytes(right)) for left, right in merges]
        self._token_bytes = {int(id): bytes(token) for id, token in vocab.items()}
        ids = _ids_by_bytes(self._token_bytes)
        ordinary = _check_merges(ids, self.merges)
        self.special_tokens = {}
        for name in names:
            token = name.encode("utf-8")
            if token in ordinary:
                raise ValueError(
                    f"special token {name!r}: ordinary text gives the same token (a byte or a merge); "
                    "choose a text that no merge makes, such as '<|name|>'."
                )
            if token not in ids:
                ids[token] = max(self._token_bytes) + 1
                self._token_bytes[ids[token]] = token
            self.special_tokens[name] = ids[token]
        self._encoder = Encoder(ids, self.merges, pattern=pattern)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._token_bytes, self.merges, list(self.special_tokens), self.pattern)

    @property
    def vocab(self) -> dict[int, bytes]:
        """Id -> bytes, special tokens included; a copy."""
        return dict(self._token_bytes)

    def _encode_array(self, text: str) -> Int32[np.ndarray, " tokens"]:
        return self._encoder.encode(text)

    def _stable_prefix(self, text: str) -> int:
        return stable_prefix(text, self.pattern)

    def _content(self) -> dict[str, Any]:
        special_ids = set(self.special_tokens.values())
        ordered = sorted(self._token_bytes.items())
        return {
            "type": "bpe",
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "vocab": {to_printable(token): id for id, token in ordered if id not in special_ids},
            "merges": [f"{to_printable(left)} {to_printable(right)}" for left, right in self.merges],
        }

    @classmethod
    def load(cls, path: Path) -> "BPETokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """
        content = read_saved(Path(path), type="bpe")
        with saved_problem(Path(path)):
            vocab = {id: from_printable(token) for token, id in content["vocab"].items()}
            vocab |= {id: name.encode("utf-8") for name, id in content["special_tokens"].items()}
            if len(vocab) != len(content["vocab"]) + len(content["special_tokens"]):
                raise ValueError("two tokens have the same id")
            merges = [from_printable_pair(line) for line in content["merges"]]
            return cls(vocab, merges, list(content["special_tokens"]), pattern=content["pattern"])


def _rebuild(
    vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]], names: list[str], pattern: str
) -> BPETokenizer:
    return BPETokenizer(vocab, merges, names, pattern=pattern)


def from_printable_pair(line: str) -> tuple[bytes, bytes]:
    """Read one merge: "\u0120t he" -> (b" t", b"he").

    Raises:
        ValueError: The line is not two printable tokens with one blank between them.
    """
    left, blank, right = line.partition(" ")
    if not (left and blank and right):
        raise ValueError(f"merge {line!r} is not two tokens separated by one blank")
    return from_printable(left), from_printable(right)


def _ids_by_bytes(vocab: Mapping[int, bytes]) -> dict[bytes, int]:
    ids: dict[bytes, int] = {}
    for id, token in vocab.items():
        if not 0 <= id < 2**31:
            raise ValueError(f"vocabulary: id {id} of {token!r} is out of range (0 to 2^31 - 1).")
        if token in ids:
            raise ValueError(f"vocabulary: ids {ids[token]} and {id} both stand for {token!r}.")
        if not token:
            raise ValueError(f"vocabulary: id {id} stands for no bytes at all.")
        ids[token] = id
    for value in range(256):
        if bytes([value]) not in ids:
            raise ValueError(
                f"vocabulary: the single byte 0x{value:02X} has no id; byte-level BPE needs all 256 bytes."
            )
    return ids


def _check_merges(ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """Every token that ordinary text can give: the bytes and the merges' products."""
    ordinary = {bytes([value]) for value in range(256)}
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in ids:
                raise ValueError(
                    f"merge {rank} ({left!r}, {right!r}): {token!r} is not in the vocabulary; "
                    "do these merges belong to it?"
                )
        ordinary.add(left + right)
    return ordinary
