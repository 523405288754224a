"""Where bytes come from: memory or a file, read from any position by several threads.

A file is read into the reader's own buffer (`os.preadv`) instead of mapped: memory stays a buffer for each
thread, the bytes behind the end are ours to read, and a file that shrinks is an error instead of a crash.
"""

import os
import threading
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

Errors = Literal["strict", "replace", "lossless"]
"""What happens to bytes that are no UTF-8: a ValueError; U+FFFD as in Python; they are kept as they are."""


@runtime_checkable
class Source(Protocol):
    """Bytes that can be read from any position, by several threads."""

    size: int

    def read_into(self, buffer: UInt8[np.ndarray, " bytes"], position: int) -> int:
        """Fill `buffer` with the bytes from `position` on; return how many there were."""


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.name = "the text"
        self.size = len(self._data)

    def read_into(self, buffer: UInt8[np.ndarray, " bytes"], position: int) -> int:
        """Fill `buffer` with the bytes from `position` on; return how many there were."""
        part = self._data[position : position + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


class FileSource:
    """A file, read where it is needed; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ValueError: It is missing, no regular file, or cannot be read; the message names it.
        """
        self.name = str(path)
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; give the path of a text file.")
        try:
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    def __enter__(self) -> "FileSource":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read_into(self, buffer: UInt8[np.ndarray, " bytes"], position: int) -> int:
        """Fill `buffer` with the bytes from `position` on; return how many there were.

        Raises:
            ValueError: The file became shorter since it was opened.
        """
        wanted = max(0, min(len(buffer), self.size - position))
        done = 0
        while done < wanted:
            step = self._read(memoryview(buffer)[done:wanted], position + done)
            if step == 0:
                raise ValueError(
                    f"{self.name}: became shorter while it was read ({position + done} of {self.size} bytes)."
                )
            done += step
        return done

    def _read(self, buffer: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], position)
        with self._lock:  # Windows: one thread at a time
            self._file.seek(position)
            return self._file.readinto(buffer) or 0


def not_utf8(name: str, position: int) -> ValueError:
    """The error for bytes that are no UTF-8, with what to do about them."""
    return ValueError(
        f"{name}: not UTF-8 text at byte {position}; convert it, or choose errors='replace' "
        "(U+FFFD in place of what is no UTF-8) or errors='lossless' (keep such bytes)."
    )
