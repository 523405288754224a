"""Corpora: a name and settings come in, a stream of documents goes out, in pieces of bounded size.

    CORPORA.build("stories", num_train=20_000).chunks("train")  ->  Chunk(text, ends_document), ...

A document of up to `reading.MAX_CHUNK` characters is one chunk; a longer one arrives in several, cut where no
tokenizer would have joined the two sides, so that memory stays bounded whatever the corpus is. The
end-of-text token is not part of the text: whoever writes the ids adds it after a chunk that ends a document.

The same chunks come in portions, which any process reads by itself, in any order.

This file holds the base class and the embedded corpus; files.py reads your own text, remote.py the known
downloads.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from scratchlm.data import CORPORA
from scratchlm.data.sums import Content, Leaf, LeafSums, hash_of

Split = Literal["train", "valid"]

FIRST_VALID = 2**40
"""Index of the first validation story: no training set grows so large that it would reach it."""
STORY_CHARACTERS = 697
"""Mean length of a story: of the first 3,000 with seed 0."""


class Chunk(NamedTuple):
    """A piece of a document, or all of it."""

    text: str
    ends_document: bool


class Texts(NamedTuple):
    """Chunks as bytes where they were read; each ends a document. They are valid UTF-8."""

    data: UInt8[np.ndarray, " bytes"]
    """With `compiled.vector.PADDING` bytes behind the last."""
    firsts: Int64[np.ndarray, " chunks"]
    """Where they begin, ascending."""
    stops: Int64[np.ndarray, " chunks"]
    """Where they end."""


class Portion(NamedTuple):
    """Some chunks in a row that any process can read by itself."""

    num_chunks: int
    """Chunks in it, at least 1: so the place of each in the corpus is known before it is read."""
    read: Callable[[], Iterable[Chunk]]
    """Gives them; what a process can send to another, so no lambda and nothing that is open."""
    load: Callable[[], Texts | None] | None = None
    """Gives the same chunks much faster, likewise; None, or gives None, where only `read` can."""


class Corpus(ABC):
    """A source of documents in two splits."""

    name: str
    licence: str

    @abstractmethod
    def chunks(self, split: Split) -> Iterator[Chunk]:
        """Yield the documents of `split`, in the same order and cut at the same places on every call.

        Raises:
            ValueError: The text is missing, empty, or no text; the message names the file and the place.
        """

    def portions(self, split: Split, num_characters: int) -> Iterator[Portion]:
        """Yield the chunks of `split` in portions of about `num_characters`.

        Portions come in the order of the text. Here each carries its text, so one process reads and others
        encode; a corpus that knows where a document stands lets the others read as well.

        Raises:
            ValueError: As `chunks`.
        """
        return carried_portions(self.chunks(split), num_characters)

    @abstractmethod
    def fingerprint(self) -> str:
        """Identify the text of both splits: another text or another setting, another sha256."""

    def content(self) -> Content:
        """What `fingerprint` has to read, so that others can; nothing where it is quick.

        Raises:
            ValueError: A file is missing.
        """
        return Content([], [])

    def learn(self, sums: Mapping[Leaf, str]) -> None:
        """Take checksums of leaves of `content`, which `fingerprint` then need not compute."""
        self._sums.learn(sums)

    def identity(self) -> str:
        """Like `fingerprint`, at once: files are not read, their sizes and times stand for them."""
        content = self.content()
        if not content.leaves:
            return self.fingerprint()
        stats = {leaf.path.resolve(): leaf.path.stat() for leaf in content.leaves}
        stamps = [[str(path), found.st_size, found.st_mtime_ns] for path, found in stats.items()]
        return hash_of(content.form, stamps)

    @functools.cached_property
    def _sums(self) -> LeafSums:
        return LeafSums()

    def num_bytes(self, split: Split) -> int | None:
        """About how many bytes of text `split` holds, for progress bars; None where nobody knows."""
        return None

    def log_probability(self, text: str) -> float | None:
        """The exact log-probability of a document in nats where the distribution is known, else None."""
        return None

    def consistency(self, text: str) -> tuple[int, int] | None:
        """How many checkable facts a text holds and how many of them agree; None where nobody can tell."""
        return None


@CORPORA.register("stories")
class StoriesCorpus(Corpus):
    """The embedded children's stories: a seeded grammar whose every document has a known probability."""

    name = "stories"
    licence = "MIT (written by this package)"

    def __init__(self, *, num_train: int = 20_000, num_valid: int = 1_000, seed: int = 0) -> None:
        """Choose how many stories and which.

        Args:
            num_train: Training stories, at least 1.
            num_valid: Validation stories, at least 1; never the same draws as training stories.
            seed: Another seed, other stories.

        Raises:
            ValueError: A number is not positive.
        """
        for setting, value in (("num_train", num_train), ("num_valid", num_valid)):
            if not 1 <= value <= FIRST_VALID:
                raise ValueError(f"stories: {setting}={value} must be between 1 and {FIRST_VALID}.")
        self.num_train, self.num_valid, self.seed = num_train, num_valid, seed

    def chunks(self, split: Split) -> Iterator[Chunk]:
        """Yield one chunk per story."""
        return _stories(self.seed, self._indices(split))

    def portions(self, split: Split, num_characters: int) -> Iterator[Portion]:
        """Yield which stories each portion has: whoever reads one writes them."""
        indices = self._indices(split)
        size = -(-num_characters // STORY_CHARACTERS)
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield Portion(len(part), functools.partial(_stories, self.seed, part))

    def _indices(self, split: Split) -> range:
        return range(self.num_train) if split == "train" else range(FIRST_VALID, FIRST_VALID + self.num_valid)

    def fingerprint(self) -> str:
        """Hash the settings and a few stories, so that a changed grammar is another corpus."""
        from scratchlm.data.stories import generate_story

        sample = [
            generate_story(self.seed, index) for index in (*range(16), *range(FIRST_VALID, FIRST_VALID + 16))
        ]
        return hash_of("stories", self.num_train, self.num_valid, self.seed, sample)

    def log_probability(self, text: str) -> float:
        """The story's log-probability in nats.

        Raises:
            ValueError: The grammar cannot write this text.
        """
        from scratchlm.data.stories import log_probability

        return log_probability(text)

    def consistency(self, text: str) -> tuple[int, int]:
        """How many facts a story holds and how many of them agree, also for a text that is no story."""
        from scratchlm.data.stories import check_consistency

        found = check_consistency(text)
        return found.num_facts, found.num_consistent


def _stories(seed: int, indices: range) -> Iterator[Chunk]:
    from scratchlm.data.stories import generate_story

    for index in indices:
        yield Chunk(generate_story(seed, index), ends_document=True)


def carried_portions(chunks: Iterable[Chunk], num_characters: int) -> Iterator[Portion]:
    """Yield portions that carry their text: at least `num_characters` each, but for the last."""
    held: list[Chunk] = []
    length = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk.text)
        if length >= num_characters:
            yield Portion(len(held), functools.partial(list, held))
            held, length = [], 0
    if held:
        yield Portion(len(held), functools.partial(list, held))
