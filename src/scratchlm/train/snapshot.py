"""A snapshot: a run in progress comes in, everything a checkpoint needs goes out, and back again.

    tensors   model, optimizer (moments), ema, random (torch's generators)
    state     optimizer step counts, Python's and NumPy's generators, guard, best score, seconds, skipped
              data, lengths of metrics.jsonl and samples.jsonl
    identity  tokenizer, data, processes: what the tensors belong to

Parameters and moments are float32 whatever the precision of the products. Schedule and loader need no state:
both are pure functions of the step. The lengths of the records say where a resumed run goes on writing.
Of several processes each says what it keeps: all of a tensor, or rows of it (an engine's `place`); a
checkpoint is the same tensors whatever the engine and the number of processes, and is read in the same way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import (
    CheckpointError,
    CheckpointReader,
    Piece,
    optimizer_tensors,
    restore_optimizer,
)
from scratchlm.distributed.engine import Engine
from scratchlm.optim.ema import EMA
from scratchlm.optim.groups import decay_groups
from scratchlm.train.trainer import Trainer


@dataclass
class Progress:
    """How far a run is."""

    done_steps: int = 0
    best_loss: float = math.inf
    """Of all validations."""
    best_saved_loss: float = math.inf
    """Of the validations at steps that have a checkpoint."""
    best_step: int = 0
    """Step of that one; 0: there is none yet."""
    training_seconds: float = 0.0


def take(
    trainer: Trainer, progress: Progress, average: EMA | None, records: dict[str, int]
) -> tuple[dict[str, dict[str, Tensor | Piece]], dict[str, Any]]:
    """Return (tensors by group, plain state) of a run between two steps; every process must call it.

    Args:
        trainer: Has model and optimizer, or this process's pieces of them.
        progress: How far the run is.
        average: The average of weights, if there is one.
        records: Lengths in bytes.
    """
    engine = trainer.engine
    moments, plain = _optimizer_state(trainer)
    generators, numbers = runtime.random_state()
    first = trainer.processes.first  # each process has generators of its own; one's are saved
    tensors = {
        "model": _weights(engine),
        "optimizer": moments,
        "random": {name: Piece.whole(tensor) for name, tensor in generators.items()} if first else {},
    }
    if average is not None:
        tensors["ema"] = _placed(engine, average.state())
    state = {
        "optimizer": plain,
        "parameters": _order(engine, trainer.optimizer.param_groups),
        "random": numbers,
        "guard": trainer.guard.state(),
        "data_offset": trainer.data_offset,
        "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
        "best_saved_loss": progress.best_saved_loss if math.isfinite(progress.best_saved_loss) else None,
        "best_step": progress.best_step,
        "training_seconds": progress.training_seconds,
        "records": records,
    }
    return tensors, state


def put_back(
    saved: CheckpointReader,
    trainer: Trainer,
    average: EMA | None,
    load: Callable[[CheckpointReader, Engine], None] | None = None,
) -> Progress:
    """Give a trainer what `take` took, its pieces of it; return how far the run was.

    Args:
        saved: The checkpoint.
        trainer: Takes model, optimizer and guard.
        average: The average of weights, if there is one.
        load: What gives the model its weights; None: `load_weights`.
    """
    engine = trainer.engine
    (load or load_weights)(saved, engine)
    restore_optimizer(engine.keeper, *_own_moments(saved, trainer))
    random = {name: saved.read("random", name) for name in saved.names("random")}
    runtime.restore_random_state(random, saved.state.get("random"))
    if average is not None:
        names = saved.names("ema")
        # switched on after the checkpoint was written: the average begins at the weights as they are
        begin = {name: p for name, p in engine.named_parameters().items() if p.requires_grad}
        average.restore({name: _read(saved, "ema", name, engine) for name in names} or begin)
    if "guard" in saved.state:
        trainer.guard.restore(saved.state["guard"])
    trainer.data_offset = saved.state.get("data_offset", 0)
    best = saved.state["best_loss"]
    best_saved = saved.state.get("best_saved_loss", best)  # older ones did not tell them apart
    return Progress(
        done_steps=saved.step,
        best_loss=math.inf if best is None else best,
        best_saved_loss=math.inf if best_saved is None else best_saved,
        best_step=saved.state["best_step"],
        training_seconds=saved.state["training_seconds"],
    )


def identity(trainer: Trainer, tokenizer: str) -> dict[str, str | int]:
    """What a checkpoint belongs to: fingerprints of tokenizer and data, number of processes."""
    return {
        "tokenizer": tokenizer,
        "data": trainer.batches.loader.fingerprint,
        "world_size": trainer.processes.world_size,
    }


def _weights(engine: Engine) -> dict[str, Tensor | Piece]:
    """The model's state, of which this process may have rows only."""
    if engine.whole:
        return dict(engine.model.state_dict())
    rows, parameters = engine.named_parameters(), dict(engine.model.named_parameters())
    rest = {name: t for name, t in engine.model.state_dict().items() if name not in parameters}
    return rest | _placed(engine, rows)


