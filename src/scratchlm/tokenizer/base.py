"""What every tokenizer offers: text -> ids with special tokens, ids -> text, at once, in batches, streaming.

    text   encode, encode_ordinary, encode_to_numpy, encode_bytes, encode_with_offsets, count_tokens, truncate
    texts  encode_batch (arrays), encode_documents (flat, with offsets), encode_padded (rows), encode_iterable
    ids    decode and its kin: vocabulary.py

A tokenizer supplies the abstract methods below and the bytes of each id; everything else is here once. One
that can do better replaces the methods under "faster where a tokenizer can". Special tokens follow tiktoken's
rule (special_tokens.py): their text is an error unless the caller allows it or says that it is plain text.
"""

import contextlib
import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt, UInt8

from scratchlm.tokenizer.batches import (
    Documents,
    Length,
    Padded,
    Side,
    check_threads,
    grouped,
    insert_id,
    join_arrays,
    join_documents,
    map_in_order,
    pad_documents,
    truncate_documents,
)
from scratchlm.tokenizer.offsets import EncodedWithOffsets, Truncated
from scratchlm.tokenizer.sources import BytesSource, Errors, Source, not_utf8
from scratchlm.tokenizer.special_tokens import Choice, Specials, SpecialsFinder, choose
from scratchlm.tokenizer.streaming import (
    HELD_CHARACTERS,
    EncodedPart,
    cut_specials,
    cut_stream,
    encode_parts,
    read_texts,
    repair_surrogates,
)
from scratchlm.tokenizer.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"
"""The special token between documents."""


