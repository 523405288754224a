"""BPETokenizer: a vocabulary, an ordered list of merges and special tokens -> text to ids and back.

The ids are whatever the vocabulary says: ours number the special tokens first, then the 256 bytes, then the
merges (as CS336's reference); GPT-2 numbers the bytes in another order and its special token last. Ordinary
text never becomes a special token's id, because no merge may make one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt, UInt8

from scratchlm.tokenizer.base import Tokenizer, check_name, check_specials
from scratchlm.tokenizer.batches import Documents
from scratchlm.tokenizer.bpe_encode import Encoder
from scratchlm.tokenizer.formats.reading import MAX_VOCAB_SIZE, shown
from scratchlm.tokenizer.formats.saved import bpe_content, load_bpe
from scratchlm.tokenizer.normalization import normalize, settled_prefix
from scratchlm.tokenizer.pretokenize import compiled, stable_prefix
from scratchlm.tokenizer.sources import Errors, Source
from scratchlm.tokenizer.streaming import EncodedPart
from scratchlm.tokenizer.windows import ranges

Normalization = Literal["NFC"]
"""What is done to text before it is split: Unicode's composed form, as Qwen 2 wants it."""

Merges = Sequence[tuple[bytes, bytes]]

_BYTES = [bytes([value]) for value in range(256)]


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Iterable[str] = (),
        *,
        pattern: str = "gpt2",
        ignore_merges: bool = False,
        normalization: Normalization | None = None,
    ) -> None:
        """Check the vocabulary and prepare the encoder.

        Args:
            vocab: Id -> bytes; every single byte and every merge's parts and product are in it.
            merges: Pairs of byte strings; the earlier one is merged first.
            special_tokens: Those that the vocabulary lacks are added behind its last id.
            pattern: Name of the split pattern.
            ignore_merges: A piece that is a token becomes that token, whether the merges make it or not.
            normalization: Compose characters before splitting ("NFC"); decoding gives the composed text.

        Raises:
            ValueError: Something is missing or contradictory; the message says what.
        """
        compiled(pattern)
        if normalization is not None:
            check_name(normalization, ("NFC",), "normalization")
        names = check_specials(special_tokens)
        self.pattern = pattern
        self.ignore_merges = ignore_merges
        self.normalization: Normalization | None = normalization
        self.merges = [(left, right) for left, right in merges]
        self._token_bytes = dict(vocab)
        ids = _ids_by_bytes(self._token_bytes)
        _check_merges(ids, self.merges, names)
        self.special_tokens = self._number_specials(names, ids)
        for name in names:  # the encoder sees ordinary tokens only
            del ids[name.encode("utf-8")]
        self._encoder = Encoder(
            ids, self.merges, pattern=pattern, ignore_merges=ignore_merges, dtype=self.dtype
        )

    def _number_specials(self, names: Sequence[str], ids: dict[bytes, int]) -> dict[str, int]:
        """Give each special token its id or a new one."""
        next_id = max(self._token_bytes) + 1
        numbered = {}
        for name in names:
            token = name.encode("utf-8")
            if token not in ids:
                ids[token] = next_id
                self._token_bytes[next_id] = token
                next_id += 1
            numbered[name] = ids[token]
        return numbered

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.pattern, self.ignore_merges, self.normalization)
        return _rebuild, (self._token_bytes, self.merges, list(self.special_tokens), *settings)

    @property
    def vocab(self) -> dict[int, bytes]:
        """Id -> bytes, special tokens included; a copy."""
        return dict(self._token_bytes)

    def unreachable(self) -> list[int]:
        """Ids of the ordinary tokens that no text gives: the merges lead from their bytes to other tokens.

        With ignore_merges a token that is one piece of the split pattern is given all the same.
        """
        special_ids = set(self.special_tokens.values())
        entries = {id: token for id, token in sorted(self._token_bytes.items()) if id not in special_ids}
        never_merged = _never_merged(list(entries.values()), self.merges)
        missed = [id for id, never in zip(entries, never_merged, strict=True) if never]
        if self.ignore_merges:
            missed = [id for id in missed if not self._is_piece(entries[id])]
        return missed

    def _is_piece(self, token: bytes) -> bool:
        try:
            text = token.decode("utf-8")
        except UnicodeDecodeError:
            return False
        return compiled(self.pattern).findall(text) == [text]

    # text -> ids

    def _encode_array(self, text: str) -> UInt[np.ndarray, " tokens"]:
        return self._encoder.encode_text(normalize(text, self.normalization))

    def _count(self, text: str) -> int:
        return self._encoder.count_tokens(normalize(text, self.normalization))

    def _encode_texts(self, texts: Sequence[str]) -> Documents:
        return self._encoder.encode_texts(normalize(text, self.normalization) for text in texts)

    def encode_spans(
        self,
        text: UInt8[np.ndarray, " bytes"],
        firsts: Int64[np.ndarray, " spans"],
        stops: Int64[np.ndarray, " spans"],
        *,
        behind: int,
    ) -> Documents:
        """Return the ids of the spans of a text in memory; see `Tokenizer.encode_spans`."""
        if self.normalization is None:
            return self._encoder.encode_spans(text, firsts, stops, behind)
        return super().encode_spans(text, firsts, stops, behind=behind)

    def encode_source(
        self, source: Source, start: int, stop: int, *, specials: Mapping[str, int], errors: Errors
    ) -> Iterator[EncodedPart]:
        """Encode source[start:stop], a range of `cut_source`, in parts; see `Tokenizer.encode_source`."""
        if self.normalization is None:
            yield from self._encoder.encode(source, start, stop, specials=specials, errors=errors)
        elif errors == "lossless":
            raise ValueError(
                f"errors='lossless' keeps bytes that are no UTF-8, but this tokenizer normalizes text "
                f"({self.normalization}); choose 'strict' or 'replace'."
            )
        else:
            yield from super().encode_source(source, start, stop, specials=specials, errors=errors)

    def cut_source(self, source: Source, specials: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Cut a source where its parts can be encoded by themselves; a pure function of its bytes."""
        if self.normalization is None:
            return ranges(source, self.pattern, specials)
        return super().cut_source(source, specials)

    def _stable_prefix(self, text: str) -> int:
        if self.normalization is None:
            return stable_prefix(text, self.pattern)
        return settled_prefix(text, self.normalization, lambda text: stable_prefix(text, self.pattern))

    # files

    def _content(self) -> dict[str, Any]:
        return bpe_content(self)

    @classmethod
    def load(cls, path: Path) -> "BPETokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """
        return load_bpe(Path(path))

    @classmethod
    def from_file(
        cls, path: Path, *, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
    ) -> "BPETokenizer":
        """Load a tokenizer from a file or folder of any known format; `formats.read_any` says which.

        Args:
            path: The file or the folder.
            pattern: Name of the split pattern, where the files do not say it.
            special_tokens: Special token -> id, where the files do not say them.

        Raises:
            ValueError: It is none of them, damaged, or no BPE tokenizer; the message names it.
        """
        from scratchlm.tokenizer.formats import read_any

        tokenizer = read_any(Path(path), pattern=pattern, special_tokens=special_tokens)
        if not isinstance(tokenizer, BPETokenizer):
            raise ValueError(f"{path}: holds a {type(tokenizer).__name__}, no BPE tokenizer.")
        return tokenizer


def _rebuild(vocab: dict[int, bytes], merges: Merges, names: list[str], *settings: Any) -> BPETokenizer:
    pattern, ignore_merges, normalization = settings
    return BPETokenizer(
        vocab, merges, names, pattern=pattern, ignore_merges=ignore_merges, normalization=normalization
    )


# Checks: whole tables at a time, because vocabularies have 200,000 entries; only a table that turns out to
# be wrong is searched for the entry to show.


def _ids_by_bytes(vocab: Mapping[int, bytes]) -> dict[bytes, int]:
    if set(map(type, vocab)) - {int} or set(map(type, vocab.values())) - {bytes}:
        raise ValueError("vocabulary: expected a table of whole numbers -> bytes.")
    ids = {token: id for id, token in vocab.items()}
    if len(ids) < len(vocab):
        id, token = next((id, token) for id, token in vocab.items() if ids[token] != id)
        raise ValueError(f"vocabulary: ids {id} and {ids[token]} both stand for {shown(token)}.")
    if vocab and not (min(vocab) >= 0 and max(vocab) < MAX_VOCAB_SIZE):
        id = min(vocab) if min(vocab) < 0 else max(vocab)
        raise ValueError(
            f"vocabulary: id {id} of {shown(vocab[id])} is out of range (0 to {MAX_VOCAB_SIZE - 1})."
        )
    if b"" in ids:
        raise ValueError(f"vocabulary: id {ids[b'']} stands for no bytes at all.")
    for value, token in enumerate(_BYTES):
        if token not in ids:
            raise ValueError(
                f"vocabulary: the single byte 0x{value:02X} has no id; byte-level BPE needs all 256 bytes."
            )
    return ids


def _check_merges(ids: Mapping[bytes, int], merges: Merges, specials: Sequence[str]) -> None:
    """Check that merges and vocabulary belong together and leave the special tokens alone."""
    products = [left + right for left, right in merges]
    parts = chain.from_iterable(merges)
    if not all(map(ids.__contains__, chain(products, parts))):
        for rank, (left, right) in enumerate(merges):
            for token in (left, right, left + right):
                if token not in ids:
                    raise ValueError(
                        f"merge {rank} ({shown(left)}, {shown(right)}): {shown(token)} is not in the "
                        "vocabulary; do these merges belong to it?"
                    )
    names = {name.encode("utf-8"): name for name in specials}
    taken = names.keys() & chain(_BYTES, products, chain.from_iterable(merges)) if names else ()
    for token in taken:
        raise ValueError(
            f"special token {shown(names[token])}: ordinary text gives the same token (a byte, or what a "
            "merge makes or takes); choose a text that no merge makes, such as '<|name|>'."
        )


def _never_merged(entries: Sequence[bytes], merges: Merges) -> list[bool]:
    """Which of the entries the merges do not make of their bytes."""
    from scratchlm.tokenizer.compiled.last_parts import insert_merges, split_entries
    from scratchlm.tokenizer.formats.tiktoken_ranks import empty_pairs

    numbers = {token: number for number, token in enumerate(entries)}
    lengths = [len(token) for token in entries]
    pairs = empty_pairs(len(merges))
    insert_merges(
        pairs,
        np.array([numbers[left] for left, _ in merges], np.int64),
        np.array([numbers[right] for _, right in merges], np.int64),
    )
    left_over, counts = np.zeros((len(entries), 2), np.int64), np.zeros(len(entries), np.int64)
    split_entries(
        np.frombuffer(bytearray(b"".join(entries)), np.uint8),
        np.array([0, *accumulate(lengths)], np.int64),
        np.array([numbers[token] for token in _BYTES], np.int64),
        pairs,
        np.array([numbers[left + right] for left, right in merges], np.int64),
        0,
        np.zeros(max(lengths), np.int64),
        np.zeros(max(lengths), np.int64),
        left_over,
        counts,
    )
    return (counts > 1).tolist()
