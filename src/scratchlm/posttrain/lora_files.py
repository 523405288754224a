"""Adapters as files of their own: what was trained goes out alone; one or several come in on a base.

    FOLDER/adapter.json          {"name": "lora", "rank": 8, ...}
    FOLDER/adapter.safetensors   layers.0.attn.q_proj.lora_a, ...

    W' = W + sum of weight_i * (W_i' - W)          several adapters on one base, each by its weight

The sum of several is formed in the plain weights: any number of them may be of any kind and rank. Adding two
works as far as they move the model in directions that do not disturb each other.

Source: Ilharco et al. 2022, "Editing models with task arithmetic", https://arxiv.org/abs/2212.04089.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

from scratchlm.posttrain import ADAPTERS
from scratchlm.posttrain.lora import Adapter, LowRank, merged_state, own_state
from scratchlm.runtime import replace_atomically, write_text_atomically

SETTINGS, TENSORS = "adapter.json", "adapter.safetensors"
"""The files of an adapter."""


def save_adapter(model: Module, adapter: Adapter, folder: Path) -> None:
    """Write what an adapter trained, and its settings.

    Args:
        model: As `adapter` made it.
        adapter: lora or dora.
        folder: Is made if need be.

    Raises:
        ValueError: All of the model was trained: there is no adapter.
    """
    if not isinstance(adapter, LowRank):
        raise ValueError(
            "adapter=full: all of the model was trained, and its checkpoint has it; nothing to save."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder / TENSORS) as place:
        save_file({name: tensor.contiguous().cpu() for name, tensor in own_state(model).items()}, place)
    write_text_atomically(folder / SETTINGS, json.dumps(adapter.settings(), indent=2) + "\n")


def load_adapter(model: Module, folder: Path) -> Adapter:
    """Put a saved adapter on a plain model with its base's weights; return the adapter.

    Raises:
        ValueError: The folder holds no adapter, or one of another model.
    """
    settings = _settings(folder)
    adapter = ADAPTERS.build(settings.pop("name"), **settings)
    tensors = _tensors(folder / TENSORS)
    adapter.apply(model, torch.Generator().manual_seed(0))
    own = own_state(model)
    for name in sorted(tensors.keys() | own.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            what = "the model has no" if name not in own else "the adapter is of another size or kind at"
            raise ValueError(f"{folder}: {what} {name}; give the base that it was trained on.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return adapter


def add_adapters(model: Module, folders: Mapping[Path, float]) -> None:
    """Add saved adapters to a plain model's weights.

    Args:
        model: Has the base's weights; they change.
        folders: Where each adapter lies, and its weight: 1 as it was trained, 0.5 half as strong.

    Raises:
        ValueError: As `load_adapter`.
    """
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = {name: tensor.clone() for name, tensor in start.items()}
    for folder, weight in folders.items():
        other = copy.deepcopy(model)
        other.load_state_dict(start)
        load_adapter(other, folder)
        for name, tensor in merged_state(other).items():
            total[name] += weight * (tensor - start[name])
    model.load_state_dict(total)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{path}: is missing; give a folder that an adapter was saved to.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ValueError(f"{path}: holds no settings of an adapter.")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); save the adapter again.") from None