class Tokenizer(Vocabulary):
    """Text <-> ids. Ids run from 0 to vocab_size - 1."""

    @abstractmethod
    def _encode_array(self, text: str) -> Integer[np.ndarray, " tokens"]:
        """Ids of `text`, which has no lone surrogates; special tokens in it are plain text."""

    @abstractmethod
    def _stable_prefix(self, text: str) -> int:
        """Number of leading characters whose ids stay the same whatever follows `text`."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Everything that defines this tokenizer, as JSON values; "type" is its name in the family."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """

    # faster where a tokenizer can; texts have no lone surrogates

    def _count(self, text: str) -> int:
        """Number of ids of `text`."""
        return len(self._encode_array(text))

    def _encode_texts(self, texts: Sequence[str]) -> Documents:
        """Ids of each text; called by several threads at once."""
        return join_arrays([self._encode_array(text) for text in texts], self.dtype)

    def encode_spans(
        self,
        text: UInt8[np.ndarray, " bytes"],
        firsts: Int64[np.ndarray, " spans"],
        stops: Int64[np.ndarray, " spans"],
        *,
        behind: int,
    ) -> Documents:
        """Return the ids of text[first:stop] for each span, special tokens as plain text, then `behind`.

        Args:
            text: Valid UTF-8, readable and writable to `compiled.vector.PADDING` bytes behind the last span.
            firsts: Where the spans begin, ascending; none over another.
            stops: Where they end.
            behind: The id that follows the ids of each span, such as that of the end of a text.
        """
        texts = [text[slice(*span)].tobytes().decode("utf-8") for span in np.stack([firsts, stops], 1)]
        ids, offsets = self.encode_documents(texts)
        return Documents(insert_id(ids, offsets[1:], behind), offsets + np.arange(len(offsets)))

    def encode_source(
        self, source: Source, start: int, stop: int, *, specials: Mapping[str, int], errors: Errors
    ) -> Iterator[EncodedPart]:
        """Encode source[start:stop], a range of `cut_source`, in parts that are valid until the next one.

        Args:
            source: The bytes.
            start: Where the range begins.
            stop: Where it ends.
            specials: Special tokens that become their ids; everything else is plain text.
            errors: What happens to bytes that are no UTF-8.
        """
        if errors == "lossless":
            raise ValueError(
                "errors='lossless' needs a tokenizer with an id for every byte (bpe); choose 'strict' or "
                "'replace'."
            )
        texts = read_texts(source, start, stop, errors=errors)
        yield from encode_parts(
            texts, specials, encode_array=self._encode_array, stable_prefix=self._stable_prefix
        )

    def cut_source(self, source: Source, specials: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Cut a source where its parts can be encoded by themselves; a pure function of its bytes."""
        if source.size:
            yield 0, source.size

    @property
    def end_of_text_id(self) -> int:
        """The id that separates documents.

        Raises:
            ValueError: This tokenizer has no such token.
        """
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(
                f"this tokenizer has no {END_OF_TEXT!r}; its special tokens are {list(self.special_tokens)}. "
                f"Add {END_OF_TEXT!r} to special_tokens."
            )
        return self.special_tokens[END_OF_TEXT]

    # the file

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the canonical JSON: two tokenizers with equal fingerprints give equal ids."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def save(self, path: Path) -> None:
        """Write the one-file JSON, atomically."""
        from scratchlm.tokenizer.formats import write_saved

        write_saved(Path(path), self._content())

    # text -> ids

    def encode(
        self, text: str, *, allowed_special: Specials = (), disallowed_special: Specials = "all"
    ) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: Any string; lone surrogates count as U+FFFD.
            allowed_special: Special tokens that become their id where they stand in the text.
            disallowed_special: Special tokens that are an error; those in neither collection are plain text.

        Raises:
            ValueError: The text holds a disallowed special token, or one of the names is no special token.
        """
        choice = self._choose(allowed_special, disallowed_special)
        ids: list[int] = []
        for part in self._encode_stream(cut_specials(repair_surrogates(text), choice.finder), choice):
            ids += part.tolist()
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special tokens are plain text."""
        return self._encode_array(repair_surrogates(text)).tolist()

    def encode_to_numpy(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """Like `encode_ordinary`, as uint16, or uint32 when the vocabulary has more than 65,536 ids."""
        return self._encode_array(repair_surrogates(text)).astype(self.dtype, copy=False)

    def encode_bytes(
        self, data: bytes | bytearray | memoryview, *, errors: Errors = "strict"
    ) -> UInt[np.ndarray, " tokens"]:
        """Like `encode_to_numpy`, for bytes that may be no UTF-8.

        Args:
            data: The text.
            errors: "strict" raises, "replace" puts U+FFFD in the place of what is no UTF-8, "lossless" keeps
                it, so that `decode_bytes` gives `data` back.

        Raises:
            ValueError: errors="strict" and `data` is no UTF-8; the message says where.
        """
        check_name(errors, ("strict", "replace", "lossless"), "rule for bytes that are no UTF-8")
        try:
            text = bytes(data).decode("utf-8", "strict" if errors == "lossless" else errors)
        except UnicodeDecodeError as error:
            if errors == "strict":
                raise not_utf8("the text", error.start) from None
            source = BytesSource(bytes(data))
            parts = self.encode_source(source, 0, source.size, specials={}, errors=errors)
            return join_arrays([part.ids.copy() for part in parts], self.dtype).ids
        return self._encode_array(text).astype(self.dtype, copy=False)

    def count_tokens(self, text: str) -> int:
        """How many ids `encode_ordinary` would return."""
        return self._count(repair_surrogates(text))

    def truncate(self, text: str, num_tokens: int) -> Truncated:
        """Return the first ids of `encode_ordinary`, at most `num_tokens`, that end with a whole character.

        Reads only as much of the text as it needs. Characters are counted after surrogate pairs are joined.

        Raises:
            ValueError: num_tokens is negative, or this tokenizer changes the text.
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens={num_tokens} must be at least 0.")
        repaired, found = repair_surrogates(text), [np.empty(0, self.dtype)]
        size = 0
        chunks = (
            repaired[start : start + HELD_CHARACTERS] for start in range(0, len(repaired), HELD_CHARACTERS)
        )
        for part, _ in cut_stream(chunks, specials=SpecialsFinder(()), stable_prefix=self._stable_prefix):
            found.append(self._encode_unchanged(part))
            size += len(found[-1])
            if size > num_tokens:
                break
        ids = np.concatenate(found)
        kept = ids[: self._lengths.whole_characters(ids, num_tokens)]
        return Truncated(kept, int(self._lengths.num_characters[kept].sum()))

    def encode_with_offsets(
        self, text: str, *, allowed_special: Specials = (), disallowed_special: Specials = "all"
    ) -> EncodedWithOffsets:
        """Like `encode`, with the place of each token in the text.

        Raises:
            ValueError: As `encode`, or this tokenizer changes the text (a normalization, unknown characters).
        """
        choice = self._choose(allowed_special, disallowed_special)
        found = [np.empty(0, self.dtype)]
        for part, special in cut_specials(repair_surrogates(text), choice.finder):
            choice.check(special)
            found.append(self._encode_unchanged(part))
            if special is not None:
                found.append(np.array([self.special_tokens[special]], self.dtype))
        ids = np.concatenate(found)
        return EncodedWithOffsets(ids, *self._lengths.offsets(ids))

    def _encode_unchanged(self, text: str) -> UInt[np.ndarray, " tokens"]:
        ids = self._encode_array(text).astype(self.dtype, copy=False)
        if self.decode_bytes(ids) != text.encode("utf-8"):
            raise ValueError(
                "this tokenizer changes the text before it makes ids of it (a normalization, unknown "
                "characters), so its tokens have no place in the text."
            )
        return ids

    # texts -> ids

    def encode_batch(
        self, texts: Iterable[str], *, num_threads: int = 1, truncation: int | None = None
    ) -> list[np.ndarray]:
        """`encode_to_numpy` of every text, in order; the result does not depend on `num_threads`.

        Args:
            texts: The texts.
            num_threads: Threads that encode, at least 1.
            truncation: Ids of each text that are kept; all by default.
        """
        return self.encode_documents(texts, num_threads=num_threads, truncation=truncation).arrays()

    def encode_documents(
        self, texts: Iterable[str], *, num_threads: int = 1, truncation: int | None = None
    ) -> Documents:
        """Like `encode_batch`, as one array of ids with the offsets of the texts."""
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        groups = grouped(map(repair_surrogates, texts))
        if check_threads(num_threads) == 1:
            parts = [self._encode_texts(group) for group in groups]
        else:
            parts = list(
                map_in_order(self._encode_texts, groups, num_threads=num_threads, num_waiting=2 * num_threads)
            )
        documents = join_documents(parts, self.dtype)
        return documents if truncation is None else truncate_documents(documents, truncation)

    def encode_padded(
        self,
        texts: Iterable[str],
        *,
        length: Length = "longest",
        truncation: int | None = None,
        padding_id: int | None = None,
        side: Side = "right",
        num_threads: int = 1,
    ) -> Padded:
        """Like `encode_batch`, as rows of equal length with a mask.

        Args:
            texts: The texts.
            length: Ids in every row; "longest": as many as the longest text has.
            truncation: Ids of each text that are kept; all by default.
            padding_id: What fills a row up; the end-of-text id by default.
            side: Where the filling stands, "right" of the text or "left" of it.
            num_threads: Threads that encode, at least 1.

        Raises:
            ValueError: A text is longer than `length`, or an argument is out of range.
        """
        documents = self.encode_documents(texts, num_threads=num_threads, truncation=truncation)
        padding_id = self.end_of_text_id if padding_id is None else padding_id
        if padding_id >= self.vocab_size:
            raise ValueError(
                f"padding_id={padding_id}: no id of this tokenizer; they end at {self.vocab_size - 1}."
            )
        return pad_documents(documents, length=length, padding_id=padding_id, side=side)

    def encode_iterable(
        self,
        chunks: Iterable[str],
        *,
        allowed_special: Specials = (),
        disallowed_special: Specials = "all",
    ) -> Iterator[int]:
        """Yield the ids of the chunks' concatenation, wherever its parts were cut.

        Holds about 10,000 characters, a chunk and the longest piece in memory, not the text.

        Raises:
            ValueError: As `encode`, when the offending place is reached.
        """
        choice = self._choose(allowed_special, disallowed_special)
        stream = cut_stream(chunks, specials=choice.finder, stable_prefix=self._stable_prefix)
        for ids in self._encode_stream(stream, choice):
            yield from ids.tolist()

    def _encode_stream(
        self, stream: Iterable[tuple[str, str | None]], choice: Choice
    ) -> Iterator[np.ndarray]:
        for text, special in stream:
            choice.check(special)
            yield self._encode_array(text)
            if special is not None:
                yield np.array([self.special_tokens[special]])

    def _choose(self, allowed_special: Specials, disallowed_special: Specials) -> Choice:
        return choose(self._special_names, allowed_special, disallowed_special)

    @functools.cached_property
    def _special_names(self) -> frozenset[str]:
        return frozenset(self.special_tokens)


def check_specials(special_tokens: Iterable[str]) -> list[str]:
    """Return the distinct special tokens in their order.

    Raises:
        ValueError: One is empty or not valid text.
    """
    names = list(dict.fromkeys(special_tokens))
    for name in names:
        with contextlib.suppress(UnicodeEncodeError):
            if name and name.encode("utf-8"):
                continue
        raise ValueError(f"special token {name!r}: must be valid text of at least one character.")
    return names


def check_name(name: str, known: Collection[str], role: str) -> str:
    """Return `name` if it is known.

    Raises:
        ValueError: It is not; the message lists those that are.
    """
    if name not in known:
        raise ValueError(f"{role} {name!r} is not known; choose one of {', '.join(known)}.")
    return name
