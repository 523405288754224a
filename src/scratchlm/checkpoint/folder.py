"""One checkpoint is written: named tensors and a JSON state go in, a folder that can be verified comes out.

    checkpoints/step-0000100/
        model.safetensors       parameters, float32; beyond 2 GiB model-00001.safetensors, model-00002, ...
        optimizer.safetensors   one tensor per parameter and moment
        state.json              everything that is no tensor
        manifest.json           size and sha256 of each file above, written last

    by four processes           model-r00001-of-00004.safetensors, model-r00002-of-00004.safetensors, ...

The order makes it atomic: a temporary folder, its files flushed, the folder flushed, the rename, the parent
flushed. At any moment of a crash the final name stands for a whole checkpoint or for none. Several processes
write their parts at the same time, into the one temporary folder; the first does the rest when it has heard
from all that theirs are on the disk.
"""

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scratchlm.checkpoint.coordinator import Coordinator
from scratchlm.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    STATE,
    FileEntry,
    Manifest,
    TensorEntry,
    check_names,
    folder_name,
    join_manifests,
    parse_manifest,
)
from scratchlm.checkpoint.piece import Piece, own_pieces
from scratchlm.checkpoint.tensor_file import DTYPES, check_size, write_tensors, write_text
from scratchlm.distributed.process import ProcessError
from scratchlm.runtime import flush, folder_atomically

SHARD_BYTES = 2**31
"""Largest tensor file: reading needs one of them twice in memory, and file systems with 4 GiB files exist."""


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
        tensors: By group and name, whole; one safetensors file (or several) per group.
        state: Plain values for state.json; keys are strings.
        identity: What the run was made of: fingerprints of tokenizer and data, number of processes.
        shard_bytes: A group beyond this is cut into several files, between tensors.

    Raises:
        TypeError: The state holds something that JSON has no form for.
        OSError: The disk is full or not writable; nothing is left under the final name.
    """
    pieces = own_pieces(tensors)
    with _naming(folder / folder_name(step), step):
        _make_folder(folder)
    return write_checkpoint(folder, step, pieces, render_state(state), identity or {}, None, shard_bytes)


def render_state(state: Mapping[str, Any]) -> str:
    """The text of state.json."""
    return json.dumps(dict(state), indent=1) + "\n"


def write_checkpoint(
    folder: Path,
    step: int,
    pieces: Mapping[str, Mapping[str, Piece]],
    state_text: str,
    identity: Mapping[str, str | int],
    coordinator: Coordinator | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Do what `save_checkpoint` does, with pieces and a state that is text already; together, if need be.

    Raises:
        ProcessError: Another process was lost; nothing is left under the final name.
    """
    check_names(pieces)
    target = folder / folder_name(step)
    with _naming(target, step):
        if coordinator is None:
            _write_all(target, step, pieces, state_text, identity, shard_bytes)
            return target
        coordinator.begin(step)
        if not coordinator.first:
            _write_for_first(folder, step, pieces, shard_bytes, coordinator)
            return target
        with _telling(coordinator):
            _write_all(target, step, pieces, state_text, identity, shard_bytes, coordinator)
        coordinator.finish()
    return target


def _write_all(
    target: Path,
    step: int,
    pieces: Mapping[str, Mapping[str, Piece]],
    state_text: str,
    identity: Mapping[str, str | int],
    shard_bytes: int,
    coordinator: Coordinator | None = None,
) -> None:
    """Write this process's part, wait for the parts of the others, write the manifest, rename."""
    with _replacing(target) as temporary, _telling(coordinator):
        if coordinator is not None:
            coordinator.announce(temporary.name)
        world_size = 1 if coordinator is None else coordinator.world_size
        parts = [_write_part(temporary, step, pieces, shard_bytes, 0, world_size)]
        if coordinator is not None:
            parts += [parse_manifest(text, target) for text in coordinator.collect()]
        manifest = join_manifests(parts)
        for name, entry in manifest.files.items():
            check_size(temporary / name, entry)
        files = {**manifest.files, STATE: write_text(temporary / STATE, state_text)}
        complete = manifest._replace(identity=dict(identity), files=files)
        write_text(temporary / MANIFEST, complete.render())


