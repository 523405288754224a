r"""Fields and tensors come in, a GGUF file comes out: the format of llama.cpp, version 3.

    "GGUF"  version  number of tensors  number of fields
    fields            key, type, value
    tensors           name, sizes (fastest first), format, where its numbers begin
    numbers           of each tensor from a multiple of 32 bytes on

    f32    4 bytes a number
    f16    2
    q8_0   34 bytes for 32 numbers: d = max |x| / 127 as float16, then round(x / d) as bytes

All numbers are little-endian; a text is its length in 8 bytes, then UTF-8. Vectors stay f32: llama.cpp has
no other arithmetic for them. A matrix whose rows are no multiple of 32 long is f16 where q8_0 was asked for.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; q8_0,
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c (quantize_row_q8_0_ref), bit for bit.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Float32, UInt8

from scratchlm import runtime

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32

FORMATS = {"f32": 0, "f16": 1, "q8_0": 8}
"""Format -> ggml's number for it."""

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
"""Format of the matrices -> llama.cpp's number for such a file (general.file_type)."""

BLOCK = 32
"""Numbers that share a scale in q8_0."""

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def write_gguf(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Float32[np.ndarray, "..."]], *, format: str
) -> None:
    """Write a file; it appears whole or not at all.

    Args:
        path: The file.
        fields: Key -> a text, a truth value, a number, or a list of texts or of whole numbers.
        tensors: Name -> numbers.
        format: How matrices are written: "f32", "f16" or "q8_0".
    """
    formats = {name: format_of(value, format) for name, value in tensors.items()}
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(fields))
    parts = [head, *(_text(key) + _typed(value) for key, value in fields.items())]
    offset = 0
    for name, value in tensors.items():
        sizes = value.shape[::-1]
        parts.append(_text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", FORMATS[formats[name]], offset))
        offset += _padded(num_bytes(value, formats[name]))
    with runtime.replace_atomically(path) as temporary, temporary.open("wb") as file:
        _write_padded(file, b"".join(parts))
        for name, value in tensors.items():
            _write_padded(file, packed(value, formats[name]))


def format_of(value: Float[np.ndarray, "..."], format: str) -> str:
    """Return the format that a tensor gets where matrices get `format`."""
    if value.ndim < 2:
        return "f32"
    return "f16" if format == "q8_0" and value.shape[-1] % BLOCK else format


def num_bytes(value: Float[np.ndarray, "..."], format: str) -> int:
    """Return how many bytes the numbers take."""
    return (
        value.size // BLOCK * (BLOCK + 2) if format == "q8_0" else value.size * {"f32": 4, "f16": 2}[format]
    )


def packed(value: Float32[np.ndarray, "..."], format: str) -> bytes:
    """Return the bytes of a tensor."""
    if format == "q8_0":
        return q8_0(value.reshape(-1, BLOCK)).tobytes()
    return np.ascontiguousarray(value, dtype={"f32": "<f4", "f16": "<f2"}[format]).tobytes()


def q8_0(blocks: Float32[np.ndarray, "blocks 32"]) -> UInt8[np.ndarray, "blocks 34"]:
    """Round blocks of 32 numbers to a scale and 32 bytes.

    Half a step is rounded away from 0, as C's roundf does; numpy would round it to the even neighbour.
    """
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    scaled = blocks * inverse
    whole = np.floor(np.abs(scaled))
    rounded = np.sign(scaled) * (whole + (np.abs(scaled) - whole >= 0.5))
    d = scales.astype("<f2").view(np.uint8)
    return np.concatenate([d, rounded.astype(np.int8).view(np.uint8)], axis=1)


def _typed(value: Any) -> bytes:
    """A value with the number of its type before it."""
    if isinstance(value, list):
        number = _STRING if isinstance(value[0], str) else _INT32
        items = b"".join(_text(one) if number == _STRING else struct.pack("<i", one) for one in value)
        return struct.pack("<IIQ", _ARRAY, number, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write_padded(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.write(bytes(_padded(len(data)) - len(data)))
