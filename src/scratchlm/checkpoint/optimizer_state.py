"""An optimizer's state as tensors and plain values, and back.

    {0: {"m": tensor, "v": tensor, "step": 10}}  ->  {"0.m": tensor, "0.v": tensor} and {"0": {"step": 10}}

The number is the parameter's place in the optimizer. Settings (learning rate, decay) are not part of it: they
come from the run's configuration and may change between two sittings.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors ("<parameter index>.<key>") and plain values.

    Example: AdamW -> ({"0.m": ..., "0.v": ...}, {"0": {"step": 10}}).
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put back what `optimizer_tensors` took; the settings in the parameter groups stay as they are."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
