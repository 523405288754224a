"""A .pt file of somebody else comes in, named float32 tensors come out; nothing in it is ever run.

    {"token_embeddings.weight": tensor, ...}                          a state dict
    {"model": {...}, "optimizer": {...}, "iteration": 5000}           one inside a training state

A .pt file is a zip archive of a pickle and of raw numbers. Unpickling can run any code, so it is read with
weights_only=True, said explicitly: that allows tensors and plain containers alone, and an environment
variable can change torch's default but not what the call says. Before that, the checksums that every zip
archive carries are compared (torch.load ignores them and would load a flipped bit) and packed entries are
refused, because a small file could unfold to any size.

Names are those of this library, which are Stanford CS336's; prefixes of torch.compile and DDP are dropped.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html, "torch.load with weights_only=True".
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchlm.registry import unknown

MODEL_KEYS = ("model", "model_state_dict", "state_dict")
STEP_KEYS = ("iteration", "step", "iter")
"""Where training states keep the weights and the number of steps."""

PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""

_NAME = re.compile(r"(token_embeddings|position_embeddings|ln_final|lm_head|layers\.\d+\.[a-z0-9_.]+)\.\w+")


class Foreign(NamedTuple):
    """Weights of another program."""

    step: int
    tensors: dict[str, Tensor]


def read_foreign(file: Path) -> Foreign:
    """Read the model's weights from a .pt file.

    Raises:
        ValueError: It is no file that torch.save wrote, damaged, holds more than tensors and plain values, or
            its names are not ours.
    """
    _check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{file}: holds more than tensors and plain values, and reading that could run code; ask for the "
            f"weights alone, torch.save(model.state_dict(), FILE). ({reason})"
        ) from None
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        raise ValueError(f"{file}: not readable ({str(error).partition(chr(10))[0]}).") from None
    tensors = _named_tensors(_weights_in(content, file), file)
    return Foreign(_step_in(content), tensors)


def check_fits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    """Compare names and shapes with those of a model.

    Args:
        tensors: What was read from `file`.
        wanted: The model's state dict; on torch's meta device it needs no memory.
        file: For the message.

    Raises:
        ValueError: A name is missing or unknown, or a shape differs; the message says which and how.
    """
    for name in tensors:
        if name not in wanted:
            raise ValueError(f"{file}: {unknown('weight', name, wanted)}")
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"{file}: {name} is missing; the model's settings differ from the file's.")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{file}: {name} has the shape {list(tensors[name].shape)}, the model needs "
                f"{list(tensor.shape)}; the model's settings differ from the file's."
            )


def _check_archive(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a .pt file that torch.save wrote.")
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type]
            if packed:
                raise ValueError(f"{file}: {packed[0]} is compressed; torch.save never does that.")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{file}: not a file of torch.save ({error}); one from before torch 1.6 must be saved again."
        ) from None
    if damaged:
        raise ValueError(f"{file}: {damaged} has the wrong checksum; the file is damaged.")


def _weights_in(content: Any, file: Path) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        inside = [content[key] for key in MODEL_KEYS if isinstance(content.get(key), Mapping)]
        found = inside[0] if inside else content
        if found and all(isinstance(name, str) and isinstance(found[name], Tensor) for name in found):
            return found
    raise ValueError(
        f"{file}: no weights found; a dictionary of tensors is needed, or one under {', '.join(MODEL_KEYS)}."
    )


def _step_in(content: Mapping[str, Any]) -> int:
    found = [content[key] for key in STEP_KEYS if type(content.get(key)) is int and content[key] >= 0]
    return found[0] if found else 0


def _named_tensors(weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{file}: {key} is no name of this library; CS336's are known: token_embeddings.weight, "
                "layers.0.attn.q_proj.weight, layers.0.ffn.w1.weight, ln_final.weight, lm_head.weight."
            )
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise ValueError(f"{file}: {key} is not a dense tensor of floating-point numbers.")
        # a stride of 0 lets four bytes claim to be any number of elements
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{file}: {key} is larger than what the file holds of it.")
        tensors[name] = tensor.to(torch.float32, memory_format=torch.contiguous_format).clone()
    return tensors
