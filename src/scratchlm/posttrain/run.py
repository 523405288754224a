"""A whole post-training run: settings and a folder come in; a run folder like any other lies there after.

    base -> RUN/base, tokenizer, validation text -> data -> first validation -> steps -> summary.json

posttrain.json holds the settings of the stage, config.json those that every run has: all commands that take a
run take this one. inputs.json tells whether the files that the settings name are still the same. An adapter
that was trained lies alone in RUN/adapter, too. Everything that is finished is kept: an interrupted run goes
on from its last checkpoint.
"""

import contextlib
import json
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from scratchlm import runtime
from scratchlm.config import load, read_tree, validate
from scratchlm.data.corpora import Corpus
from scratchlm.distributed.process import Processes
from scratchlm.lock import run_lock
from scratchlm.posttrain import STAGES
from scratchlm.posttrain.base import Base, open_base
from scratchlm.posttrain.config import PosttrainConfig
from scratchlm.posttrain.inputs import check_inputs, inputs_of, write_inputs
from scratchlm.posttrain.lora import LowRank
from scratchlm.posttrain.lora_files import save_adapter
from scratchlm.posttrain.stage import Stage, stage_file
from scratchlm.registry import UnknownNameError, unknown
from scratchlm.train import build
from scratchlm.train.changes import Change, check_changes
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Finished, OnEvent, PhaseEnded, PhaseStarted, ignore
from scratchlm.train.folder import RunFolder
from scratchlm.train.session import Session
from scratchlm.train.track import require_trackers

RECIPES = Path(__file__).parents[1] / "recipes" / "posttrain"
"""The recipes that ship with the package."""
MEANING = (
    *("base", "checkpoint", "seed", "chat", "context_length", "adapter", "data", "rows", "too_long"),
    *("base_documents", "prompts_per_step", "group_size", "steps_per_rollout", "passes"),
    "optimizer.name",
)
"""Settings that decide what the weights are or what a step reads: a run never goes on with others."""


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read(stage: str, name_or_path: str, overrides: Iterable[str] = ()) -> PosttrainConfig:
    """The settings of a recipe by name, of a file, or of an earlier run.

    Args:
        stage: sft, distill, dpo or grpo.
        name_or_path: What is read.
        overrides: Words such as "train.steps=100" laid over it.

    Raises:
        ValueError: There is no such recipe, or a setting is wrong.
    """
    kind, path = STAGES.get(stage).Config, Path(name_or_path)
    overrides = list(overrides)
    file = RECIPES / f"{name_or_path}.toml" if name_or_path in recipe_names() else path
    if file.suffix in (".toml", ".json"):
        try:
            return load(kind, file, overrides)
        except ValueError:
            if (other := _made_for(file)) not in ("", stage):
                text = f"{name_or_path}: is a recipe for scratchlm {other}, not for {stage}."
                raise ValueError(text) from None
            raise
    if stage_file(path).is_file():
        found = read_tree(stage_file(path))
        if found.pop("stage", stage) != stage:
            raise ValueError(f"{path}: was not made by scratchlm {stage}; see stage in {stage_file(path)}.")
        return load(kind, None, overrides, base=found)
    if RunFolder(path).config.is_file():
        raise ValueError(
            f"{name_or_path}: is a run to go on from, and no recipe; name both: scratchlm {stage} RECIPE "
            f"base={name_or_path}"
        )
    raise UnknownNameError(unknown("recipe", name_or_path, recipe_names()))


def _made_for(file: Path) -> str:
    """The stage that takes all settings of a file; empty where none does, or several do."""
    found = []
    for stage in STAGES.names():
        with contextlib.suppress(ValueError):
            load(STAGES.get(stage).Config, file)
            found.append(stage)
    return found[0] if len(found) == 1 else ""


