"""Reading files: bytes come in, pieces of documents go out, in memory that does not grow with the file.

    .txt       documents stand between separators; a file without one is a single document
    .jsonl     each line is an object with the text under a key: one document
    .parquet   each row of a column of text: one document
    .gz .zst   .txt and .jsonl, compressed

A document longer than MAX_CHUNK characters is cut where no tokenizer joins the two sides: after a letter or
digit and before a space or a punctuation mark. A split pattern of the GPT family begins a new piece there
whatever follows, so the ids are those of the uncut document. Only a stretch of MAX_CHUNK characters without
any such place is cut blindly. Where a document is cut depends on its text alone, not on how it was read.
"""

import codecs
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from scratchlm.data.corpora import Chunk

Errors = Literal["strict", "replace"]

MAX_CHUNK = 2**20
"""Characters; long enough that a pause at a cut costs nothing, short enough for a queue of them in memory."""
BLOCK_BYTES = 2**20
"""How much is read at once."""
MAX_LINE = 2**28
"""Bytes of one line of .jsonl: JSON must be parsed whole, so a line is the unit of memory there."""
SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst")

ROWS = 256
"""Rows of .parquet that are decoded at once."""
ZSTANDARD_BITE = 256
"""Compressed bytes that are decompressed at once: at most 8 MiB of text."""

_CONVERT = (
    "convert the file to UTF-8, or set errors=replace (for a run corpus.errors=replace) to read it anyway."
)
_UNTEXT = re.compile("[\0\ud800-\udfff]")
_SAFE = re.compile(r".*[^\W_](?=[\s.,;:!?\u3002\u3001\uff0c\uff01\uff1f\uff1b\uff1a])", re.DOTALL)


def read_documents(
    path: Path,
    *,
    separator: str,
    text_key: str,
    errors: Errors = "strict",
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Chunk]:
    """Yield the documents of one file, blank ones left out.

    Args:
        path: The file; its suffix says what it is, any other than those above is read as plain text.
        separator: What stands between documents in plain text, with at most one line break on each side;
            "" for none.
        text_key: Where the text stands in .jsonl and .parquet.
        errors: "strict" refuses invalid UTF-8 and NUL bytes, "replace" puts U+FFFD in their place.
        start: First byte to read of plain text that is not compressed; 0, or right behind a separator.
        stop: Where to end, likewise; None reads to the end of the file.

    Raises:
        ValueError: The file is missing, damaged, binary or not UTF-8; the message names it and the place.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder.")
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file; give the path of a text file.")
    kind = kind_of(path)
    if kind == ".parquet":
        if path.suffix in COMPRESSED:
            raise ValueError(f"{path}: .parquet is compressed inside; unpack this file first.")
        yield from _cut_all(parquet_texts(path, text_key, errors))
    elif kind == ".jsonl":
        yield from _cut_all(_json_texts(path, text_key, errors))
    else:
        blocks = _decoded(path, errors, start, stop)
        yield from split_documents(blocks, separator, after_separator=start > 0)


def kind_of(path: Path) -> str:
    """What a file holds, under its compression: "a.jsonl.gz" -> ".jsonl", "b.md" -> ".txt"."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return suffix if suffix in SUFFIXES else ".txt"


def split_documents(
    blocks: Iterator[str], separator: str, *, after_separator: bool = False
) -> Iterator[Chunk]:
    r"""Cut a stream of text into documents at `separator`, and long documents into chunks.

    Example: ["a<|e", "nd|>\\nb"] with separator "<|end|>" -> Chunk("a", True), Chunk("b", True).
    """
    pending = ""
    started = False  # whether a chunk of the document in `pending` is out; `after_separator`: one precedes it
    margin = len(separator) + 2  # what may yet turn out to be a separator and the line break before it
    for block in blocks:
        pending += block
        if separator:
            *complete, pending = pending.split(separator)
            for text in complete:
                text = _drop_break(text, leading=after_separator and not started, trailing=True)
                if started or len(text) > MAX_CHUNK:
                    yield from cut_document(text, started=started)
                elif text and not text.isspace():  # most documents: one chunk, without another generator
                    yield Chunk(text, True)
                started, after_separator = False, True
        while len(pending) > MAX_CHUNK + margin:
            pending = _drop_break(pending, leading=after_separator and not started)
            end = safe_end(pending, MAX_CHUNK)
            yield Chunk(pending[:end], ends_document=False)
            pending, started = pending[end:], True
    text = _drop_break(pending, leading=after_separator and not started, trailing=after_separator)
    yield from cut_document(text, started=started)


def safe_end(text: str, limit: int) -> int:
    """Where to end a chunk: the last place up to `limit` where no tokenizer joins the two sides.

    Example: safe_end("one two, three", 10) -> 7, before the comma.
    """
    found = _SAFE.match(text, 0, limit + 1)  # one more: the mark that follows must be seen
    return found.end() if found else limit


