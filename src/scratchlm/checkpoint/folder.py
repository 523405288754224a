"""One checkpoint folder: named tensors and a JSON state go in, a verified folder comes out; and back.

    checkpoints/step-0000100/
        model.safetensors       parameters, float32; beyond 2 GiB model-00001.safetensors, model-00002, ...
        optimizer.safetensors   one tensor per parameter and moment
        state.json              everything that is no tensor
        manifest.json           size and sha256 of each file above, written last

The order makes it atomic: a temporary folder, its files flushed, the folder flushed, the rename, the parent
flushed. At any moment of a crash the final name stands for a whole checkpoint or for none.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from scratchlm.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    STATE,
    CheckpointError,
    FileEntry,
    Manifest,
    check_names,
    folder_name,
    read_manifest,
)
from scratchlm.checkpoint.tensor_file import check_file, read_file, read_tensors, write_tensors, write_text
from scratchlm.runtime import folder_atomically

SHARD_BYTES = 2**31
"""Largest tensor file: reading needs one of them twice in memory, and file systems with 4 GiB files exist."""


class Checkpoint(NamedTuple):
    """What was saved: `tensors[group][name]`, a state of plain values, and what the run was made of."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    identity: dict[str, str | int]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    identity: Mapping[str, str | int] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write one checkpoint atomically and return its folder; one of the same step is replaced.

    Args:
        folder: Where checkpoints lie; made when missing.
        step: Number of finished optimizer steps.
        tensors: One safetensors file (or several) per group name.
        state: Plain values for state.json; keys are strings.
        identity: What the run was made of: fingerprints of tokenizer and data, number of processes.
        shard_bytes: A group beyond this is cut into several files, between tensors.

    Raises:
        TypeError: The state holds something that JSON has no form for.
        OSError: The disk is full or not writable; nothing is left under the final name.
    """
    return write_checkpoint(folder, step, tensors, render_state(state), identity or {}, shard_bytes)


def render_state(state: Mapping[str, Any]) -> str:
    """The text of state.json."""
    return json.dumps(dict(state), indent=1) + "\n"


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state_text: str,
    identity: Mapping[str, str | int],
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Do what `save_checkpoint` does, with a state that is text already."""
    check_names(tensors)
    target = folder / folder_name(step)
    with _naming(target, step), _replacing(target) as temporary:
        files: dict[str, FileEntry] = {}
        groups: dict[str, tuple[str, ...]] = {}
        for group, named in tensors.items():
            shards = _shards(group, named, shard_bytes)
            files |= {name: write_tensors(temporary / name, part) for name, part in shards.items()}
            groups[group] = tuple(shards)
        files[STATE] = write_text(temporary / STATE, state_text)
        manifest = Manifest(FORMAT, step, dict(identity), groups, files)
        write_text(temporary / MANIFEST, manifest.render())
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder, checking every byte against the manifest.

    Raises:
        CheckpointError: A file is missing, has another size or checksum, or the format is newer than this
            program.
    """
    manifest = read_manifest(path)
    content = read_file(path / STATE, manifest.files[STATE])
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE}: not readable as JSON ({error}).") from None
    tensors: dict[str, dict[str, Tensor]] = {}
    for group, names in manifest.groups.items():
        tensors[group] = {}
        for name in names:
            found = read_tensors(path / name, manifest.files[name])
            twice = tensors[group].keys() & found.keys()
            if twice:
                raise CheckpointError(f"{path / name}: {min(twice)} is in another file of {group} too.")
            tensors[group] |= found
    return Checkpoint(manifest.step, tensors, state, manifest.identity)


def verify(path: Path) -> Manifest:
    """Check every byte of a checkpoint folder against its manifest, and return the manifest.

    Raises:
        CheckpointError: As `load_checkpoint`; the message names the file.
    """
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        check_file(path / name, entry)
    return manifest


def replaced_name(target: Path) -> Path:
    """Where the checkpoint of the same step waits while `target` is replaced."""
    return target.with_name(f".{target.name}.replaced")


def _shards(group: str, tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, filled in order; a tensor is never cut."""
    parts: list[dict[str, Tensor]] = [{}]
    free = shard_bytes
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes > free and parts[-1]:
            parts.append({})
            free = shard_bytes
        parts[-1][name] = tensor
        free -= num_bytes
    if len(parts) == 1:
        return {f"{group}.safetensors": parts[0]}
    return {f"{group}-{number:05d}.safetensors": part for number, part in enumerate(parts, 1)}


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `target`; what has that name steps aside first.

    A folder cannot be renamed onto a full one, so there is a moment without either name; `remove_leftovers`
    puts the old one back when the process died in it.
    """
    aside = replaced_name(target)
    _make_folder(target.parent)
    try:
        with folder_atomically(target) as temporary:
            yield temporary
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
                target.rename(aside)
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each flushed into its parent: a power cut may not lose it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # a file of that name fails when something is put below it
        folder.mkdir()
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(target: Path, step: int) -> Iterator[None]:
    """Give an error of the disk the checkpoint's name: nobody knows the temporary one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno or errno.EIO, f"the checkpoint of step {step} was not saved: {reason}", str(target)
        ) from error
