"""Write the golden checkpoint of the present format: `python tests/checkpoint/golden/make_golden.py FOLDER`.

format-1 was written by this script when that was the format (commit 39ebaf9), without `identity`.
"""

import sys
from pathlib import Path

import torch

from scratchlm.checkpoint import save_checkpoint

TENSORS = {
    "model": {
        "token_embeddings.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3) / 8,
        "ln_final.weight": torch.tensor([1.0, -0.0, float("inf")]),
    },
    "optimizer": {"0.m": torch.full((4, 3), 0.125), "0.v": torch.full((4, 3), 2.0**-20)},
    "random": {"torch": torch.arange(16, dtype=torch.uint8)},
}
IDENTITY = {"tokenizer": "9f2c", "data": "51aa", "world_size": 2}
STATE = {"optimizer": {"0": {"step": 3}}, "best_loss": 1.5, "best_step": 2}

if __name__ == "__main__":
    save_checkpoint(Path(sys.argv[1]), 3, TENSORS, STATE, identity=IDENTITY)
