"""manifest.json: what a checkpoint consists of; its text goes in, a checked Manifest comes out.

    {"format": 2,
     "step": 100,
     "identity": {"tokenizer": "9f2c...", "data": "51aa...", "world_size": 1},
     "groups": {"model": ["model.safetensors"], "optimizer": ["optimizer.safetensors"]},
     "files": {"model.safetensors": {"bytes": 6291600, "sha256": "..."}, ..., "state.json": {...}},
     "checksum": "..."}

The checksum is the sha256 of this very text with 64 zeros in its place, so that no byte of the manifest can
change unseen either. A name in a manifest is never a path: letters, digits, dots, dashes, underscores.

Format 1 had neither groups (a file's stem was its group) nor identity nor checksum; it is still read.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 2
"""Version of the folder's layout, in every manifest; a reader refuses what is newer than itself."""

MANIFEST = "manifest.json"
STATE = "state.json"

MAX_MANIFEST_BYTES = 16_000_000
"""About 100,000 files at 150 bytes each: more is no manifest, and is not read into memory."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"step-(\d{7,})")
_CHECKSUM = re.compile(r'"checksum": "([0-9a-f]{64})"\n}\n\Z')
_ZEROS = "0" * 64


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted: incomplete, damaged, or of a newer format."""


class NewerFormatError(CheckpointError):
    """A checkpoint of a later version of this program: nothing is wrong with it."""


class FileEntry(NamedTuple):
    """What a file must be."""

    num_bytes: int
    sha256: str


class Manifest(NamedTuple):
    """The contents of a checkpoint."""

    format: int
    step: int
    identity: dict[str, str | int]
    groups: dict[str, tuple[str, ...]]
    files: dict[str, FileEntry]

    def render(self) -> str:
        """The text of manifest.json."""
        tree = {
            "format": self.format,
            "step": self.step,
            "identity": self.identity,
            "groups": {group: list(names) for group, names in self.groups.items()},
            "files": {name: {"bytes": entry[0], "sha256": entry[1]} for name, entry in self.files.items()},
            "checksum": _ZEROS,
        }
        text = json.dumps(tree, indent=1) + "\n"
        return text.removesuffix(f'{_ZEROS}"\n}}\n') + f'{_digest(text)}"\n}}\n'


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder. Example: 100 -> "step-0000100"."""
    return f"step-{step:07d}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint folder's name, or None for any other name."""
    found = _FOLDER.fullmatch(path.name)
    return int(found[1]) if found else None


def check_names(groups: Mapping[str, Any]) -> None:
    """Refuse group names that could not be file names.

    Raises:
        ValueError: The message names the group.
    """
    for group in groups:
        if not _NAME.fullmatch(group) or group in ("state", "manifest"):
            raise ValueError(
                f"checkpoint group {group!r}: not a name; letters, digits, dots, dashes and underscores, and "
                "neither state nor manifest."
            )


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of a checkpoint folder; its files are not looked at.

    Raises:
        NewerFormatError: A later version of this program wrote it.
        CheckpointError: It is missing, damaged, or names what it may not.
    """
    try:
        with (path / MANIFEST).open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ValueError(f"longer than {MAX_MANIFEST_BYTES} bytes")
        text = content.decode("utf-8")
        tree = json.loads(text)
        version = _count(tree["format"])
        if version > FORMAT:
            raise NewerFormatError(
                f"{path}: format {version} is newer than {FORMAT}; update scratchlm to read it."
            )
        manifest = _parse(tree)
        _check(text, manifest, path)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no readable manifest.json ({error}); this checkpoint is incomplete."
        ) from None
    return manifest


def _parse(tree: Any) -> Manifest:
    files = {
        name: FileEntry(_count(entry["bytes"]), _checked(_HASH, entry["sha256"]))
        for name, entry in tree["files"].items()
    }
    tensor_files = [name for name in files if name.endswith(".safetensors")]
    if tree["format"] == 1:
        groups = {name.removesuffix(".safetensors"): (name,) for name in tensor_files}
        identity = {}
    elif tree["format"] == FORMAT:
        groups = {group: tuple(names) for group, names in tree["groups"].items()}
        identity = dict(tree["identity"])
    else:
        raise ValueError(f"format {tree['format']!r} was never written")
    for name in [*files, *groups]:
        _checked(_NAME, name)
    if sorted(name for names in groups.values() for name in names) != sorted(tensor_files):
        raise ValueError("groups and files do not fit together")
    if STATE not in files:
        raise ValueError(f"{STATE} is not among its files")
    return Manifest(tree["format"], _count(tree["step"]), identity, groups, files)


def _check(text: str, manifest: Manifest, path: Path) -> None:
    found = _CHECKSUM.search(text)
    if found is None and manifest.format > 1:
        raise ValueError("it has no checksum")
    if found is not None and _digest(text[: found.start(1)] + _ZEROS + text[found.end(1) :]) != found[1]:
        raise ValueError("its checksum differs from its text: it was damaged or edited")
    if step_of(path) not in (None, manifest.step):
        raise ValueError(f"it is of step {manifest.step}: the folder was renamed")


def _checked(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not allowed there")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number from 0")
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
