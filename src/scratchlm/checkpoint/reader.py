"""A checkpoint folder comes in; all its tensors come out, or rows of one from the files in which they lie.

    model-r00001-of-00002.safetensors   token_embeddings.weight rows 0:300
    model-r00002-of-00002.safetensors   token_embeddings.weight rows 300:512, ln_final.weight 0:64

    reader.read("model", "token_embeddings.weight", 256, 128)  ->  rows 256:384, out of both files
    reader.read("model", "token_embeddings.weight", 0, 128)    ->  out of the first; the second stays closed

So a run goes on with any number of processes, each reading what it needs. A reader verifies all of a file
before it takes anything from it, and once only; `load_checkpoint` parses the very bytes that it hashed.
"""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scratchlm.checkpoint.manifest import STATE, CheckpointError, Manifest, TensorEntry, read_manifest
from scratchlm.checkpoint.tensor_file import DTYPES, check_file, read_file, read_tensors, unreadable
from scratchlm.registry import unknown

TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class Checkpoint(NamedTuple):
    """What was saved: `tensors[group][name]`, a state of plain values, and what the run was made of."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    identity: dict[str, str | int]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder into memory, checking every byte; pieces are joined to whole tensors.

    Raises:
        CheckpointError: A file is missing, has another size or checksum, does not hold the rows that the
            manifest says, or the format is newer than this program.
    """
    manifest = read_manifest(path)
    state = _read_state(path, manifest)
    tensors = {group: _load_group(path, manifest, group) for group in manifest.groups}
    return Checkpoint(manifest.step, tensors, state, manifest.identity)


def open_checkpoint(path: Path) -> "CheckpointReader":
    """Open one checkpoint folder for reading parts of it; use it in a `with`, or close it.

    Raises:
        CheckpointError: Manifest or state are missing, damaged, or of a newer format.
    """
    return CheckpointReader(path)


def verify(path: Path) -> Manifest:
    """Check every byte of a checkpoint folder against its manifest, and return the manifest.

    Raises:
        CheckpointError: As `load_checkpoint`; the message names the file.
    """
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        check_file(path / name, entry)
    return manifest


