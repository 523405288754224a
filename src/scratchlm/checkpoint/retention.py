"""The folder of checkpoints: which is the newest, which stay, which go.

    latest             the highest step whose every byte is right
    of_later_version   the highest step, where only a later version of this program can read it
    keep_only          the newest n + named steps (the best) + every k-th; the others go

No name is trusted: a folder counts when its manifest and its files say so. A checkpoint is removed by
renaming it to a temporary name first, so that a removal cut short leaves no half checkpoint behind either.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from scratchlm.checkpoint.manifest import CheckpointError, NewerFormatError, read_manifest, step_of
from scratchlm.checkpoint.reader import verify
from scratchlm.checkpoint.tensor_file import check_size
from scratchlm.runtime import log


def checkpoint_folders(folder: Path) -> list[Path]:
    """All checkpoint folders in `folder`, damaged ones too, by step."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=_step)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None; damaged ones are named in a warning and passed over."""
    for path in reversed(checkpoint_folders(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("%s Falling back to the checkpoint before it.", error)
            continue
        return path
    return None


def of_later_version(folder: Path) -> Path | None:
    """The newest checkpoint if a later version of this program wrote it, else None; no damaged one counts.

    `latest` passes over it. Who would train on from there would remove it: it is ahead of them.
    """
    for path in reversed(checkpoint_folders(folder)):
        try:
            if is_complete(path):
                return None
        except NewerFormatError:
            return path
    return None


def keep_only(folder: Path, newest: int, also: Iterable[int] = (), every: int | None = None) -> None:
    """Remove all checkpoints but the `newest` ones, those of the steps in `also` and multiples of `every`.

    Only complete ones count (manifest and sizes; a damaged one must not push a good one out), and what a
    later version of this program wrote is left alone.

    Args:
        folder: Where the checkpoints lie.
        newest: How many of the newest stay; at least 1.
        also: Steps that stay.
        every: Steps that are multiples of it stay; None: none do for that.

    Raises:
        ValueError: `newest` is less than 1.
        OSError: A checkpoint cannot be removed.
    """
    if newest < 1:
        raise ValueError(f"newest={newest}: at least the newest checkpoint must stay; give 1 or more.")
    protected = set(also)
    kept = 0
    for path in reversed(checkpoint_folders(folder)):
        try:
            complete = is_complete(path)
        except NewerFormatError:
            continue
        stays = complete and kept < newest
        kept += stays
        step = _step(path)
        if not (stays or step in protected or (every is not None and step % every == 0)):
            _remove(path)


def discard_after(folder: Path, step: int) -> list[int]:
    """Remove the checkpoints of later steps than `step` (after going back to it) and return their steps.

    Raises:
        OSError: A checkpoint cannot be removed.
    """
    later = [path for path in checkpoint_folders(folder) if _step(path) > step]
    for path in reversed(later):  # the newest first: what is left is always a run that got less far
        _remove(path)
    return [_step(path) for path in later]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves and removals left behind; call it when no other process writes here."""
    for aside in folder.glob(".step-*.replaced"):
        target = folder / aside.name.removeprefix(".").removesuffix(".replaced")
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
    for temporary in folder.glob(".step-*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def is_complete(path: Path) -> bool:
    """Whether the manifest is right and every file has its size; contents are not read.

    Raises:
        NewerFormatError: A later version of this program wrote it.
    """
    try:
        for name, entry in read_manifest(path).files.items():
            check_size(path / name, entry)
    except NewerFormatError:
        raise
    except CheckpointError:
        return False
    return True


def _remove(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.removed.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _step(path: Path) -> int:
    step = step_of(path)
    assert step is not None, path
    return step
