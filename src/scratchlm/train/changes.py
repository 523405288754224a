"""Resuming with other settings: the old and the new ones come in, what changed goes out, or a refusal.

    harmless     lengths, intervals, names, machine, guards     allowed, and written into the record
    learning     optimizer, schedule, clipping, sampling ...    allowed when asked for (--allow-changes)
    meaning      corpus, tokenizer, model, optimizer, seed      never: weights and moments belong to old ones

A setting that stands in no list is one that changes the result: whoever adds one need not think of this file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scratchlm.config import Config

HARMLESS = (
    "name",
    "description",
    "prompt",
    "sampling",
    "data.workers",
    "data.queue_size",
    "train.steps",
    "train.micro_batch_tokens",
    "train.gradient_checkpointing",
    "train.device",
    "train.compile",
    "train.guard",
    "train.log_every",
    "train.eval_every",
    "train.eval_tokens",
    "train.sample_every",
    "train.first_sample",
    "train.save_every",
    "train.save_best",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.save_in_background",
    "train.statistics_every",
    "train.track",
    "model.attention",
    "distributed",
    "nproc",
    "restarts",
    "wait_seconds",
    "prompts",
    "base_tokens",
)
"""Settings that decide how long, where and what is shown. What a step computes they change by rounding only,
but for train.steps, over which schedules reach their end."""
MEANING = (
    *("seed", "corpus", "tokenizer", "data.chunk_size", "model", "batches", "train.batch_tokens"),
    "optimizer.name",
)
"""Settings that decide what weights and moments are, or which rows a step reads."""

Change = tuple[Any, Any]
"""Before and after."""


def check_changes(
    old: Config, new: Config, path: Path, *, allow_learning: bool = False, meaning: Sequence[str] = MEANING
) -> dict[str, Change]:
    """Return what differs, by dotted key, if a run may go on with it.

    Args:
        old: The settings that the run has.
        new: Those that it shall go on with.
        path: The run folder, for the message.
        allow_learning: Whether settings of optimizer, schedule and clipping may change.
        meaning: Settings that may never change.

    Raises:
        ValueError: A setting changes what the run is; the message has every difference.
    """
    before, after = dict(leaves(old.model_dump(mode="json"))), dict(leaves(new.model_dump(mode="json")))
    changes = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    never = [key for key in changes if _in(key, meaning) and not _in(key, HARMLESS)]
    learning = [key for key in changes if not _in(key, meaning) and not _in(key, HARMLESS)]
    if never:
        raise ValueError(
            f"{path}: {_describe(changes, never)}: weights and moments belong to the old settings; resume "
            "without these changes, or start a new folder."
        )
    if learning and not allow_learning:
        raise ValueError(
            f"{path}: {_describe(changes, learning)}: from here on the run would learn otherwise; resume "
            "without these changes, say --allow-changes, or start a new folder."
        )
    return changes


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a tree with its dotted key. Example: {"a": {"b": 1}} -> ("a.b", 1)."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _in(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _describe(changes: dict[str, Change], keys: list[str]) -> str:
    return ", ".join(f"{key}: {changes[key][0]} -> {changes[key][1]}" for key in keys)