def _placed(engine: Engine, tensors: dict[str, Tensor]) -> dict[str, Tensor | Piece]:
    """Tensors by the parameters' names, as pieces where this process has rows only."""
    kept = engine.named_parameters()
    found: dict[str, Tensor | Piece] = {}
    for name, tensor in tensors.items():
        place = engine.place(name) if name in kept else None
        if place is None:
            found[name] = tensor
        elif engine.saves:
            found[name] = Piece(tensor, *place)
    return found


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor | Piece], dict[str, Any]]:
    """The moments as "number.key" and step counts by number: of parameters in the trainer's optimizer."""
    engine = trainer.engine
    tensors, plain = optimizer_tensors(engine.keeper)
    own = _order(engine, engine.keeper.param_groups)
    numbers = {name: number for number, name in enumerate(_order(engine, trainer.optimizer.param_groups))}
    now = {str(index): str(numbers[name]) for index, name in enumerate(own)}
    kept, moments = engine.named_parameters(), {}
    for key, tensor in tensors.items():
        index, _, what = key.partition(".")
        name = own[int(index)]
        place = engine.place(name) if tensor.shape == kept[name].shape else None
        saved: Tensor | Piece = Piece.whole(tensor) if engine.owns_state else tensor
        if place is not None:
            saved = Piece(tensor, *place)
        if place is None or engine.saves:
            moments[f"{now[index]}.{what}"] = saved
    return moments, engine.merged({now[index]: values for index, values in plain.items()})


def load_weights(saved: CheckpointReader, engine: Engine) -> None:
    """Give the engine's model the weights of a checkpoint, this process's pieces of them."""
    if engine.whole:
        engine.model.load_state_dict({name: saved.read("model", name) for name in saved.names("model")})
        return
    with torch.no_grad():
        for name, tensor in (dict(engine.model.named_buffers()) | engine.named_parameters()).items():
            if name in saved.names("model"):
                tensor.copy_(_read(saved, "model", name, engine))
            elif name in engine.named_parameters():
                raise CheckpointError(f"{saved.path}: has no {name}; resume with the model that was trained.")


def _read(saved: CheckpointReader, group: str, key: str, engine: Engine, name: str = "") -> Tensor:
    """A tensor that belongs to a parameter: as much of it as this process keeps."""
    kept = engine.named_parameters().get(name or key)
    place = engine.place(name or key) if kept is not None else None
    if place is None or saved.shape(group, key)[:1] != (place.rows,):
        return saved.read(group, key)
    return saved.read(group, key, place.first_row, kept.shape[0])


def _own_moments(saved: CheckpointReader, trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This process's part of the optimizer's saved state, under the numbers that it has here.

    Groups may have been made in another order when it was saved, and another number of processes may have
    shared it.
    """
    engine = trainer.engine
    own = {name: number for number, name in enumerate(_order(engine, engine.keeper.param_groups))}
    # checkpoints of format 1 know no names: they numbered matrices first, then vectors
    had = saved.state.get("parameters") or _order(engine, decay_groups(engine.named_parameters().items()))
    moments = {}
    for key in saved.names("optimizer"):
        number, _, what = key.partition(".")
        name = had[int(number)]
        if name in own:
            moments[f"{own[name]}.{what}"] = _read(saved, "optimizer", key, engine, name)
    plain = {
        str(own[had[int(number)]]): values
        for number, values in saved.state["optimizer"].items()
        if had[int(number)] in own
    }
    return moments, plain


def _order(engine: Engine, groups: list[dict[str, Any]]) -> list[str]:
    """The parameters' names in the order of an optimizer's groups: state is saved by number."""
    names = {id(parameter): name for name, parameter in engine.named_parameters().items()}
    return [names[id(p)] for group in groups for p in group["params"]]