@contextlib.contextmanager
def _telling(coordinator: Coordinator | None) -> Iterator[None]:
    """Tell the other processes of an error, before a temporary folder goes under their hands."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        if coordinator is not None:
            coordinator.fail(error)
        raise


def _write_for_first(
    folder: Path,
    step: int,
    pieces: Mapping[str, Mapping[str, Piece]],
    shard_bytes: int,
    coordinator: Coordinator,
) -> None:
    """Write this process's part into the folder of the first, say so, and wait for the end."""
    with _telling(coordinator):
        temporary = folder / coordinator.folder()
    try:
        with _telling(coordinator):
            if not temporary.is_dir():
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"{folder} is not the folder that process 0 sees; all processes must share one",
                )
            part = _write_part(temporary, step, pieces, shard_bytes, coordinator.rank, coordinator.world_size)
            for name in part.files:
                flush(temporary / name)  # each machine its own: none flushes what another has in memory
            coordinator.deliver(part.render())
        coordinator.wait_for_end()
    finally:
        if coordinator.given_up:  # the first could not remove the folder while this one wrote into it
            shutil.rmtree(temporary, ignore_errors=True)


def _write_part(
    folder: Path,
    step: int,
    pieces: Mapping[str, Mapping[str, Piece]],
    shard_bytes: int,
    rank: int,
    world_size: int,
) -> Manifest:
    """Write what one process has to write, and return the manifest of that."""
    files: dict[str, FileEntry] = {}
    groups: dict[str, tuple[str, ...]] = {}
    tensors: dict[str, dict[str, TensorEntry]] = {}
    for group, named in pieces.items():
        stem = group if world_size == 1 else f"{group}-r{rank + 1:05d}-of-{world_size:05d}"
        shards = _shards(stem, named, shard_bytes)
        groups[group], tensors[group] = tuple(shards), {}
        for file, inside in shards.items():
            files[file] = write_tensors(folder / file, {name: piece.tensor for name, piece in inside.items()})
            for name, piece in inside.items():
                rows = {file: (piece.first_row, piece.end_row)}
                tensors[group][name] = TensorEntry(DTYPES[piece.tensor.dtype], piece.shape, rows)
    return Manifest(FORMAT, step, {}, groups, files, tensors)


def replaced_name(target: Path) -> Path:
    """Where the checkpoint of the same step waits while `target` is replaced."""
    return target.with_name(f".{target.name}.replaced")


def _shards(stem: str, pieces: Mapping[str, Piece], shard_bytes: int) -> dict[str, dict[str, Piece]]:
    """File name -> its pieces, filled in order; a piece is never cut."""
    parts: list[dict[str, Piece]] = [{}]
    free = shard_bytes
    for name, piece in pieces.items():
        if piece.tensor.nbytes > free and parts[-1]:
            parts.append({})
            free = shard_bytes
        parts[-1][name] = piece
        free -= piece.tensor.nbytes
    if len(parts) == 1:
        return {f"{stem}.safetensors": parts[0]} if pieces else {}
    return {f"{stem}-{number:05d}.safetensors": part for number, part in enumerate(parts, 1)}


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `target`; what has that name steps aside first.

    A folder cannot be renamed onto a full one, so there is a moment without either name; `remove_leftovers`
    puts the old one back when the process died in it.
    """
    aside = replaced_name(target)
    if not target.parent.is_dir():
        target.parent.mkdir()  # not those above it: in a run folder that was moved away it would lie alone
        flush(target.parent.parent)
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
    flush(folder.parent)


@contextlib.contextmanager
def _naming(target: Path, step: int) -> Iterator[None]:
    """Give an error of the disk the checkpoint's name: nobody knows the temporary one."""
    try:
        yield
    except ProcessError:
        raise  # says all that
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno or errno.EIO, f"the checkpoint of step {step} was not saved: {reason}", str(target)
        ) from error
