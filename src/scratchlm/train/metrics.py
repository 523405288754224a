"""The record of a run: rows go in, lines of metrics.jsonl and samples.jsonl come out, in order.

A row is one JSON object on one line, written with a single call and flushed, so that a killed run leaves at
most one torn line at the end. A checkpoint remembers the file's length; a resumed run cuts what lies behind
it (the torn line, and rows of steps that come again) and goes on there, so that no row stands twice.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from scratchlm.runtime import write_text_atomically

BLOCK = 2**16
"""Bytes that are looked through at once for the end of a line."""


class JsonLines:
    """A file of JSON objects, one a line, that grows."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`; it is made with the first row."""
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(row), ensure_ascii=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a torn last line is left out."""
        if not self.path.is_file():
            return []
        return _parsed(self.path.read_text(encoding="utf-8", errors="replace"))

    def sync(self) -> int:
        """Bring the rows to the disk and return the file's length in bytes: what a checkpoint remembers."""
        if not self.path.is_file():
            return 0
        with self.path.open("ab") as stream:
            os.fsync(stream.fileno())
            return stream.tell()

    def cut(self, num_bytes: int) -> list[dict[str, Any]]:
        """Forget everything behind the first `num_bytes`, also a torn line, and return the rows that went."""
        if not self.path.is_file():
            return []
        with self.path.open("r+b") as stream:
            end = _end_of_line(stream, min(num_bytes, stream.seek(0, os.SEEK_END)))
            stream.seek(end)
            behind = stream.read().decode("utf-8", errors="replace")
            stream.truncate(end)
        return _parsed(behind)

    def cut_after(self, step: int) -> None:
        """Keep the rows up to and including `step`, for a checkpoint that does not know the length."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_text_atomically(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _parsed(text: str) -> list[dict[str, Any]]:
    """The rows of whole lines, up to one that a killed run tore and a later row was written behind."""
    rows = []
    for line in text.split("\n")[:-1]:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _end_of_line(stream: BinaryIO, before: int) -> int:
    """Where the last whole line ends that ends at `before` or earlier."""
    while before > 0:
        start = max(0, before - BLOCK)
        stream.seek(start)
        found = stream.read(before - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        before = start
    return 0
