"""Run folders come in; what tables say of each run, and where several runs' settings differ, comes out.

    find_runs(Path("runs"))            every run below a folder, the newest first
    facts(record)                      status, loss, tokens, speed: one line of a table
    differences([config, config])      dotted keys whose values are not the same everywhere
    same_settings(config)              the settings that decide what is learned; seeds are not among them

Everything is read from the folder; nothing is computed again, and a run that is going on can be read too.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scratchlm.config import Config, validate
from scratchlm.lock import lock_holder
from scratchlm.study.run_record import RunRecord, number, read_run, section

if TYPE_CHECKING:
    from scratchlm.train.config import RunConfig

Status = Literal["finished", "interrupted", "running"]
Tree = dict[str, Any]

MAX_DEPTH = 3
"""How far below a folder runs are looked for: runs/sweep/lr-3e-4 is found from its grandparent."""

WITHOUT_INFLUENCE = (
    "name", "description", "seed", "sampling", "prompt",
    "data", "corpus.folder", "model.attention",
    "train.device", "train.precision", "train.compile", "train.micro_batch_tokens",
    "train.gradient_checkpointing", "train.log_every", "train.eval_every", "train.sample_every",
    "train.first_sample", "train.save_every", "train.save_best", "train.keep_checkpoints", "train.keep_every",
    "train.save_in_background", "train.statistics_every", "train.track", "train.guard",
    "distributed", "nproc", "restarts", "wait_seconds",
)  # fmt: skip
"""Settings that leave the expected loss as it is: seeds and rounding move it by less than the spread."""


class Facts(NamedTuple):
    """What a table says of one run; None where nothing is recorded."""

    folder: Path
    name: str
    status: Status
    changed: float
    """When something was last written, in seconds since 1970."""
    loss: float | None
    """The last validation loss."""
    best_loss: float | None
    bits_per_byte: float | None
    steps: int | None
    planned_steps: int | None
    tokens: int | None
    parameters: int | None
    epochs: float | None
    seconds: float | None
    tokens_per_second: float | None
    seed: int | None

    @property
    def tokens_per_parameter(self) -> float | None:
        """Tokens seen for each parameter."""
        return self.tokens / self.parameters if self.tokens and self.parameters else None


class Difference(NamedTuple):
    """A setting that is not the same in all runs."""

    key: str
    values: list[Any]
    """The value in each run; MISSING where a run has no such setting."""


class _Missing:
    def __repr__(self) -> str:
        return "-"


MISSING = _Missing()
"""Stands for a setting that a run does not have."""


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or below `folder`, the most recently written first.

    Raises:
        ValueError: There is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of runs, such as runs.")
    return sorted(_search(folder, MAX_DEPTH), key=lambda run: (-changed(run), str(run)))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's settings."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("train"), dict)


def changed(folder: Path) -> float:
    """When a run's record was last written, in seconds since 1970."""
    names = ("config.json", "metrics.jsonl", "summary.json")
    return max((path.stat().st_mtime for name in names if (path := folder / name).is_file()), default=0.0)


def status_of(record: RunRecord) -> Status:
    """Whether a run is going on, came to its end, or was stopped on the way."""
    if lock_holder(record.folder) is not None:
        return "running"
    if not record.summary or record.summary.get("stopped_early"):
        return "interrupted"
    return "finished"