def parquet_texts(path: Path, text_key: str, errors: Errors) -> Iterator[str]:
    """Yield the column `text_key` of a .parquet file row by row, without rows that are null.

    Raises:
        ValueError: The file is damaged or has no such column of text.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_key not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise ValueError(f"{path}: no column {text_key!r}; set text_key to one of: {known}.")
            row = 0
            for batch in file.iter_batches(batch_size=ROWS, columns=[text_key]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is not None:
                        yield _check_text(text, f"{path}: row {row}, column {text_key!r}", errors)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or not a .parquet file ({str(error).splitlines()[0]}).") from None


def _json_texts(path: Path, text_key: str, errors: Errors) -> Iterator[str]:
    """Yield the text under `text_key` of each line of a .jsonl file."""
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}: line {number}"
        try:
            content = line.decode("utf-8", errors).strip().removeprefix("\ufeff")
            entry = json.loads(content) if content else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}, byte {error.start}: not UTF-8; {_CONVERT}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); .jsonl holds one object a line.") from None
        if not content:
            continue
        if not isinstance(entry, dict):
            raise ValueError(
                f"{where}: a {type(entry).__name__}; each line must be an object with a {text_key!r}."
            )
        if text_key not in entry:
            raise ValueError(f"{where}: no key {text_key!r}; set text_key to one of: {', '.join(entry)}.")
        yield _check_text(entry[text_key], f"{where}, key {text_key!r}", errors)


def _check_text(text: object, where: str, errors: Errors) -> str:
    """Refuse or replace what cannot be UTF-8 text: NUL and lone surrogates can be written in JSON."""
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: a {type(text).__name__}, not text; set text_key to where the text stands."
        )
    bad = _UNTEXT.search(text)
    if bad is None:
        return text
    if errors == "replace":
        return _UNTEXT.sub("\ufffd", text)
    raise ValueError(f"{where}: U+{ord(bad[0]):04X} at character {bad.start()} is not text; {_CONVERT}")


def _decoded(path: Path, errors: Errors, start: int, stop: int | None) -> Iterator[str]:
    """Yield a plain text file's characters in blocks."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = start
    for block in itertools.chain(_blocks(path, start, stop), [b""]):
        if offset == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{path}: UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8.")
        if errors == "replace":
            data = block.replace(b"\0", "\ufffd".encode())
        else:
            data = block
            if (nul := block.find(0)) >= 0:
                raise ValueError(f"{path}: byte {offset + nul} is NUL: a binary file, not text; {_CONVERT}")
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not block)
        except UnicodeDecodeError as error:
            place = offset - held + error.start
            value = error.object[error.start]
            raise ValueError(
                f"{path}: byte {place} (0x{value:02x}) is not UTF-8: {error.reason}; {_CONVERT}"
            ) from None
        yield text.removeprefix("\ufeff") if offset == 0 else text  # a byte order mark is not text
        offset += len(block)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield a file's lines without their ends, each of bounded length."""
    held: list[bytes] = []
    length = 0
    for block in itertools.chain(_blocks(path), [b"\n"]):
        *ended, rest = block.split(b"\n")
        for piece in ended:
            yield b"".join([*held, piece])
            held, length = [], 0
        held.append(rest)
        length += len(rest)
        if length > MAX_LINE:
            raise ValueError(
                f"{path}: a line of more than {MAX_LINE:,} bytes; .jsonl holds one document a line."
            )


def _blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed, in blocks of bounded size."""
    try:
        if path.suffix == ".zst":
            yield from _even_blocks(_zstandard_blocks(path))
        else:
            opener: Callable[..., BinaryIO] = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rb") as file:
                file.seek(start)
                left = sys.maxsize if stop is None else stop - start
                while block := file.read(min(BLOCK_BYTES, left)):
                    left -= len(block)
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); fetch or pack it again.") from None


def _even_blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Cut and join pieces of any size to blocks of BLOCK_BYTES."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= BLOCK_BYTES:
            joined = b"".join(held)
            end = length - length % BLOCK_BYTES
            for start in range(0, end, BLOCK_BYTES):
                yield joined[start : start + BLOCK_BYTES]
            held, length = [joined[end:]], length - end
    if length:
        yield b"".join(held)


def _zstandard_blocks(path: Path) -> Iterator[bytes]:
    """Decompress in small bites: a few bytes can stand for 128 KiB, and a file may hold many frames."""
    import zstandard

    frame = None
    with path.open("rb") as file:
        while bite := file.read(ZSTANDARD_BITE):
            try:
                while bite:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if block := frame.decompress(bite):
                        yield block
                    bite = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
            except zstandard.ZstdError as error:
                raise ValueError(
                    f"{path}: damaged, or not zstandard ({error}); fetch or pack it again."
                ) from None
    if frame is not None:
        raise ValueError(f"{path}: cut off in the middle of its data; fetch or pack it again.")


def _cut_all(texts: Iterator[str]) -> Iterator[Chunk]:
    for text in texts:
        yield from cut_document(text, started=False)


def cut_document(text: str, *, started: bool) -> Iterator[Chunk]:
    """The rest of a document as chunks; a blank document is none at all."""
    if not started and (not text or text.isspace()):
        return
    while len(text) > MAX_CHUNK:
        end = safe_end(text, MAX_CHUNK)
        yield Chunk(text[:end], ends_document=False)
        text = text[end:]
    yield Chunk(text, ends_document=True)


def _drop_break(text: str, *, leading: bool = False, trailing: bool = False) -> str:
    """Remove the one line break that belongs to a separator rather than to the document."""
    if leading:
        text = text.removeprefix("\n") if text.startswith("\n") else text.removeprefix("\r\n")
    if trailing and text.endswith("\n"):
        text = text[:-1].removesuffix("\r")
    return text
