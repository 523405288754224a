r"""A path -> its bytes, text or JSON, read with suspicion: whatever is wrong is a ValueError naming the file.

A file of a tokenizer may be damaged, may be something else, or may be made to do harm. So nothing but a
regular file is opened (a pipe would wait for ever), none larger than `MAX_FILE_BYTES` is read, JSON that
nests without end or says a thing twice is refused, and an id stays below `MAX_VOCAB_SIZE`: tables by id are
as long as the greatest one. A byte order mark and \r\n, which Windows editors leave, are accepted.
"""

import contextlib
import json
import os
import reprlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

MAX_FILE_BYTES = 1 << 27
"""128 MB; the largest tokenizer.json that we know of, Gemma 3's, has 33 MB."""

MAX_VOCAB_SIZE = 1 << 24
"""Ids stay below it: 64 times Gemma's 262,144; a table by id has at most 128 MB."""

SHOWN_CHARACTERS = 80
"""A message shows about this much of a value: a hostile file's may have a hundred megabytes."""


def read_bytes(path: Path) -> bytes:
    """Read a whole regular file.

    Raises:
        ValueError: It is missing, is no regular file, cannot be read, or is too large; the message names it.
    """
    try:
        # Opening a pipe without this flag waits for someone to write.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{path}: is a folder; expected a file.")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: is a pipe, a socket or a device; expected a regular file.")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(
                f"{path}: has {status.st_size:,} bytes; a tokenizer's file has at most {MAX_FILE_BYTES:,}."
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)  # it may grow meanwhile
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    r"""Read a UTF-8 file; a byte order mark is left out, "\r\n" stays.

    Raises:
        ValueError: As `read_bytes`, or it is not UTF-8; the message names it.
    """
    return decode(path, read_bytes(path))


def decode(path: Path, data: bytes) -> str:
    """The text of a file's bytes; `path` is for the message.

    Raises:
        ValueError: They are not UTF-8; the message names the file and the place.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a table.

    Raises:
        ValueError: As `read_text`, or it is not JSON, or no table; the message names it.
    """
    return parse_json(path, read_text(path))


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """The table that a JSON text holds; `path` is for the message.

    Raises:
        ValueError: It is not JSON, a key stands twice in one table, or it is no table.
    """
    try:
        content = json.loads(text, object_pairs_hook=_table_without_repetition, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (brackets in brackets without end).") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); is the file complete?") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a JSON table.")
    return content


def _table_without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} stands twice in one table")
            seen.add(key)
    return table


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


@contextlib.contextmanager
def saved_problem(path: Path) -> Iterator[None]:
    """Give every ValueError inside the name of the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: not a readable tokenizer file: {str(error).rstrip('.')}.") from None


def shown(value: object) -> str:
    """A value as a message shows it: never more than `SHOWN_CHARACTERS`."""
    if isinstance(value, str | bytes):
        text = repr(value[:SHOWN_CHARACTERS])  # repr of a huge one would cost time
        return text if len(value) <= SHOWN_CHARACTERS else f"{text}..."
    text = reprlib.repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def is_id(value: object) -> bool:
    """Whether a value from a file is an id: a whole number from 0 to MAX_VOCAB_SIZE - 1, no boolean."""
    return type(value) is int and 0 <= value < MAX_VOCAB_SIZE


def check_ids(ids: Iterable[object], name: str) -> None:
    """Check the ids of a table that a file calls `name`.

    Raises:
        ValueError: One is no id, or two are equal.
    """
    seen = list(ids)
    if not all(map(is_id, seen)):
        wrong = next(id for id in seen if not is_id(id))
        raise ValueError(
            f"{name}: {shown(wrong)} is no id; expected a table of token -> id "
            f"(a whole number from 0 to {MAX_VOCAB_SIZE - 1})"
        )
    if len(set(seen)) < len(seen):
        repeated: set[object] = set()
        twice = next(id for id in seen if id in repeated or repeated.add(id))
        raise ValueError(f"{name}: two tokens have the same id {twice}")
