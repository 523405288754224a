"""Checkpoints: named tensors and a JSON state go in, a verified folder comes out.

    checkpoints/step-0000100/
        model.safetensors       parameters, float32
        optimizer.safetensors   one tensor per parameter and moment
        state.json              everything that is no tensor
        manifest.json           size and sha256 of each file above, written last

The folder is written under a temporary name, flushed and renamed, so it exists whole or not at all. What is
newest is never read from a name alone: `latest` checks sizes and checksums and passes over a damaged folder.
No pickle anywhere.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scratchlm.runtime import folder_atomically, log

FORMAT = 1
"""Version of the folder's layout, in every manifest; a reader refuses what is newer than itself."""

_NAME = re.compile(r"step-(\d{7,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted: incomplete, damaged, or of a newer format."""


class Checkpoint(NamedTuple):
    """What was saved: `tensors[group][name]` and a state of plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint atomically and return its folder.

    Args:
        folder: Where checkpoints lie; made when missing.
        step: Number of finished optimizer steps.
        tensors: One safetensors file per group name.
        state: Plain values for state.json.

    Raises:
        OSError: The disk is full or not writable; nothing is left under the final name.
    """
    target = folder / f"step-{step:07d}"
    if target.exists():
        verify(target)
        return target
    with folder_atomically(target) as temporary:
        for group, named in tensors.items():
            flat = {name: tensor.detach().to("cpu").contiguous() for name, tensor in named.items()}
            save_file(flat, temporary / f"{group}.safetensors")
        _write_json(temporary / "state.json", dict(state))
        files = {file.name: _describe(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / "manifest.json", {"format": FORMAT, "step": step, "files": files})
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder after checking every file against the manifest.

    Raises:
        CheckpointError: A file is missing, has another size or checksum, or the format is newer than this
            program.
    """
    manifest = verify(path)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    groups = [Path(name).stem for name in manifest["files"] if name.endswith(".safetensors")]
    try:
        tensors = {group: load_file(path / f"{group}.safetensors") for group in groups}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); remove the folder."
        ) from None
    return Checkpoint(int(manifest["step"]), tensors, state)


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint folder against its manifest, and return the manifest.

    Raises:
        CheckpointError: As `load_checkpoint`; the message names the file.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, files = manifest["format"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: no readable manifest.json ({error}); this checkpoint is incomplete."
        ) from None
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than {FORMAT}; update scratchlm to read it."
        )
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; this checkpoint is incomplete.")
        if _describe(file) != expected:
            raise CheckpointError(f"{file}: size or sha256 differs from the manifest; the file is damaged.")
    return manifest


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None; damaged ones are named in a warning and passed over."""
    for path in sorted(_steps(folder), key=lambda found: _step_of(found), reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("%s Falling back to the checkpoint before it.", error)
            continue
        return path
    return None


def keep_only(folder: Path, newest: int, also: Iterable[int] = ()) -> None:
    """Remove all checkpoints but the `newest` ones and those of the steps in `also`."""
    protected = set(also)
    for path in sorted(_steps(folder), key=lambda found: _step_of(found))[:-newest]:
        if _step_of(path) not in protected:
            shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors ("<parameter index>.<key>") and plain values.

    Example: AdamW -> ({"0.m": ..., "0.v": ...}, {"0": {"step": 10}}).
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put back what `optimizer_tensors` took; the settings in the parameter groups stay as they are."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _step_of(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found.group(1))


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