def run(
    stage: str,
    config: PosttrainConfig,
    path: Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Do the whole run and return the summary (what summary.json holds).

    Args:
        stage: sft, distill, dpo or grpo.
        config: The settings.
        path: The run folder: new or empty, unless `resume`.
        resume: Go on from the newest complete checkpoint in `path`.
        allow_changes: Resume although optimizer, schedule, rewards or teacher have changed.
        on_event: Called with each Event.

    Raises:
        ValueError: The folder holds another run or is in use, or base, settings and data do not fit.
        OSError: The disk is full or not writable.
    """
    folder = RunFolder(path)
    with run_lock(path), contextlib.ExitStack() as stack:
        changes = _claim(stage, folder, config, resume=resume, allow_changes=allow_changes)
        base, made = _make(stage, folder, config, on_event)
        stack.callback(made.close)  # also where no session begins
        settings = made.run_config()
        if not resume:
            _settle(stage, folder, config, settings)
        session = Session(
            folder,
            settings,
            _corpus(base),
            base.tokenizer,
            made.train_set,
            made.valid_set,
            None,
            on_event,
            Processes(),
            made,
        )
        settle = partial(_settle, stage, folder, config, settings)
        summary = session.run(resume=resume, changes=changes, settle=settle)
        if isinstance(made.adapter, LowRank):
            save_adapter(session.model, made.adapter, path / "adapter")
        runtime.write_text_atomically(
            folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        )
        on_event(Finished(summary))
    return summary


def _make(stage: str, folder: RunFolder, config: PosttrainConfig, on_event: OnEvent) -> tuple[Base, Stage]:
    """Open the base and prepare the data."""
    started = time.perf_counter()
    on_event(PhaseStarted("base", str(config.base)))
    base = open_base(config, folder)
    on_event(PhaseEnded("base", time.perf_counter() - started, {"vocab_size": base.tokenizer.vocab_size}))
    started = time.perf_counter()
    on_event(PhaseStarted("data", ""))
    made = STAGES.get(stage)(config, base, folder)
    made.prepare(on_event)
    figures = {"items": made.train_set.num_items, "held out": made.valid_set.num_items}
    on_event(PhaseEnded("data", time.perf_counter() - started, figures))
    return base, made


def _corpus(base: Base) -> Corpus | None:
    """The base's corpus, which may judge samples; None where its files are not here."""
    try:
        return build.build_corpus(base.config)
    except (ValueError, OSError):
        return None


def _claim(
    stage: str, folder: RunFolder, config: PosttrainConfig, *, resume: bool, allow_changes: bool
) -> dict[str, Change]:
    """Make the folder this run's own, or see that it is; return the settings that changed.

    Raises:
        ValueError: It is somebody else's, or the settings, or what they name, do not fit those it has.
    """
    file, changes = stage_file(folder.path), dict[str, Change]()
    require_trackers(config.train.track)
    inputs = inputs_of(config)
    if resume:
        if not file.is_file():
            raise ValueError(
                f"{folder.path}: nothing to resume ({file.name} is missing); leave --resume out."
            )
        found = read_tree(file)
        found.pop("stage", None)
        old = validate(type(config), found, source=str(file))
        changes = check_changes(old, config, folder.path, allow_learning=allow_changes, meaning=MEANING)
        changes |= check_inputs(folder.path, inputs, allow_learning=allow_changes)
    elif file.exists() or folder.config.exists() or folder.checkpoints.exists():
        raise ValueError(
            f"{folder.path}: holds a run already; continue it with --resume or choose another folder."
        )
    if not resume:  # a run that goes on has its settings until it stands that it can have others
        _settle(stage, folder, config)
    return changes


def _settle(stage: str, folder: RunFolder, config: PosttrainConfig, run: RunConfig | None = None) -> None:
    """Write the settings, and what they name; `run`: also those by which other commands know the run."""
    tree = {"stage": stage} | config.model_dump(mode="json")
    runtime.write_text_atomically(stage_file(folder.path), json.dumps(tree, indent=2) + "\n")
    write_inputs(folder.path, inputs_of(config))
    if run is not None:
        runtime.write_text_atomically(folder.config, run.to_json())
        folder.summary.unlink(missing_ok=True)
