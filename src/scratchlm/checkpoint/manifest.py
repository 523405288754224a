"""manifest.json: what a checkpoint consists of; its text goes in, a checked Manifest comes out.

    {"format": 3,
     "step": 100,
     "identity": {"tokenizer": "9f2c...", "data": "51aa...", "world_size": 2},
     "groups": {"model": ["model-r00001-of-00002.safetensors", "model-r00002-of-00002.safetensors"]},
     "tensors": {"model": {"token_embeddings.weight": {"dtype": "F32", "shape": [512, 64], "rows": {
         "model-r00001-of-00002.safetensors": "0:300", "model-r00002-of-00002.safetensors": "300:512"}}}},
     "files": {"model-r00001-of-00002.safetensors": {"bytes": 6291600, "sha256": "..."}, ...},
     "checksum": "..."}

The checksum is the sha256 of this very text with 64 zeros in its place, so that no byte of the manifest can
change unseen either. A name in a manifest is never a path: letters, digits, dots, dashes, underscores. Every
row of a tensor is there once; "0:300" are rows 0 to 299. Each process makes a manifest of what it wrote, and
the first joins them.

Format 1 had neither groups (a file's stem was its group) nor identity nor checksum, format 2 no `tensors`;
both had whole tensors only, and are still read.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 3
"""Version of the folder's layout, in every manifest; a reader refuses what is newer than itself."""

MANIFEST = "manifest.json"
STATE = "state.json"

