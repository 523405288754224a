"""Runs of twelve tiny steps in this process: their settings, and what their folders hold."""

from pathlib import Path

import torch

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.train import recipes
from scratchlm.train.metrics import JsonLines

TINY = [
    "corpus.num_train=120",
    "corpus.num_valid=10",
    "tokenizer.vocab_size=400",
    "model.context_length=64",
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "train.steps=12",
    "train.batch_tokens=512",
    "train.eval_every=4",
    "train.sample_every=6",
    "train.first_sample=2",
    "train.save_every=4",
    "train.log_every=1",
    "train.compile=false",
    "train.precision=float32",
    "sampling.max_new_tokens=20",
]


def tiny(*overrides: str):
    return recipes.read("demo", [*TINY, *overrides])


def weights(path: Path, group: str = "model") -> dict[str, torch.Tensor]:
    newest = latest(path / "checkpoints")
    assert newest is not None
    return load_checkpoint(newest).tensors[group]


def losses(path: Path) -> list[tuple[str, int, float]]:
    rows = JsonLines(path / "metrics.jsonl").rows()
    return [(row["kind"], row["step"], row["loss"]) for row in rows if "loss" in row]


def rows_of(path: Path, *kinds: str) -> list[dict]:
    """The rows of these kinds that a run recorded."""
    return [row for row in JsonLines(path / "metrics.jsonl").rows() if row["kind"] in kinds]
