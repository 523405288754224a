"""Files come in, examples go out: conversations to learn from, and pairs of a better and a worse answer.

    {"instruction": ..., "output": ...}                    ->  Example(messages)
    {"prompt": ..., "chosen": ..., "rejected": ...}        ->  Pair(prompt, chosen, rejected)

Files are read line by line; a .json file that holds one list is read entry by entry. What cannot be used is
an error that names file and line, or is left out and counted. An example is held out if a hash of its words
and the seed says so: the same examples whatever their order and however many there are, so that a file may
grow without an example changing sides; equal examples are on the same side.
"""

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from scratchlm.runtime import log
from scratchlm.tokenizer.chat import check_messages

Split = Literal["train", "valid"]
Messages = tuple[dict[str, str], ...]
"""{"role": "user", "content": "..."}, in order."""

SHOWN = 3
"""Examples that were left out of which the reason is told."""


class Example(NamedTuple):
    """A conversation that ends with the assistant."""

    messages: Messages
    where: str = ""
    """File and line."""


class Pair(NamedTuple):
    """A conversation that ends with the user, and two answers."""

    prompt: Messages
    chosen: str
    rejected: str
    where: str = ""
    """File and line."""


Kind = TypeVar("Kind", Example, Pair)


class Source(ABC, Generic[Kind]):
    """Examples of one kind."""

    @abstractmethod
    def read(self, split: Split, *, share: float, seed: int) -> Iterator[Kind]:
        """Yield the examples of a split, always in the same order.

        Args:
            split: Which.
            share: How much of the data is held out, where it has no split of its own.
            seed: Decides which.

        Raises:
            ValueError: The data cannot be used; it says where.
        """

    @property
    def num_skipped(self) -> int:
        """Examples that could not be used and were left out so far."""
        return 0


class FileSource(Source[Kind]):
    """Examples in JSON or JSON Lines files."""

    def __init__(
        self,
        *,
        paths: tuple[Path, ...],
        valid_paths: tuple[Path, ...] = (),
        on_bad: Literal["error", "skip"] = "error",
        most: int | None = None,
    ) -> None:
        """Choose the files.

        Args:
            paths: .json or .jsonl files.
            valid_paths: Those of the held-out split; by default a share of the others is held out.
            on_bad: Whether an entry that cannot be used is an error, or is left out and counted.
            most: Read no more entries than this; all by default.

        Raises:
            ValueError: No file is named, or one is not there.
        """
        if not paths or (most is not None and most < 1):
            raise ValueError("data: name at least one file in paths, and let most be at least 1.")
        for path in (*paths, *valid_paths):
            if not Path(path).is_file():
                raise ValueError(f"data.paths: {path}: no such file.")
        self.paths, self.valid_paths = tuple(map(Path, paths)), tuple(map(Path, valid_paths))
        self.on_bad, self.most = on_bad, most
        self.skipped: dict[str, str] = {}
        """Where something was left out -> why."""

    @abstractmethod
    def example(self, entry: Mapping[str, Any], where: str) -> Kind:
        """Make an example of an entry.

        Raises:
            ValueError: What is wrong with it, without the place.
        """

    @property
    def num_skipped(self) -> int:
        """Entries that could not be used."""
        return len(self.skipped)

    def read(self, split: Split, *, share: float, seed: int) -> Iterator[Kind]:
        """Yield the examples of the split's own files, or of the share of all that a hash holds out."""
        own = self.valid_paths if split == "valid" else ()
        for example in itertools.islice(self._all(own or self.paths), self.most):
            if own or bool(self.valid_paths) or is_held_out(example, share, seed) == (split == "valid"):
                yield example

    def _all(self, paths: tuple[Path, ...]) -> Iterator[Kind]:
        for path in paths:
            for line, entry in entries(path):
                where = f"{path}:{line}"
                try:
                    if isinstance(entry, Broken):
                        raise ValueError(entry.reason)
                    if not isinstance(entry, Mapping):
                        raise ValueError("is no object of names and values")
                    yield self.example(entry, where)
                except ValueError as error:
                    self._refuse(where, str(error))

    def _refuse(self, where: str, reason: str) -> None:
        reason = reason.removesuffix(".")
        if self.on_bad == "error":
            raise ValueError(f"{where}: {reason}; mend it, or leave such entries out with data.on_bad=skip.")
        if len(self.skipped) < SHOWN and where not in self.skipped:
            log.warning("%s: %s; left out.", where, reason)
        self.skipped[where] = reason


class Instructions(Source[Example]):
    """Conversations to learn from."""


class Preferences(Source[Pair]):
    """Conversations with a better and a worse answer."""


class Broken(NamedTuple):
    """An entry that is no JSON."""

    reason: str


def entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line at which each entry of a file begins, and the entry; `Broken` where it is no JSON.

    Raises:
        ValueError: The file is no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a mark
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if start == "[" and path.suffix != ".jsonl":
                file.seek(0)
                yield from _list_entries(file.read())
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}).") from None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Broken(f"no JSON ({error.msg} at character {error.pos + 1})")
    except RecursionError as error:
        return Broken(f"no JSON ({error})")


def _list_entries(text: str) -> Iterator[tuple[int, Any]]:
    """The entries of one JSON list; behind a broken one nothing can be told apart."""
    decoder, place, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        if place >= len(text):
            yield line, Broken("the list has no end: is the file whole?")
            return
        if text[place] == "]":
            return
        try:
            entry, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            yield line, Broken(f"no JSON ({error})")
            return
        yield line, entry


def text_of(entry: Mapping[str, Any], *names: str, empty: bool = False) -> str:
    """Return the text under the first of `names` that an entry has.

    Args:
        entry: What a file holds.
        names: In order.
        empty: Whether there may be none, or an empty one.

    Raises:
        ValueError: There is none, it is no text, or it is empty.
    """
    name = next((name for name in names if entry.get(name) is not None), None)
    if name is None:
        if empty:
            return ""
        found = ", ".join(str(key)[:40] for key in list(entry)[:8])
        raise ValueError(f"has no {' or '.join(repr(name) for name in names)}, only {found or 'nothing'}")
    text = entry[name]
    if not isinstance(text, str):
        raise ValueError(f"{name!r} is no text")
    if not text.strip() and not empty:
        raise ValueError(f"{name!r} is empty")
    return text


def checked_messages(messages: Any, *, last: str) -> Messages:
    """Return messages of the form that `ChatTemplate` writes.

    Args:
        messages: What an entry holds.
        last: Who has the last word: assistant or user.

    Raises:
        ValueError: They are not of this form, or one is empty.
    """
    turns = [(role, content) for role, content in check_messages(messages)]
    for number, (role, content) in enumerate(turns):
        if not content.strip() and role != "system":
            raise ValueError(f"messages[{number}].content is empty")
    if turns[-1][0] != last:
        raise ValueError(f"the last message is the {turns[-1][0]}'s; it must be the {last}'s")
    return tuple({"role": role, "content": content} for role, content in turns)


def is_held_out(example: Example | Pair, share: float, seed: int) -> bool:
    """Whether an example belongs to the held-out split: a pure function of its words and the seed."""
    words = json.dumps([seed, *(part for part in example[:-1])], sort_keys=True)
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def both_splits(source: Source[Kind], *, share: float, seed: int) -> dict[Split, list[Kind]]:
    """Read both splits; equal examples stay on one side."""
    return {split: list(source.read(split, share=share, seed=seed)) for split in ("train", "valid")}