class CheckpointReader:
    """One checkpoint, open for reading; what was read does not depend on the files any more."""

    def __init__(self, path: Path) -> None:
        """Read manifest and state; tensors are read when they are asked for.

        Raises:
            CheckpointError: One of the two is missing, damaged, or of a newer format.
        """
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.state: dict[str, Any] = _read_state(path, self.manifest)
        self._tensors = dict(self.manifest.tensors)
        self._open: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """Number of finished optimizer steps."""
        return self.manifest.step

    @property
    def identity(self) -> dict[str, str | int]:
        """What the run was made of."""
        return self.manifest.identity

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return tuple(self.manifest.groups)

    def names(self, group: str) -> tuple[str, ...]:
        """Names of a group's tensors; none for a group that was not saved.

        Raises:
            CheckpointError: Only for formats 1 and 2, as `read`.
        """
        return tuple(self._index(group))

    def shape(self, group: str, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor; nothing is read (except in formats 1 and 2).

        Raises:
            CheckpointError: There is no such tensor.
        """
        return self._entry(group, name).shape

    def read(self, group: str, name: str, first_row: int = 0, rows: int | None = None) -> Tensor:
        """Return rows of a tensor, in memory of its own.

        Args:
            group: Such as "model".
            name: Such as "token_embeddings.weight".
            first_row: Where to begin, in the first dimension.
            rows: How many; None: all that follow. 0 is allowed.

        Raises:
            CheckpointError: There is no such tensor, or a file that it needs is missing or damaged.
            ValueError: The tensor has not so many rows.
        """
        entry = self._entry(group, name)
        end_row = entry.num_rows if rows is None else first_row + rows
        if not 0 <= first_row <= end_row <= entry.num_rows:
            raise ValueError(
                f"{self.path}: {group}, {name} has {entry.num_rows} rows; {first_row} to {end_row} are not "
                "among them."
            )
        if not entry.shape:
            (file,) = entry.rows
            return self._part(file, name, entry).get_tensor(name).clone()
        found = _room(self.path, self.manifest, name, entry, end_row - first_row)
        for file, (first, end) in entry.rows.items():
            low, high = max(first, first_row), min(end, end_row)
            if low < high:
                part = self._part(file, name, entry).get_slice(name)
                found[low - first_row : high - first_row] = part[low - first : high - first]
        return found

    def close(self) -> None:
        """Close all files."""
        self._open.clear()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, group: str, name: str) -> TensorEntry:
        index = self._index(group)
        if name not in index:
            raise CheckpointError(f"{self.path}: {unknown(f'tensor of group {group}', name, index)}")
        return index[name]

    def _index(self, group: str) -> dict[str, TensorEntry]:
        """What is in a group; formats 1 and 2 say it in their tensor files alone."""
        if group not in self._tensors:
            index: dict[str, TensorEntry] = {}
            for file in self.manifest.groups.get(group, ()):
                content = self._file(file)
                for name in content.keys():  # noqa: SIM118 - not a dictionary
                    if name in index:
                        raise _twice(self.path / file, group, name)
                    dtype, shape = _dtype_and_shape(content, name)
                    index[name] = TensorEntry(dtype, shape, {file: (0, shape[0] if shape else 1)})
            self._tensors[group] = index
        return self._tensors[group]

    def _part(self, file: str, name: str, entry: TensorEntry) -> Any:
        """The open file, after comparing what it says of this tensor with the manifest."""
        try:
            content = self._file(file)
        except CheckpointError as error:
            raise CheckpointError(f"{error} It is needed for {name}.") from None
        try:
            found = _dtype_and_shape(content, name)
        except SafetensorError:
            found = None
        _check_part(self.path / file, name, entry, found)
        return content

    def _file(self, file: str) -> Any:
        if file not in self._open:
            check_file(self.path / file, self.manifest.files[file])
            try:
                self._open[file] = safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise unreadable(self.path / file, error) from None
        return self._open[file]


def _read_state(path: Path, manifest: Manifest) -> dict[str, Any]:
    content = read_file(path / STATE, manifest.files[STATE])
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE}: not readable as JSON ({error}).") from None


def _load_group(path: Path, manifest: Manifest, group: str) -> dict[str, Tensor]:
    """Read all files of a group; formats 1 and 2 have whole tensors and no index."""
    index = manifest.tensors.get(group)
    whole: dict[str, Tensor] = {}
    for file in manifest.groups[group]:
        parts = read_tensors(path / file, manifest.files[file])
        wanted = parts if index is None else [name for name, entry in index.items() if file in entry.rows]
        for name in sorted({*parts, *wanted}):
            if index is None:
                if name in whole:
                    raise _twice(path / file, group, name)
                whole[name] = parts[name]
                continue
            entry, part = index.get(name), parts.get(name)
            found = None if part is None else (DTYPES[part.dtype], tuple(part.shape))
            _check_part(path / file, name, entry, found)
            if len(entry.rows) == 1:
                whole[name] = part
                continue
            if name not in whole:
                whole[name] = _room(path, manifest, name, entry, entry.num_rows)
            first, end = entry.rows[file]
            whole[name][first:end] = part
    return whole


def _room(path: Path, manifest: Manifest, name: str, entry: TensorEntry, rows: int) -> Tensor:
    """Memory for rows of a tensor, if its files are large enough for what the manifest says."""
    dtype = TORCH_DTYPES.get(entry.dtype)
    there = sum(manifest.files[file].num_bytes for file in entry.rows)
    if dtype is None or math.prod(entry.shape) * dtype.itemsize > there:
        raise CheckpointError(
            f"{path}: {name} of {entry.dtype} {list(entry.shape)} cannot be in {', '.join(entry.rows)}; the "
            "manifest is wrong; remove the checkpoint."
        )
    return torch.empty((rows, *entry.shape[1:]), dtype=dtype)


def _dtype_and_shape(content: Any, name: str) -> tuple[str, tuple[int, ...]]:
    part = content.get_slice(name)
    return part.get_dtype(), tuple(part.get_shape())


def _check_part(
    file: Path, name: str, entry: TensorEntry | None, found: tuple[str, tuple[int, ...]] | None
) -> None:
    """Compare what a file says of a tensor with what the manifest says."""
    if entry is None or file.name not in entry.rows:
        raise CheckpointError(
            f"{file}: holds {name}, but the manifest does not say so; remove the checkpoint."
        )
    first, end = entry.rows[file.name]
    wanted = (entry.dtype, (end - first, *entry.shape[1:]) if entry.shape else ())
    if found != wanted:
        had = "is missing" if found is None else f"is {found[0]} {list(found[1])}"
        raise CheckpointError(
            f"{file}: {name} {had}, but the manifest says {wanted[0]} {list(wanted[1])}; remove the "
            "checkpoint."
        )


def _twice(file: Path, group: str, name: str) -> CheckpointError:
    return CheckpointError(f"{file}: {name} is in another file of {group} too.")
