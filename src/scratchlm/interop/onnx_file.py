r"""A run comes in, an ONNX file comes out: token ids -> logits, for onnxruntime and what is built on it.

    token_ids  int64, (batch, time)   ->   logits  float32, (batch, time, vocabulary)

The file holds the graph of what the model computes, so settings go that no class of other programs has, such
as squared ReLU, capped scores and windows. Batch and time are free, time up to the context length. The graph
is traced with the plain form of attention; there is no cache in it, so a text costs a whole pass for each
token. The tokenizer is in the folder that `export hf` writes.

Source: https://docs.pytorch.org/docs/stable/onnx_export.html; it needs the extra "onnx".
"""

import importlib.util
import logging
import warnings
from pathlib import Path

import torch

from scratchlm import runtime
from scratchlm.interop.hf import check_free
from scratchlm.model.transformer import TransformerLM
from scratchlm.train.folder import LoadedRun

INPUT, OUTPUT = "token_ids", "logits"


def export_onnx(run: LoadedRun, path: Path) -> None:
    """Write the file; it appears whole or not at all.

    Args:
        run: The run, read back.
        path: Must not exist.

    Raises:
        ValueError: The file exists, the model is no transformer, or too large for one file.
        ImportError: The extra is not installed.
    """
    config = run.model.config
    if config.name != "transformer":
        raise ValueError(f"this model cannot be exported: model={config.name} is no transformer.")
    check_free(path)
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ImportError("export onnx needs the 'onnx' extra: pip install 'scratchlm[onnx]'.")
    num_bytes = sum(4 * value.numel() for value in run.model.parameters())
    if num_bytes >= 2**31:  # protobuf's limit of a message
        raise ValueError(f"this model cannot be exported: {num_bytes:,} bytes of weights; ONNX holds 2 GB.")
    model = TransformerLM(config.model_copy(update={"attention": "reference"}))
    model.load_state_dict(run.model.state_dict())
    example = torch.zeros((2, min(16, config.context_length)), dtype=torch.int64)
    free = torch.export.Dim.AUTO
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)  # it warns of libraries that nobody needs here
    try:
        with runtime.replace_atomically(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.eval(),
                (example,),
                str(temporary),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: free, 1: free},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        told.setLevel(level)
