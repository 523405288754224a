"""Named tensors go in, a safetensors file and its sha256 come out; and back, checked.

    8 bytes        length N of the header, little-endian
    N bytes        JSON: {"name": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}, ...}, blanks
    the rest       the numbers of one tensor after another, without gaps

The sha256 is taken of the bytes on their way to the file, not read back from it: what a disk changes later is
found. Reading hashes the bytes that are then parsed, so a file cannot change in between. Tensors of large
elements come first, which puts each at a multiple of its element size.

Source: https://github.com/safetensors/safetensors, "Format"; read by that library, which checks every offset.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from scratchlm.checkpoint.manifest import CheckpointError, FileEntry

CHUNK_BYTES = 2**20
"""Hashed, then written, while still in the processor's cache."""

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the numbers of a tensor are called in the file, in the order in which the library writes them."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write a new safetensors file and return its size and checksum.

    Args:
        file: Must not exist.
        tensors: On any device; strided views are written as if contiguous.

    Raises:
        ValueError: A tensor has a dtype that the format lacks.
        OSError: The disk is full or not writable.
    """
    order = {dtype: number for number, dtype in enumerate(DTYPES)}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"tensor {name}: {tensor.dtype} cannot be saved; convert it to one of {known}.")
    names = sorted(tensors, key=lambda name: (order[tensors[name].dtype], name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    digest = hashlib.sha256()
    with file.open("xb") as stream:
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            stream.write(piece)
        for name in names:
            numbers = _bytes_of(tensors[name])
            for begin in range(0, len(numbers), CHUNK_BYTES):
                chunk = numbers[begin : begin + CHUNK_BYTES]
                digest.update(chunk)
                stream.write(chunk)
    return FileEntry(8 + len(text) + end, digest.hexdigest())


def write_text(file: Path, text: str) -> FileEntry:
    """Write a new text file and return its size and checksum."""
    content = text.encode("utf-8")
    with file.open("xb") as stream:
        stream.write(content)
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def read_tensors(file: Path, entry: FileEntry) -> dict[str, Tensor]:
    """Read a safetensors file whose size and checksum are known.

    Raises:
        CheckpointError: It is missing, damaged, or no safetensors file.
    """
    content = read_file(file, entry)
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise unreadable(file, error) from None


def read_file(file: Path, entry: FileEntry) -> bytes:
    """Return a file's bytes after comparing them with its size and checksum.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    check_size(file, entry)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise _damaged(file)
    return content


def check_file(file: Path, entry: FileEntry) -> None:
    """Compare a file with its size and checksum without holding it in memory.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    check_size(file, entry)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    if digest != entry.sha256:
        raise _damaged(file)


def check_size(file: Path, entry: FileEntry) -> None:
    """Compare a file with its size alone, which finds what was cut off.

    Raises:
        CheckpointError: It is missing, a link or a folder, or of another size.
    """
    try:
        if not file.is_file() or file.is_symlink():
            raise CheckpointError(f"{file}: missing; this checkpoint is incomplete.")
        num_bytes = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    if num_bytes != entry.num_bytes:
        raise _damaged(file)


def unreadable(file: Path, error: BaseException) -> CheckpointError:
    """The error for a file that has the right checksum and is no safetensors file."""
    return CheckpointError(f"{file}: not a readable safetensors file ({error}); remove the checkpoint.")


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(f"{file}: size or sha256 differs from the manifest; the file is damaged.")


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()).cast("B")
