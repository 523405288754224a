"""Runs with adapters on the same base come in; a run with all of them, each by its weight, goes out.

    RUN_1/adapter, RUN_2/adapter, ... + RUN_1/base   ->   OUT: settings, tokenizer, validation text, weights

The sum is that of posttrain/lora_files.py. With one run and the weight 1 it is that run's model; with the
weight 0 it is the base; in between lies how strongly the adapter speaks.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from scratchlm.checkpoint import latest, load_checkpoint, save_checkpoint
from scratchlm.model import MODELS
from scratchlm.model.linear import no_initial_values
from scratchlm.posttrain.base import FOLDER
from scratchlm.posttrain.lora_files import SETTINGS, add_adapters
from scratchlm.runtime import write_text_atomically
from scratchlm.tokenizer import load_tokenizer
from scratchlm.train.folder import RunFolder, read_config


def merge_runs(runs: Mapping[Path, float], out: Path) -> Path:
    """Write a run folder with the adapters of `runs` added to their base; return it.

    Args:
        runs: Run folders that were trained with adapter=lora or dora, and the weight of each.
        out: A folder that is not there yet.

    Raises:
        ValueError: A run has no adapter, the runs have different bases, or `out` is there.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; choose another folder.")
    if not runs:
        raise ValueError("merge: name at least one run, such as runs/a=0.5.")
    bases = {run: _base_of(run) for run in runs}
    first, start = next(iter(bases.items()))
    for run, other in bases.items():
        if other.keys() != start.keys() or not all(torch.equal(other[name], start[name]) for name in start):
            raise ValueError(
                f"{run}: was trained on another base than {first}; adapters add up on one base only."
            )
    source, target = RunFolder(first), RunFolder(out)
    config, tokenizer = read_config(source), load_tokenizer(source.tokenizer)
    with no_initial_values():
        model = MODELS.get(config.model.name)(config.model.with_vocabulary(tokenizer.vocab_size))
    model.load_state_dict(start)
    add_adapters(model, {run / "adapter": weight for run, weight in runs.items()})
    out.mkdir(parents=True)
    tokenizer.save(target.tokenizer)
    if source.shards("valid").is_dir():
        shutil.copytree(source.shards("valid"), target.shards("valid"))
    identity = {"tokenizer": tokenizer.fingerprint}
    save_checkpoint(target.checkpoints, 0, {"model": model.state_dict()}, {"best_step": 0}, identity=identity)
    words = " + ".join(f"{weight:g} {run}" for run, weight in runs.items())
    named = config.model_copy(update={"name": out.name, "description": f"adapters: {words}"})
    write_text_atomically(target.config, named.to_json())
    return out


def _base_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights that a run with an adapter began with.

    Raises:
        ValueError: It is none.
    """
    if not (run / "adapter" / SETTINGS).is_file():
        raise ValueError(f"{run}: has no adapter; give runs that were trained with adapter=lora or dora.")
    saved = latest(run / FOLDER)
    if saved is None:
        raise ValueError(f"{run / FOLDER}: the weights that the run began with are missing.")
    return load_checkpoint(saved).tensors["model"]