MAX_MANIFEST_BYTES = 64_000_000
"""About 1,000 processes with 700 pieces at 80 bytes each: more is no manifest, and is not read."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"[0-9a-f]{64}")
_ROWS = re.compile(r"(\d{1,18}):(\d{1,18})")
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]*")
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


class TensorEntry(NamedTuple):
    """What a tensor is and where it lies."""

    dtype: str
    shape: tuple[int, ...]
    rows: dict[str, tuple[int, int]]
    """File -> the rows in it, from the first up to, not including, the second."""

    @property
    def num_rows(self) -> int:
        """Rows in the first dimension; a number without dimensions is one row."""
        return self.shape[0] if self.shape else 1


class Manifest(NamedTuple):
    """The contents of a checkpoint, or of what one process wrote of it."""

    format: int
    step: int
    identity: dict[str, str | int]
    groups: dict[str, tuple[str, ...]]
    files: dict[str, FileEntry]
    tensors: dict[str, dict[str, TensorEntry]]
    """By group and name; empty in formats 1 and 2."""

    def render(self) -> str:
        """The text of manifest.json."""
        tree = {
            "format": self.format,
            "step": self.step,
            "identity": self.identity,
            "groups": {group: list(names) for group, names in self.groups.items()},
            "tensors": {
                group: {name: _tensor_tree(entry) for name, entry in named.items()}
                for group, named in self.tensors.items()
            },
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
        manifest = parse_manifest(text, path)
        _check_whole(manifest, path)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no readable manifest.json ({error}); this checkpoint is incomplete."
        ) from None
    return manifest


def parse_manifest(text: str, path: Path) -> Manifest:
    """Read the manifest of a checkpoint or of one process's part, and compare it with its checksum.

    Raises:
        NewerFormatError: A later version of this program wrote it; `path` is for the message.
        ValueError, KeyError, TypeError, AttributeError, RecursionError: It is no manifest.
    """
    tree = json.loads(text)
    version = _count(tree["format"])
    found = _CHECKSUM.search(text)
    # before the version is believed: one flipped bit makes a 3 a 7
    if found is not None and _digest(text[: found.start(1)] + _ZEROS + text[found.end(1) :]) != found[1]:
        raise ValueError("its checksum differs from its text: it was damaged or edited")
    if version > FORMAT:
        raise NewerFormatError(
            f"{path}: format {version} is newer than {FORMAT}; update scratchlm to read it."
        )
    manifest = _parse(tree)
    if found is None and manifest.format > 1:
        raise ValueError("it has no checksum")
    return manifest


def join_manifests(parts: Iterable[Manifest]) -> Manifest:
    """Return the manifest of all that several processes wrote; step and identity are the first one's.

    Raises:
        CheckpointError: Rows of a tensor are missing or written twice, or two processes disagree about it.
    """
    first, *others = parts
    groups, files = dict(first.groups), dict(first.files)
    tensors = {group: dict(named) for group, named in first.tensors.items()}
    for part in others:
        files |= part.files
        for group, names in part.groups.items():
            groups[group] = (*groups.get(group, ()), *names)
        for group, named in part.tensors.items():
            into = tensors.setdefault(group, {})
            for name, entry in named.items():
                had = into.get(name, entry._replace(rows={}))
                if (had.dtype, had.shape) != (entry.dtype, entry.shape):
                    raise CheckpointError(
                        f"{group}, {name}: {_described(had)} in {', '.join(had.rows)}, but "
                        f"{_described(entry)} in {', '.join(entry.rows)}; all must have the same model."
                    )
                into[name] = entry._replace(rows={**had.rows, **entry.rows})
    joined = Manifest(first.format, first.step, first.identity, groups, files, tensors)
    _check_rows(joined)
    return joined


def _parse(tree: Any) -> Manifest:
    files = {
        name: FileEntry(_count(entry["bytes"]), _checked(_HASH, entry["sha256"]))
        for name, entry in tree["files"].items()
    }
    tensor_files = [name for name in files if name.endswith(".safetensors")]
    identity, tensors = dict(tree.get("identity", {})), {}
    if tree["format"] == 1:
        groups = {name.removesuffix(".safetensors"): (name,) for name in tensor_files}
    elif tree["format"] in (2, FORMAT):
        groups = {group: tuple(names) for group, names in tree["groups"].items()}
    else:
        raise ValueError(f"format {tree['format']!r} was never written")
    for name in [*files, *groups]:
        _checked(_NAME, name)
    if tree["format"] == FORMAT:
        tensors = {
            group: {name: _tensor(entry, groups[group]) for name, entry in named.items()}
            for group, named in tree["tensors"].items()
        }
        if tensors.keys() != groups.keys():
            raise ValueError("groups and tensors do not fit together")
    if sorted(name for names in groups.values() for name in names) != sorted(tensor_files):
        raise ValueError("groups and files do not fit together")
    return Manifest(tree["format"], _count(tree["step"]), identity, groups, files, tensors)


def _tensor(entry: Any, files: tuple[str, ...]) -> TensorEntry:
    rows = {}
    for name, text in entry["rows"].items():
        found = _ROWS.fullmatch(text)
        if found is None or name not in files:
            raise ValueError(f"{name!r}: {text!r} is not allowed there")
        rows[name] = (int(found[1]), int(found[2]))
    return TensorEntry(_checked(_DTYPE, entry["dtype"]), tuple(map(_count, entry["shape"])), rows)


def _tensor_tree(entry: TensorEntry) -> dict[str, Any]:
    rows = {name: f"{first}:{end}" for name, (first, end) in entry.rows.items()}
    return {"dtype": entry.dtype, "shape": list(entry.shape), "rows": rows}


def _described(entry: TensorEntry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def _check_whole(manifest: Manifest, path: Path) -> None:
    if STATE not in manifest.files:
        raise ValueError(f"{STATE} is not among its files")
    if step_of(path) not in (None, manifest.step):
        raise ValueError(f"it is of step {manifest.step}: the folder was renamed")
    try:
        _check_rows(manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_rows(manifest: Manifest) -> None:
    """Refuse tensors whose rows are not there once each."""
    for group, named in manifest.tensors.items():
        for name, entry in named.items():
            reached, last = 0, "no file"
            for file, (first, end) in sorted(entry.rows.items(), key=lambda item: item[1]):
                if first < reached:
                    raise CheckpointError(
                        f"{group}, {name}: rows {first} to {reached} are in {last} and in {file}; each row "
                        "may be written by one process only."
                    )
                if first > reached or (end <= first and entry.num_rows):
                    break
                reached, last = end, file
            else:
                if reached == entry.num_rows and entry.rows:
                    continue
            raise CheckpointError(
                f"{group}, {name}: of {entry.num_rows} rows the first {reached} are there, up to {last}; "
                "what follows is in no file."
            )


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
