"""A tokenizer and texts come in, figures come out: how well it compresses what, which entries it uses.

    bytes per token = bytes of the text / its number of tokens        more is better: fewer steps a text

The same sentences in 26 languages (articles 1 and 2 of the Universal Declaration of Human Rights, in the
public domain) show which languages the tokenizer was made for; corpora show what a model would be fed.
"""

import contextlib
import functools
import importlib.resources
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer import Tokenizer

CORPUS_BYTES = 10_000_000
"""No more than this much of a corpus is read: enough for three digits of every figure shown."""

SHOWN_TOKENS = 24
"""Entries in each list of tokens."""


class Sample(NamedTuple):
    """A text under a name."""

    name: str
    text: str


class Compression(NamedTuple):
    """How many tokens a text becomes; seconds are those of encoding it."""

    name: str
    num_bytes: int
    num_characters: int
    num_tokens: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token."""
        return self.num_bytes / max(1, self.num_tokens)


class Entry(NamedTuple):
    """One entry of the vocabulary; `count` is how often the corpora hold it, None when there are none."""

    id: int
    token: bytes
    count: int | None

    @property
    def text(self) -> str:
        """The token as text; bytes that are no characters as backslash escapes."""
        return self.token.decode("utf-8", "backslashreplace")


class Figures(NamedTuple):
    """Everything there is to show about one tokenizer."""

    name: str
    kind: str
    vocab_size: int
    special_tokens: dict[str, int]
    fingerprint: str
    languages: list[Compression]
    corpora: list[Compression]
    longest: list[Entry]
    frequent: list[Entry]
    rare: list[Entry]
    num_unused: int | None
    unreachable: list[Entry]
    num_unreachable: int
    lengths: list[int]

    @property
    def corpus_total(self) -> Compression | None:
        """All corpora together; None when there are none."""
        if not self.corpora:
            return None
        sums = [sum(column) for column in list(zip(*self.corpora, strict=True))[1:]]
        return Compression("all", *sums)


@functools.cache
def language_samples() -> tuple[Sample, ...]:
    """The same sentences in each language, English first."""
    file = importlib.resources.files("scratchlm.study") / "languages.json"
    return tuple(Sample(*pair) for pair in json.loads(file.read_text(encoding="utf-8")).items())


def examine(name: str, tokenizer: Tokenizer, corpora: Iterable[tuple[str, Iterable[str]]] = ()) -> Figures:
    """Gather the figures.

    Args:
        name: What to call the tokenizer.
        tokenizer: Any tokenizer.
        corpora: Names and texts; texts are read up to `CORPUS_BYTES`.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    measured = [compress(tokenizer, corpus, texts, counts=counts) for corpus, texts in corpora]
    entries = _entries(tokenizer, counts if measured else None)
    by_count = sorted(entries, key=lambda entry: (entry.count or 0, entry.id))
    used = [entry for entry in by_count if entry.count]
    unreachable = set(getattr(tokenizer, "unreachable", list)())
    return Figures(
        name,
        type(tokenizer).__name__,
        tokenizer.vocab_size,
        dict(tokenizer.special_tokens),
        tokenizer.fingerprint,
        list(_languages(tokenizer)),
        measured,
        sorted(entries, key=lambda entry: (-len(entry.token), entry.id))[:SHOWN_TOKENS],
        used[::-1][:SHOWN_TOKENS],
        used[:SHOWN_TOKENS],
        len(entries) - len(used) if measured else None,
        [entry for entry in entries if entry.id in unreachable][:SHOWN_TOKENS],
        len(unreachable),
        np.bincount([len(entry.token) for entry in entries]).tolist() if entries else [],
    )


def compress(
    tokenizer: Tokenizer, name: str, texts: str | Iterable[str], *, counts: np.ndarray | None = None
) -> Compression:
    """Encode texts, which may hold special tokens as plain text, and add up.

    Args:
        tokenizer: Any tokenizer.
        name: The text's name.
        texts: A text, or texts of which the first `CORPUS_BYTES` are read.
        counts: int64 [vocab_size]; how often each id came is added to it.
    """
    num_bytes = num_characters = num_tokens = 0
    seconds = 0.0
    for text in [texts] if isinstance(texts, str) else texts:
        began = time.perf_counter()
        ids = tokenizer.encode_to_numpy(text)
        seconds += time.perf_counter() - began
        num_tokens += len(ids)
        num_bytes += len(text.encode("utf-8", "replace"))
        num_characters += len(text)
        if counts is not None:
            counts += np.bincount(ids, minlength=len(counts))
        if num_bytes >= CORPUS_BYTES:
            break
    return Compression(name, num_bytes, num_characters, num_tokens, seconds)


def _languages(tokenizer: Tokenizer) -> Iterator[Compression]:
    """The languages that the tokenizer can encode; one of characters may refuse those it never saw."""
    for sample in language_samples():
        with contextlib.suppress(ValueError):
            yield compress(tokenizer, *sample)


def _entries(tokenizer: Tokenizer, counts: np.ndarray | None) -> list[Entry]:
    special = set(tokenizer.special_tokens.values())
    return [
        Entry(id, token, None if counts is None else int(counts[id]))
        for id, token in vocabulary(tokenizer)
        if id not in special
    ]


def vocabulary(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """Every id that stands for something, and its bytes; vocabularies may have gaps."""
    for id in range(tokenizer.vocab_size):
        with contextlib.suppress(ValueError):
            yield id, tokenizer.token_bytes(id)


class Piece(NamedTuple):
    """A stretch of a text that ends with a whole character, and the ids that stand for it."""

    text: str
    ids: list[int]


def pieces(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """Cut a text into tokens; tokens that hold parts of a character stand together with it."""
    decoder = tokenizer.stream_decoder()
    found: list[Piece] = []
    waiting: list[int] = []
    for id in tokenizer.encode_ordinary(text):
        waiting.append(id)
        shown = decoder.push(id)
        if shown:
            found.append(Piece(shown, waiting))
            waiting = []
    rest = decoder.flush()
    return [*found, Piece(rest, waiting)] if waiting else found


def side_by_side(found: Sequence[Sequence[Compression]]) -> list[tuple[Compression, ...]]:
    """What each tokenizer made of each text, for the texts that all of them can encode."""
    by_name = [{one.name: one for one in each} for each in found]
    common = [one.name for one in found[0] if all(one.name in names for names in by_name)]
    return [tuple(names[name] for names in by_name) for name in common]


def token_ratio(found: Sequence[Compression]) -> float | None:
    """Tokens of the first for each of the second, above 1 where the second is shorter; None for one."""
    return found[0].num_tokens / max(1, found[1].num_tokens) if len(found) == 2 else None
