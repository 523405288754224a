"""What "auto" became when a run began: kept in plan.json, so that a resumed run computes in the same way.

Precision, compilation and the rows computed at once are chosen by what the machine measures at that moment.
All three change the last bits. A run that goes on takes the choices that it began with, whatever the machine
measures now; a setting that is not "auto" counts for itself, another number of processes chooses its rows
anew, and on another kind of device (a GPU's run that goes on on a CPU) all three are chosen anew.
"""

import json
from typing import Any

import torch

from scratchlm.distributed.process import Processes
from scratchlm.runtime import choose_device, log, write_text_atomically
from scratchlm.train.config import RunConfig
from scratchlm.train.folder import RunFolder
from scratchlm.train.plan import Plan, make_plan, probe_pays

AUTOMATIC = ("precision", "compile", "micro_batch_tokens")


def choose_plan(config: RunConfig, folder: RunFolder, processes: Processes, **known: int) -> Plan:
    """The plan of a run: as it began, or new; the same in all processes.

    A long new run tries a few steps first, compiled and not, where its plan says that this pays.

    Args:
        config: The run's settings.
        folder: Its folder.
        processes: Those that share the work.
        known: Sizes that make_plan takes: vocab_size, train_tokens, valid_tokens.
    """
    known["world_size"] = processes.world_size
    settled = settled_before(folder, processes.world_size, choose_device(config.train.device).type)
    if processes.world_size > 1:
        chosen = processes.from_first(_choices(config, settled, known) if processes.first else {})
        return make_plan(with_settled(config, chosen), **known)
    plan = make_plan(with_settled(config, settled), **known)
    if not settled and probe_pays(plan):
        log.info("trying a few steps to see whether compiling pays")
        return make_plan(config, probe=True, **known)
    return plan


def remember(folder: RunFolder, plan: Plan, world_size: int) -> None:
    """Write down what was chosen; a resumed run writes the same again."""
    text = json.dumps(_automatic(plan) | {"device": plan.device, "world_size": world_size}, indent=2)
    write_text_atomically(folder.plan, text + "\n")


def settled_before(folder: RunFolder, world_size: int, device: str) -> dict[str, Any]:
    """What was chosen when the run in `folder` began; empty for a new one, or on another kind of device.

    Raises:
        ValueError: plan.json is damaged.
    """
    if not folder.plan.is_file():
        return {}
    try:
        found = json.loads(folder.plan.read_text(encoding="utf-8"))
        settled = {name: found[name] for name in AUTOMATIC}
        same = found["world_size"] == world_size
        if torch.device(found["device"]).type != device:
            return {}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{folder.plan}: damaged ({error!r}); remove it and the run chooses anew, equal to rounding."
        ) from None
    if not same:
        del settled["micro_batch_tokens"]
    return settled


def _choices(config: RunConfig, settled: dict[str, Any], known: dict[str, int]) -> dict[str, Any]:
    """What "auto" becomes on this process's machine."""
    return _automatic(make_plan(with_settled(config, settled), **known))


def _automatic(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in AUTOMATIC}


def with_settled(config: RunConfig, settled: dict[str, Any]) -> RunConfig:
    """The settings with what was settled in place of "auto"."""
    train = config.train
    chosen = {name: value for name, value in settled.items() if getattr(train, name) == "auto"}
    return config.model_copy(update={"train": train.model_copy(update=chosen)})