def facts(record: RunRecord) -> Facts:
    """What a table says of a run; the rows of metrics.jsonl tell it where there is no summary yet."""
    status = status_of(record)
    # a run that goes on again has the summary of its stop: the rows are newer
    summary = {} if status == "running" else record.summary
    row = max((rows[-1] for rows in (record.train, record.valid) if rows), key=_step, default={})
    valid = record.valid[-1] if record.valid else {}
    batch = number(section(record.config, "train"), "batch_tokens")
    steps = number(summary, "steps") or number(row, "step")
    tokens = number(summary, "tokens") or (steps * batch if steps and batch else number(row, "tokens"))
    seconds = number(summary, "seconds") or number(row, "seconds")
    speed = number(summary, "tokens_per_second")
    losses = [loss for row in record.valid if (loss := number(row, "loss")) is not None]
    train_tokens = data_facts(record.folder).get("train_tokens")
    return Facts(
        folder=record.folder,
        name=record.name,
        status=status,
        changed=changed(record.folder),
        loss=number(summary, "valid_loss") if summary else number(valid, "loss"),
        best_loss=number(summary, "best_valid_loss") if summary else min(losses, default=None),
        bits_per_byte=number(summary, "bits_per_byte") if summary else number(valid, "bits_per_byte"),
        steps=_whole(steps),
        planned_steps=_whole(number(section(record.config, "train"), "steps")),
        tokens=_whole(tokens),
        parameters=_whole(number(record.summary, "parameters")),
        epochs=number(summary, "epochs") or (tokens / train_tokens if tokens and train_tokens else None),
        seconds=seconds,
        tokens_per_second=speed or (tokens / seconds if tokens and seconds else None),
        seed=_whole(number(record.config, "seed")),
    )


def data_facts(folder: Path) -> Tree:
    """How much data a run has: {"train_tokens": 100, "valid_tokens": 10, "tokenizer": "9f..."}."""
    found: Tree = {}
    for split in ("train", "valid"):
        try:
            manifest = json.loads((folder / "data" / split / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and (tokens := number(manifest, "num_tokens")):
            found[f"{split}_tokens"] = round(tokens)
            found["tokenizer"] = manifest.get("tokenizer_fingerprint")
    return found


def same_settings(config: "Mapping[str, Any] | RunConfig") -> Tree:
    """The settings that decide what is learned, as {dotted key: value}, defaults filled in."""
    from scratchlm.train.config import RunConfig

    tree = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    with contextlib.suppress(ValueError):  # a plugin's part is unknown here; what was saved is complete
        tree = validate(RunConfig, tree).model_dump(mode="json")
    return {
        key: value
        for key, value in flattened(tree).items()
        if not any(key == name or key.startswith(f"{name}.") for name in WITHOUT_INFLUENCE)
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Where the settings of several runs are not the same; folders and names apart, in the order of keys."""
    flat = [flattened(config) for config in configs]
    keys = dict.fromkeys(key for tree in flat for key in tree)
    found = [Difference(key, [tree.get(key, MISSING) for tree in flat]) for key in keys]
    return [
        difference
        for difference in found
        if any(value != difference.values[0] for value in difference.values)
        and difference.key not in ("name", "description")
    ]


def unequal(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of two flat trees whose values differ, or that only one has."""
    return [key for key in {**own, **other} if own.get(key, MISSING) != other.get(key, MISSING)]


def flattened(tree: Mapping[str, Any], before: str = "") -> Tree:
    """A tree as dotted keys: {"a": {"b": 1}} -> {"a.b": 1}; the name of a part is the part's own key.

    Example: {"norm": {"name": "rmsnorm", "eps": 1e-5}} -> {"norm": "rmsnorm", "norm.eps": 1e-5}.
    """
    found: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if "name" in value:
                found[f"{before}{key}"] = value["name"]
            below = {name: item for name, item in value.items() if name != "name"}
            found |= flattened(below, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def short_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its last part, or as much of the path as tells it from the others.

    Example: [runs/a/demo, runs/b/demo, runs/c] -> ["a/demo", "b/demo", "c"].
    """
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        # one folder given twice cannot be told apart, however much of its path is shown
        names.append(own[-1] if parts.count(own) > 1 else "/".join(own[-length:]))
    return names


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs, a folder of runs standing for all of them, the oldest first.

    Raises:
        ValueError: A folder is none of a run, and holds none.
    """
    found: list[Path] = []
    for folder in folders:
        runs = [folder] if is_run(folder) else list(reversed(find_runs(folder)))
        if not runs:
            raise ValueError(
                f"{folder}: no run folder and none below it; give folders that hold config.json."
            )
        found += runs
    return [read_run(folder) for folder in dict.fromkeys(found)]


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            entries = [entry for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."]
        except OSError:
            return  # a folder that may not be read holds no runs for us
        for entry in sorted(entries, key=lambda entry: entry.name):
            yield from _search(Path(entry.path), depth - 1)


def _step(row: Mapping[str, Any]) -> float:
    return number(row, "step") or 0.0


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
