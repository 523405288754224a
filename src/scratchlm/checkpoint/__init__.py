"""Checkpoints: named tensors and a JSON state go in, a verified folder comes out.

    manifest          what a checkpoint consists of, checked
    tensor_file       safetensors files, hashed as they are written and read
    piece             a process's rows of a tensor; what all have is shared out
    folder            one checkpoint is written, by one process or several
    reader            one checkpoint is read: all of it, or rows of a tensor; verify
    coordinator       several processes agree on one save without waiting for each other
    retention         the newest that verifies; which stay and which go
    saver             saving in a thread while training goes on
    optimizer_state   an optimizer's state as tensors and plain values
    foreign           weights out of another program's .pt file

A checkpoint is complete and verified, or ignored. No pickle anywhere.
"""

from scratchlm.checkpoint.coordinator import Coordinator
from scratchlm.checkpoint.folder import save_checkpoint
from scratchlm.checkpoint.manifest import FORMAT, CheckpointError, Manifest
from scratchlm.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from scratchlm.checkpoint.piece import Piece
from scratchlm.checkpoint.reader import Checkpoint, CheckpointReader, load_checkpoint, open_checkpoint, verify
from scratchlm.checkpoint.retention import discard_after, keep_only, latest, of_later_version
from scratchlm.checkpoint.saver import Saver

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "CheckpointReader",
    "Coordinator",
    "Manifest",
    "Piece",
    "Saver",
    "discard_after",
    "keep_only",
    "latest",
    "load_checkpoint",
    "of_later_version",
    "open_checkpoint",
    "optimizer_tensors",
    "restore_optimizer",
    "save_checkpoint",
    "verify",
]
