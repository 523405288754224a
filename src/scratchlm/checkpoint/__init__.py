"""Checkpoints: named tensors and a JSON state go in, a verified folder comes out.

    manifest          what a checkpoint consists of, checked
    tensor_file       safetensors files, hashed as they are written and read
    folder            one checkpoint: save, load, verify
    retention         the newest that verifies; which stay and which go
    saver             saving in a thread while training goes on
    optimizer_state   an optimizer's state as tensors and plain values
    foreign           weights out of another program's .pt file

A checkpoint is complete and verified, or ignored. No pickle anywhere.
"""

from scratchlm.checkpoint.folder import Checkpoint, load_checkpoint, save_checkpoint, verify
from scratchlm.checkpoint.manifest import FORMAT, CheckpointError, Manifest
from scratchlm.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from scratchlm.checkpoint.retention import discard_after, keep_only, latest
from scratchlm.checkpoint.saver import Saver

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "Manifest",
    "Saver",
    "discard_after",
    "keep_only",
    "latest",
    "load_checkpoint",
    "optimizer_tensors",
    "restore_optimizer",
    "save_checkpoint",
    "verify",
]
