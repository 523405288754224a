"""Special tokens: where they stand in a text, and which of them the caller allows.

    SpecialsFinder(["<|a|>", "<|a|><|a|>"]).find("x<|a|><|a|>y")  ->  places [1], which [1]: the longest

The rule is tiktoken's: the text of a special token is an error unless the caller allows it (then it becomes
one id) or says that it is plain text (`disallowed_special=()`). So text from a user never turns into a
control token unnoticed.
"""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from scratchlm.tokenizer.compiled.specials import find_names
from scratchlm.tokenizer.compiled.vector import ALL, NONE, PADDING

Specials = Collection[str] | Literal["all"]

MAX_PAIRS = 16
"""Pairs of bytes to compare with: one takes 0.02 ns a byte, 16 take 0.13, the table of first bytes 0.6."""

_ANY_BYTE = 0x100
"""In place of a second byte: whatever it is."""

_FEW_NAMES = 4
"""So many are looked for in a str one after the other before it is copied: most texts hold none."""

_FIRST_ROOM = 64
"""Special tokens for which there is room at first; more make the room larger."""


class _Trie(NamedTuple):
    """The arrays of `compiled.specials.find_names`, in its order."""

    pairs: np.ndarray
    any_second: np.ndarray
    begins: np.ndarray
    first_edges: np.ndarray
    edge_bytes: np.ndarray
    names: np.ndarray


class SpecialsFinder:
    """Finds special tokens: leftmost first, at one place the longest, none over another.

    One finder may serve several threads.

    Attributes:
        names: The special tokens; results count them from 0.
        longest: Bytes of the longest.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Build the trie.

        Raises:
            ValueError: A name is empty or no valid text.
        """
        self.names = tuple(names)
        spelled = [_spelled(name) for name in self.names]
        self.longest = max(map(len, spelled), default=1)
        self._trie = _build(spelled)

    def find(
        self, buffer: UInt8[np.ndarray, " bytes"], first: int, end: int
    ) -> tuple[Int32[np.ndarray, " found"], Int32[np.ndarray, " found"]]:
        """Return the place of each special token in buffer[first:end], and which it is.

        Args:
            buffer: UTF-8 text with at least PADDING readable bytes behind `end`; writable.
            first: Where to begin to look.
            end: Where the text ends; what reaches over it is not found.
        """
        room = _FIRST_ROOM
        while True:
            places, which = np.empty(room, np.int32), np.empty(room, np.int32)
            count = find_names(buffer, int(first), int(end), *self._trie, places, which)
            if count < room:
                return places[:count], which[:count]
            room *= 8

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield each special token in `text`: its first character, the one behind it, its name.

        Example: "\u00e9<|endoftext|>" -> (1, 14, "<|endoftext|>"). `text` has no lone surrogates.
        """
        if len(self.names) <= _FEW_NAMES and not any(name in text for name in self.names):
            return
        data = text.encode("utf-8")
        buffer = np.zeros(len(data) + PADDING, np.uint8)
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        start = place_in_bytes = 0
        for place, which in zip(*(found.tolist() for found in self.find(buffer, 0, len(data))), strict=True):
            name = self.names[which]
            start += len(data[place_in_bytes:place].decode("utf-8"))
            yield start, start + len(name), name
            start += len(name)
            place_in_bytes = place + len(name.encode("utf-8"))


class Choice(NamedTuple):
    """What the caller says about special tokens: which to look for, and which of them are an error."""

    finder: SpecialsFinder
    disallowed: frozenset[str]

    def check(self, name: str | None) -> None:
        """Refuse a special token that is not allowed.

        Raises:
            ValueError: It is disallowed.
        """
        if name in self.disallowed:
            raise ValueError(
                f"the text contains the special token {name!r}, which is not allowed here. Pass "
                f"allowed_special={{{name!r}}} to encode it as one id, or disallowed_special=() "
                "to encode it as plain text."
            )


def choose(known: frozenset[str], allowed_special: Specials, disallowed_special: Specials) -> Choice:
    """Apply tiktoken's rule to the special tokens of a tokenizer.

    Args:
        known: All of them.
        allowed_special: Those that become their id.
        disallowed_special: Those that are an error, less the allowed; the others are plain text.

    Raises:
        ValueError: A name is no special token of this tokenizer, or one name stands in place of a collection.
    """
    for given in (allowed_special, disallowed_special):
        if isinstance(given, str) and given != "all":
            raise ValueError(f"special tokens {given!r}: pass a collection of them, {{{given!r}}}, or 'all'.")
    allowed = allowed_special if allowed_special == "all" else frozenset(allowed_special)
    disallowed = disallowed_special if disallowed_special == "all" else frozenset(disallowed_special)
    return _chosen(known, allowed, disallowed)


@functools.lru_cache(maxsize=64)
def _chosen(known: frozenset[str], allowed: frozenset[str] | str, disallowed: frozenset[str] | str) -> Choice:
    """The same, kept: callers ask the same again and again."""
    accepted = known if isinstance(allowed, str) else allowed
    refused = (known if isinstance(disallowed, str) else disallowed) - accepted
    for name in sorted((accepted | refused) - known):
        raise ValueError(f"{name!r} is no special token of this tokenizer; it has {sorted(known)}.")
    return Choice(SpecialsFinder(sorted(accepted | refused)), refused)


def _spelled(name: str) -> bytes:
    try:
        if name:
            return name.encode("utf-8")
    except UnicodeEncodeError:
        pass
    raise ValueError(f"special token {name!r}: must be valid text of at least one character.")


def _build(spelled: Sequence[bytes]) -> _Trie:
    """Number the nodes level after level, so that the edges of a node stand side by side."""
    root: dict = {}
    for number, name in enumerate(spelled):
        node = root
        for value in name:
            node = node.setdefault(value, {})
        node.setdefault(None, number)  # no byte: a name ends here
    nodes, first_edges, edge_bytes, names = [root], [0], [], []
    for node in nodes:  # grows while it is walked
        names.append(node.pop(None, -1))
        edge_bytes.extend(node)
        nodes.extend(node.values())
        first_edges.append(len(edge_bytes))
    begins = np.zeros(256, np.int32)
    begins[edge_bytes[: first_edges[1]]] = np.arange(1, first_edges[1] + 1)
    pairs = _pairs(spelled)
    return _Trie(
        np.array(pairs, np.int64).reshape(-1),
        np.array([ALL if second == _ANY_BYTE else NONE for _, second in pairs], np.uint64),
        begins,
        np.array(first_edges, np.int32),
        np.array(edge_bytes, np.uint8),
        np.array(names, np.int32),
    )


def _pairs(spelled: Sequence[bytes]) -> list[tuple[int, int]]:
    """The pairs of bytes with which a name begins; only first bytes, or nothing, where they are too many."""
    pairs = {(name[0], name[1] if len(name) > 1 else _ANY_BYTE) for name in spelled}
    if len(pairs) > MAX_PAIRS:
        pairs = {(first, _ANY_BYTE) for first, _ in pairs}
    return sorted(pairs) if len(pairs) <= MAX_PAIRS else []
