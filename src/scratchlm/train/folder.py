"""The run folder: one home for the names of its files, and reading a finished or stopped run back.

    config.json                  every setting, resolved
    environment.json             versions and hardware
    plan.json                    what "auto" became: precision, compilation, rows at once
    tokenizer.scratchlm.json
    data/train/  data/valid/     token shards
    checkpoints/step-0000100/
    metrics.jsonl                training and validation, a row each time
    samples.jsonl                texts that the model wrote on the way
    tracking.json                what trackers have shown, where there are some
    unusable-batches-*.jsonl     what the last steps read of a run that stopped since they were not usable
    summary.json                 the result
    report.html                  the same for people
    .run.lock                    who is writing here

results.md, a table of all runs, lies beside the run folders.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scratchlm import runtime
from scratchlm.checkpoint import CheckpointError, CheckpointReader, latest, open_checkpoint
from scratchlm.checkpoint.manifest import folder_name, step_of
from scratchlm.checkpoint.retention import checkpoint_folders
from scratchlm.config import load
from scratchlm.model.config import reading_on
from scratchlm.model.linear import no_initial_values
from scratchlm.model.transformer import TransformerLM
from scratchlm.runtime import choose_device, log
from scratchlm.tokenizer import Tokenizer, load_tokenizer
from scratchlm.train.build import build_model
from scratchlm.train.config import RunConfig


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        """How the arithmetic is done; a resumed run does it likewise."""
        return self.path / "plan.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the run."""
        return self.path / "tokenizer.scratchlm.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: training and validation."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """One JSON object a line: texts the model wrote."""
        return self.path / "samples.jsonl"

    @property
    def summary(self) -> Path:
        """The run's result."""
        return self.path / "summary.json"

    def shards(self, split: str) -> Path:
        """Token shards of one split."""
        return self.path / "data" / split


@dataclass(frozen=True)
class LoadedRun:
    """A run read back: its settings, model (ready to generate) and tokenizer."""

    folder: RunFolder
    config: RunConfig
    model: TransformerLM
    tokenizer: Tokenizer
    step: int
    summary: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def autocast(self) -> AbstractContextManager[None]:
        """Around a forward pass: matrix products in the precision that the run asks for, on this device."""
        return runtime.autocast(
            self.device, runtime.choose_precision(self.config.train.precision, self.device).name
        )


def load_run(
    path: Path, *, device: str = "auto", checkpoint: str = "newest", context_length: int | None = None
) -> LoadedRun:
    """Read a checkpoint of a run; where the run averages its weights, the averages, as its validation does.

    Args:
        path: The run folder.
        device: Where the model shall be.
        checkpoint: "newest", "best" (the best validated one) or a step's number.
        context_length: How many tokens the model shall read at least, also more than it was trained with.

    Raises:
        ValueError: `path` is no run folder, it does not hold this checkpoint, whole, or its model has no
            positions for so many tokens.
    """
    folder = RunFolder(path)
    config = read_config(folder)
    longer = reading_on(config.model, context_length or 0)
    tokenizer = load_tokenizer(folder.tokenizer)
    with no_initial_values():
        model = build_model(config.model_copy(update={"model": longer}), tokenizer).to(choose_device(device))
    with read_checkpoint(folder, checkpoint) as saved:  # weights only: moments are twice as much
        averages = {name for name, p in model.named_parameters() if p.requires_grad} & {*saved.names("ema")}
        weights = {
            name: saved.read("ema" if name in averages else "model", name) for name in saved.names("model")
        }
    model.load_state_dict(weights)
    model.eval()
    return LoadedRun(folder, config, model, tokenizer, saved.step, _summary(folder))


def _summary(folder: RunFolder) -> dict[str, Any]:
    """The run's result; empty where there is none, or none that can be read: the weights are what counts."""
    try:
        return json.loads(folder.summary.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s: damaged (%s); it is left out.", folder.summary, error)
        return {}


def read_config(folder: RunFolder) -> RunConfig:
    """The settings a run was started with.

    Raises:
        ValueError: `folder` is no run folder, or its settings are not those of this version.
    """
    if not folder.config.is_file():
        raise ValueError(
            f"{folder.path}: no run folder (config.json is missing); give the folder of a finished run."
        )
    try:
        return load(RunConfig, folder.config)
    except ValueError as error:
        place = str(folder.config)
        lines = [line if line.startswith(place) else f"{place}: {line}" for line in str(error).splitlines()]
        raise ValueError("\n".join(lines)) from None


def read_checkpoint(folder: RunFolder, which: str = "newest") -> CheckpointReader:
    """A checkpoint, open for reading: "newest", "best" (the best validated one) or a step's number.

    Before the first validation of a step that was saved the newest is the best that is known.

    Raises:
        CheckpointError: There is none, or not this one.
        ValueError: `which` is none of these.
    """
    if which not in ("newest", "best") and not which.isdecimal():
        raise ValueError(f"checkpoint {which!r}: is newest, best or the number of a step.")
    if which.isdecimal():
        return _open_step(folder, int(which))
    path = latest(folder.checkpoints)
    if path is None:
        raise _nothing_complete(folder)
    newest = open_checkpoint(path)
    if which == "newest":
        return newest
    step = int(newest.state["best_step"])
    if step == 0:
        log.warning("%s: no checkpoint was validated yet; the newest is taken.", folder.path)
    if step in (0, newest.step):
        return newest
    newest.close()
    return _open_step(folder, step, " (the best)")


def _open_step(folder: RunFolder, step: int, what: str = "") -> CheckpointReader:
    wanted = folder.checkpoints / folder_name(step)
    if wanted.is_dir():
        return open_checkpoint(wanted)
    steps = ", ".join(f"{step_of(path):,}" for path in checkpoint_folders(folder.checkpoints))
    if not steps:
        raise _nothing_complete(folder)
    raise CheckpointError(
        f"{folder.path}: the checkpoint of step {step:,}{what} is not there; those of step {steps} are."
    )


def _nothing_complete(folder: RunFolder) -> CheckpointError:
    return CheckpointError(f"{folder.checkpoints}: holds no complete checkpoint; train the run first.")
