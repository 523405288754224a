"""A snapshot: a run in progress comes in, everything a checkpoint needs goes out, and back again.

    tensors   model, optimizer (moments), ema, random (torch's generators)
    state     optimizer step counts, Python's and NumPy's generators, guard, best score, seconds, skipped
              data, lengths of metrics.jsonl and samples.jsonl
    identity  tokenizer, data, processes: what the tensors belong to

Parameters and moments are float32 whatever the precision of the products. Schedule and loader need no state:
both are pure functions of the step. The lengths of the records say where a resumed run goes on writing.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from scratchlm.optim.ema import EMA
from scratchlm.optim.groups import decay_groups
from scratchlm.train.trainer import Trainer


@dataclass
class Progress:
    """How far a run is."""

    done_steps: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    training_seconds: float = 0.0


def take(
    trainer: Trainer, progress: Progress, average: EMA | None, records: dict[str, int]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (tensors by group, plain state) of a run between two steps; `records` are lengths in bytes."""
    moments, plain = optimizer_tensors(trainer.optimizer)
    generators, numbers = runtime.random_state()
    tensors = {"model": trainer.model.state_dict(), "optimizer": moments, "random": generators}
    if average is not None:
        tensors["ema"] = average.state()
    state = {
        "optimizer": plain,
        "parameters": _order(trainer.model, trainer.optimizer.param_groups),
        "random": numbers,
        "guard": trainer.guard.state(),
        "data_offset": trainer.data_offset,
        "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
        "best_step": progress.best_step,
        "training_seconds": progress.training_seconds,
        "records": records,
    }
    return tensors, state


def put_back(saved: Checkpoint, trainer: Trainer, average: EMA | None) -> Progress:
    """Give a trainer what `take` took; return how far the run was."""
    trainer.model.load_state_dict(saved.tensors["model"])
    moments, plain = _renumbered(saved, trainer)
    restore_optimizer(trainer.optimizer, moments, plain)
    runtime.restore_random_state(saved.tensors["random"], saved.state.get("random"))
    if average is not None:
        # switched on after the checkpoint was written: the average begins at the weights as they are
        begin = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        average.restore(saved.tensors.get("ema") or begin)
    if "guard" in saved.state:
        trainer.guard.restore(saved.state["guard"])
    trainer.data_offset = saved.state.get("data_offset", 0)
    best = saved.state["best_loss"]
    return Progress(
        saved.step,
        math.inf if best is None else best,
        saved.state["best_step"],
        saved.state["training_seconds"],
    )


def identity(trainer: Trainer, tokenizer: str) -> dict[str, str | int]:
    """What a checkpoint belongs to: fingerprints of tokenizer and data, number of processes."""
    return {
        "tokenizer": tokenizer,
        "data": trainer.batches.loader.dataset.fingerprint,
        "world_size": trainer.processes.world_size,
    }


def _order(model: torch.nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    """The parameters' names in the order of an optimizer's groups: state is saved by number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in groups for p in group["params"]]


def _renumbered(saved: Checkpoint, trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's saved state under today's numbers: groups may have been made in another order."""
    model = trainer.model
    today = _order(model, trainer.optimizer.param_groups)
    numbers = {name: number for number, name in enumerate(today)}
    # checkpoints of format 1 know no names: they numbered matrices first, then vectors
    had = saved.state.get("parameters") or _order(model, decay_groups(model.named_parameters()))
    now = {str(number): str(numbers[name]) for number, name in enumerate(had)}
    moments = {}
    for name, tensor in saved.tensors.get("optimizer", {}).items():
        number, _, key = name.partition(".")
        moments[f"{now[number]}.{key}"] = tensor
    return moments, {now[number]: values for number, values in saved.state["optimizer"].items()}
