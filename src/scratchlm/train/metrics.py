"""The record of a run: rows go in, lines of metrics.jsonl and samples.jsonl come out, in order.

A row is one JSON object on one line, written with a single call and flushed, so that a killed run leaves at
most one torn line at the end. A checkpoint remembers the file's length; a resumed run cuts what lies behind
it (the torn line, and rows of steps that come again) and goes on there, so that no row stands twice.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchlm.runtime import write_text_atomically


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
        rows = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a line torn by a killed run, that a later row was written behind
        return rows

    def sync(self) -> int:
        """Bring the rows to the disk and return the file's length in bytes: what a checkpoint remembers."""
        if not self.path.is_file():
            return 0
        with self.path.open("ab") as stream:
            os.fsync(stream.fileno())
            return stream.tell()

    def cut(self, num_bytes: int) -> None:
        """Forget everything behind the first `num_bytes`: rows that will come again; also a torn line."""
        if self.path.is_file():
            with self.path.open("r+b") as stream:
                kept = stream.read(num_bytes)
                stream.truncate(kept.rfind(b"\n") + 1)

    def cut_after(self, step: int) -> None:
        """Keep the rows up to and including `step`, for a checkpoint that does not know the length."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_text_atomically(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
