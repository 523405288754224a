"""Settings come in; what they name outside of the run's folder is compared with what the run began with.

    RUN/inputs.json    {"data.paths.0": {"name": "said.jsonl", "sha256": "9f86d0..."},
                        "rewards.1.file": {...}, "teacher": {...}}

Files of instructions, preferences or rewards keep their names when somebody edits them, and a teacher's
folder when it is trained on, so that settings alone do not tell. As with settings that changed
(train/changes.py), other data is refused, and another reward or teacher has to be allowed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm import runtime
from scratchlm.posttrain.config import DistillConfig, PosttrainConfig
from scratchlm.posttrain.reference import fingerprint
from scratchlm.train.changes import Change
from scratchlm.train.folder import RunFolder, read_checkpoint

FILE = "inputs.json"
"""Where a run keeps what it began with."""
SHOWN = 12
"""Digits of a sha256 in messages, as checkpoints show them."""


class Input(NamedTuple):
    """Something that a run reads."""

    name: str
    """A file, or a run's folder."""
    sha256: str
    """Of the file's bytes, or of the run's weights."""


def inputs_of(config: PosttrainConfig) -> dict[str, Input]:
    """Return by dotted key all files that the settings of data and rewards name, and the teacher.

    What is not there is left out: the part that reads it says so. So is a teacher whose answers are learnt:
    they are kept.

    Raises:
        ValueError: The teacher has no whole checkpoint of this name.
    """
    tree = config.model_dump(mode="json", include={"data", "rewards"})
    found = {}
    for key, text in _texts(tree):
        if os.path.isfile(text):  # unlike a Path, it takes any text
            with open(text, "rb") as file:
                found[key] = Input(text, hashlib.file_digest(file, "sha256").hexdigest())
    if isinstance(config, DistillConfig) and config.learn_from == "logits":
        teacher = RunFolder(config.teacher)
        if teacher.config.is_file():
            with read_checkpoint(teacher, config.teacher_checkpoint) as saved:
                weights = {name: saved.read("model", name) for name in saved.names("model")}
            found["teacher"] = Input(str(teacher.path), fingerprint(weights))
    return found


def check_inputs(path: Path, now: Mapping[str, Input], *, allow_learning: bool) -> dict[str, Change]:
    """Return what differs from what the run in `path` began with, by key, if it may go on with it.

    Args:
        path: The run's folder; one without `FILE` is not judged.
        now: What it would read.
        allow_learning: Whether rewards and teacher may change.

    Raises:
        ValueError: Data changed, or anything else that may not; or `FILE` is damaged.
    """
    began = _read(path / FILE)
    changed = [key for key, one in now.items() if key in began and began[key].sha256 != one.sha256]
    for key in changed:
        text = f"{path}: {key}: {now[key].name} is not what it was when the run began"
        if key.startswith("data."):
            raise ValueError(
                f"{text}: the weights belong to the old one; put it back, or start a new folder."
            )
        if not allow_learning:
            raise ValueError(
                f"{text}: from here on the run would learn otherwise; put it back, say --allow-changes, or "
                "start a new folder."
            )
    return {f"{key}.sha256": (began[key].sha256[:SHOWN], now[key].sha256[:SHOWN]) for key in changed}


def write_inputs(path: Path, now: Mapping[str, Input]) -> None:
    """Keep what the run in `path` reads from here on."""
    tree = {key: one._asdict() for key, one in now.items()}
    runtime.write_text_atomically(path / FILE, json.dumps(tree, indent=2) + "\n")


def _read(file: Path) -> dict[str, Input]:
    if not file.is_file():
        return {}
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return {key: Input(str(one["name"]), str(one["sha256"])) for key, one in tree.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: is damaged ({error}); delete it if you know that the run's files are unchanged."
        ) from None


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with its dotted key. Example: {"paths": ["a"]} -> ("paths.0", "a")."""
    if isinstance(tree, str):
        yield key, tree
        return
    items: Sequence[tuple[Any, Any]] = []
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    for name, value in items:
        yield from _texts(value, f"{key}.{name}" if key else str(name))
