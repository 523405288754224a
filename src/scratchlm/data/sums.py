"""Checksums of files that many share the work of: leaves are read by whoever has time, in any order.

    file      4 MiB | 4 MiB | 4 MiB | rest           leaf 0, 1, 2, 3
    leaves    sha256  sha256  sha256  sha256         each by another thread, process or task
    file      sha256 of the leaves' checksums, one to a line; of a single leaf its own

One sha256 over all bytes goes from the first to the last, at 1 to 2 GB/s, while everything else waits for
it; of two levels the lower one can be dealt out. What identifies a corpus is a form: plain values, and a
place for every file that must be read.

The idea is Merkle's: "A Digital Signature Based on a Conventional Encryption Function", CRYPTO 1987.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LEAF_BYTES = 2**22
"""As much as a portion of text; part of what a checksum is, so it never changes."""

_LEAVES = "leaves"


class Leaf(NamedTuple):
    """Bytes number * LEAF_BYTES and following of a file."""

    path: Path
    number: int


class Content(NamedTuple):
    """What a fingerprint is made of."""

    form: list[Any]
    """JSON values; {"leaves": [a, b]} where the checksum of a file stands whose leaves are leaves[a:b]."""
    leaves: list[Leaf]
    """Those that must be read, each once."""


def leaf_sum(leaf: Leaf) -> str:
    """sha256 of a leaf's bytes, in hex."""
    with leaf.path.open("rb") as file:
        file.seek(leaf.number * LEAF_BYTES)
        return hashlib.sha256(file.read(LEAF_BYTES)).hexdigest()


def content_of(values: list[Any]) -> Content:
    """Take a form in which paths stand for files.

    Example: ["files", [a, b]], b of two leaves -> form ["files", [{"leaves": [0, 1]}, {"leaves": [1, 3]}]].
    """
    leaves: list[Leaf] = []
    places: dict[Path, dict[str, list[int]]] = {}

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(entry) for entry in value]
        if not isinstance(value, Path):
            return value
        if value not in places:
            first, count = len(leaves), max(1, -(-value.stat().st_size // LEAF_BYTES))
            leaves.extend(Leaf(value, number) for number in range(count))
            places[value] = {_LEAVES: [first, first + count]}
        return places[value]

    return Content(placed(values), leaves)


def fingerprint_of(form: list[Any], sums: Sequence[str]) -> str:
    """sha256 of a form, with the checksums of all leaves put in."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        own = sums[slice(*value[_LEAVES])]
        return own[0] if len(own) == 1 else hashlib.sha256("\n".join(own).encode()).hexdigest()

    return hash_of(*filled(form))


def hash_of(*values: object) -> str:
    """sha256 of plain values written as JSON."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


class LeafSums:
    """The checksums of leaves that are known so far."""

    def __init__(self) -> None:
        self._known: dict[Leaf, str] = {}

    def learn(self, sums: Mapping[Leaf, str]) -> None:
        """Take what somebody has computed."""
        self._known.update(sums)

    def of(self, leaves: Sequence[Leaf]) -> list[str]:
        """Return the checksums, after computing those that are missing."""
        for leaf in leaves:
            if leaf not in self._known:
                self._known[leaf] = leaf_sum(leaf)
        return [self._known[leaf] for leaf in leaves]
