"""A device comes in; whether Triton kernels run on it, and if not why, goes out.

They run on NVIDIA GPUs from compute capability 8.0 on (A100: the first with bfloat16 matrix instructions and
asynchronous copies), and, slowly, on a CPU when TRITON_INTERPRET=1 was set before this package was imported:
Triton then executes every program of the grid in Python. The interpreter's bfloat16 arithmetic is wrong
(measured: triton 3.6), so kernels are tested there in float32 and float16.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch

OLDEST = (8, 0)
"""Compute capability of the oldest GPU that our kernels are written for."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the matrix kernels compute with."""


def interpreted() -> bool:
    """Return whether Triton was told to run kernels in Python, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: torch.device | None) -> str | None:
    """Return why kernels cannot run on a device, as a sentence; None if they can.

    For a device that is not known yet: only whether Triton is there at all.
    """
    if find_spec("triton") is None:
        return "Triton is not installed; pip install 'scratchlm[kernels]'."
    if device is None:
        return None
    if device.type == "cpu":
        return None if interpreted() else "it is no GPU."
    if device.type != "cuda" or torch.version.hip:
        return "our kernels are written for NVIDIA GPUs."
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        have, need = ".".join(map(str, capability)), ".".join(map(str, OLDEST))
        return f"its compute capability is {have}, our kernels need {need}."
    return None


def require(operation: str, *tensors: torch.Tensor | None) -> None:
    """Check that kernels run where these tensors are, and that all are on one device.

    A compiler is let pass: it cannot look at a GPU's properties, and the compiled operation fails by itself.

    Raises:
        ValueError: They do not, or are not.
    """
    if torch.compiler.is_compiling():
        return
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{operation}: the tensors are on several devices ({names}); move them to one.")
    for device in devices:
        if reason := obstacle(device):
            raise ValueError(f"{operation}=triton cannot run on {device}: {reason} Take {operation}=auto.")


def require_heads(operation: str, heads: Sequence[torch.Tensor], widest: int) -> None:
    """Check that queries, keys and values have one dtype that the kernels know, and heads that fit.

    Args:
        operation: For the message.
        heads: Tensors whose last dimension is the width of a head.
        widest: The widest head that the kernels take.

    Raises:
        ValueError: They do not.
    """
    dtypes = {tensor.dtype for tensor in heads}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{operation}: inputs of {names}; all must be bfloat16, or float16, or float32.")
    width = max(tensor.shape[-1] for tensor in heads)
    if width > widest:
        raise ValueError(
            f"{operation}: heads of width {width}; the kernels take up to {widest}. Take more heads, or "
            "attention=reference."
        )
