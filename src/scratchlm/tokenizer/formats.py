"""Tokenizer files: GPT-2's vocab.json + merges.txt, our one-file JSON <-> vocabulary, merges, specials.

JSON holds text, tokens are bytes; so each byte is shown as one printable character (GPT-2's table: the
printable ones of Latin-1 as themselves, the other 68 as U+0100 and following, so that a blank is U+0120).
Files are written atomically and read with suspicion: whatever is wrong with one is a ValueError that names
it.

Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode.
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm import runtime

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

FORMAT = "scratchlm.tokenizer"
VERSION = 1


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte -> the printable character that shows it. Example: 32 -> U+0120."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {
        value: chr(0x100 + number) for number, value in enumerate(others)
    }


@functools.cache
def _character_bytes() -> dict[str, int]:
    return {character: value for value, character in byte_characters().items()}


def to_printable(token: bytes) -> str:
    """Show bytes as printable characters: b" the" -> "\u0120the"."""
    characters = byte_characters()
    return "".join(characters[value] for value in token)


def from_printable(text: str) -> bytes:
    """Undo `to_printable`.

    Raises:
        ValueError: A character stands for no byte.
    """
    values = _character_bytes()
    for character in text:
        if character not in values:
            raise ValueError(f"token {text!r}: the character {character!r} stands for no byte")
    return bytes(values[character] for character in text)


# our own file


def write_saved(path: Path, content: dict[str, Any]) -> None:
    """Write a tokenizer's content as JSON, atomically."""
    whole = {"format": FORMAT, "version": VERSION, **content}
    runtime.write_text_atomically(path, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


def read_saved(path: Path, *, type: str | None = None) -> dict[str, Any]:
    """Read what `write_saved` wrote and check its outline.

    Args:
        path: The file.
        type: The type of tokenizer that it must hold; any by default.

    Raises:
        ValueError: The file is missing, is no such file, or holds another type; the message names it.
    """
    content = read_json(path)
    with saved_problem(path):
        if content.get("format") != FORMAT or not isinstance(content.get("type"), str):
            raise ValueError(f'it has no "format": "{FORMAT}"')
        if content.get("version") != VERSION:
            raise ValueError(f"version {content.get('version')!r} is not readable here, only {VERSION}")
        if type is not None and content["type"] != type:
            raise ValueError(f"it holds a tokenizer of type {content['type']!r}, not {type!r}")
        if content["type"] == "bpe":
            _check_bpe(content)
    return content


def _check_bpe(content: dict[str, Any]) -> None:
    for key in ("vocab", "special_tokens"):
        table = content.get(key)
        if not isinstance(table, dict) or not all(_is_id(id) for id in table.values()):
            raise ValueError(f"{key!r} must be a table of token -> id (a whole number from 0)")
    merges = content.get("merges")
    if not isinstance(merges, list) or not all(isinstance(line, str) for line in merges):
        raise ValueError("'merges' must be a list of texts such as \"t he\"")
    if not isinstance(content.get("pattern"), str):
        raise ValueError("'pattern' must be the name of a split pattern")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


@contextlib.contextmanager
def saved_problem(path: Path) -> Iterator[None]:
    """Give every ValueError and KeyError inside the name of the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable tokenizer file: {error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a table.

    Raises:
        ValueError: It is missing, not UTF-8, not JSON, or no table; the message names it.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); is the file complete?") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a JSON table.")
    return content


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        ValueError: It is missing, not a file, or not UTF-8; the message names it.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; expected a file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}).") from None


# GPT-2's two files


def save_gpt2(tokenizer: "BPETokenizer", vocab_path: Path, merges_path: Path) -> None:
    """Write vocab.json (printable token -> id, specials as themselves) and merges.txt (one pair a line)."""
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    vocab = {names.get(id) or to_printable(token): id for id, token in sorted(tokenizer.vocab.items())}
    if len(vocab) != len(tokenizer.vocab):
        raise ValueError("a special token reads like the printable form of another token; rename it.")
    lines = [f"{to_printable(left)} {to_printable(right)}\n" for left, right in tokenizer.merges]
    runtime.write_text_atomically(vocab_path, json.dumps(vocab, ensure_ascii=False))
    runtime.write_text_atomically(merges_path, "".join(["#version: 0.2\n", *lines]))


def load_gpt2(
    vocab_path: Path,
    merges_path: Path,
    special_tokens: Iterable[str] | None = None,
    *,
    pattern: str = "gpt2",
) -> "BPETokenizer":
    """Load a tokenizer from vocab.json and merges.txt (in GPT-2's repository: encoder.json and vocab.bpe).

    Args:
        vocab_path: Printable token -> id.
        merges_path: One merge a line; a first line that starts with "#version" is skipped.
        special_tokens: By default every token that is neither a byte nor made by a merge.
        pattern: The files do not name their split pattern; "gpt2" is GPT-2's.

    Raises:
        ValueError: A file is missing or damaged, or they do not belong together; the message names it.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer, from_printable_pair

    table = read_json(vocab_path)
    lines = read_text(merges_path).replace("\r\n", "\n").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    with saved_problem(merges_path):
        merges = [from_printable_pair(line) for line in lines[first:] if line]
    made = {*byte_characters().values(), *(to_printable(left + right) for left, right in merges)}
    names = [text for text in table if text not in made] if special_tokens is None else list(special_tokens)
    with saved_problem(vocab_path):
        if not all(_is_id(id) for id in table.values()):
            raise ValueError("expected a table of token -> id (a whole number from 0)")
        special = set(names)
        vocab = {
            id: text.encode("utf-8") if text in special else from_printable(text)
            for text, id in table.items()
        }
        if len(vocab) != len(table):
            raise ValueError("two tokens have the same id")
        return BPETokenizer(vocab, merges, names, pattern=pattern)
