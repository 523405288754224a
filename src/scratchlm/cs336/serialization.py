"""A model, an optimizer and an iteration go in, one file comes out; and back, exactly.

The file is an ordinary safetensors file. Tensors are named model/<key> and optimizer/<index>/<key>; all
that is no tensor (iteration, parameter groups, integers in the optimizer's state) is JSON in the file's
metadata. JSON has no tuples, so (0.9, 0.95) is written as {"tuple": [0.9, 0.95]} and comes back as a tuple.

The course needs one path or one binary file object per checkpoint; the trainer's own checkpoints are folders
with checksums (checkpoint/). Neither holds pickled objects, so loading a stranger's file runs no code.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from scratchlm.runtime import replace_atomically

FORMAT = "scratchlm.cs336/1"
"""Written into every file; a file without it is refused."""

Place = str | os.PathLike | BinaryIO | IO[bytes] | io.BytesIO
"""A path, or a file object opened in binary mode."""


def save_training_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: Place
) -> None:
    """Write model, optimizer and iteration to `out`, a path (atomically) or an open file.

    Raises:
        ValueError: The optimizer's state or groups hold something that is neither a tensor nor a plain value.
    """
    tensors = {f"model/{key}": tensor for key, tensor in model.state_dict().items()}
    state: list[tuple[int, dict[str, Any]]] = []
    saved = optimizer.state_dict()
    for index, entries in saved["state"].items():
        found = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer/{index}/{key}": tensor for key, tensor in found.items()}
        state.append((index, {key: value for key, value in entries.items() if key not in found}))
    content = {"iteration": iteration, "state": state, "param_groups": saved["param_groups"]}
    # clone: tied weights share memory, which safetensors refuses to write twice
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    blob = save(flat, {"format": FORMAT, "content": json.dumps(_to_json(content))})
    if isinstance(out, str | os.PathLike):
        with replace_atomically(Path(out)) as temporary:
            temporary.write_bytes(blob)
    else:
        out.write(blob)


def load_training_state(src: Place, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `save_training_state` wrote into `model` and `optimizer`; return the iteration.

    Raises:
        ValueError: The file is missing, damaged, or was written by something else.
    """
    name = str(src) if isinstance(src, str | os.PathLike) else getattr(src, "name", "the file object")
    try:
        blob = Path(src).read_bytes() if isinstance(src, str | os.PathLike) else src.read()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}).") from None
    content, tensors = _parse(blob, name)
    state = {index: dict(entries) for index, entries in content["state"]}
    weights = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "model":
            weights[rest] = tensor
        else:
            index, _, entry = rest.partition("/")
            state[int(index)][entry] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
    return content["iteration"]


def _parse(blob: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a safetensors file into our content and its tensors. The header: 8 bytes of length, then JSON."""
    try:
        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{name}: not a readable safetensors file ({error}).") from None
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{name}: no checkpoint of run_save_checkpoint ({FORMAT}); give one that it wrote.")
    return _from_json(json.loads(metadata["content"])), tensors


def _to_json(value: object) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"an optimizer's setting or state is a {type(value).__name__}: {value!r}; only tensors, numbers, "
        "texts, lists, tuples and dictionaries can be saved without pickle."
    )


def _from_json(value: object) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if "tuple" in value:
            return tuple(_from_json(item) for item in value["tuple"])
        return {_from_json(key): _from_json(item) for key, item in value["dict"]}
    return value
