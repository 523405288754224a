"""A run folder as a real run would leave it, from random numbers: to test the report and to look at it."""

import json
import re
from pathlib import Path

import numpy as np

STORIES = (
    " the tim ball box. mom a was day Lily big the ran to it it it and and was.\nthe dog the "
    'the a red said said "\nto the the box was ball happy not in in the Tim and she',
    "One sunny day, Tim found a red ball in the garden. He wanted to show the ball to Lily, "
    'but the ball was in the big tree.\n\n"Can you help me?" asked Tim. "Yes," said Lily, and '
    "he took a long stick. The ball fell in the grass. Tim was happy, and they played in the "
    "garden until the sun was low.",
    "Once upon a time, a little rabbit named Nora lived near the river. Nora loved her blue "
    "kite more than anything else. One windy morning, Nora put the kite in the basket and went "
    'up the hill.\n\nBut at the top of the hill the basket was empty! "Where is my kite?" '
    'cried Nora. Her friend Ben the mouse came running. "There is a hole in your basket," said '
    'Ben. "Let us walk back and look."\n\nThey looked under the bridge and behind the mill. At '
    "last Ben saw something blue in the reeds. Nora hugged Ben and mended the basket. From "
    "that day on, Nora always looked twice before she left.",
)
FLOOR = 1.147
VOCABULARY = 1024

SUMMARY = {
    "name": "demo",
    "finished": "2026-11-20 12:00:00",
    "steps": 1200,
    "tokens": 4_915_200,
    "parameters": 2_164_416,
    "valid_loss": 1.31415,
    "best_valid_loss": 1.31415,
    "perplexity": 3.7216,
    "bits_per_byte": 0.4632,
    "floor_loss": FLOOR,
    "floor_bits_per_byte": 0.4043,
    "seconds": 161.3,
    "tokens_per_second": 30_472.0,
    "device": "cpu",
    "precision": "bfloat16",
    "compiled": True,
    "stopped_early": False,
    "corpus": "stories",
    "optimizer": "adamw",
    "attention": "auto",
    "tokenizer": {"vocab_size": VOCABULARY, "bytes_per_token": 4.093, "longest": [" something", " basket"]},
}

CONFIG = {
    "name": "demo",
    "description": "A small transformer that learns to tell stories in under four minutes.",
    "seed": 0,
    "corpus": {"name": "stories", "num_train": 30_000, "num_valid": 500, "seed": 0},
    "tokenizer": {"name": "bpe", "vocab_size": VOCABULARY, "pattern": "gpt2"},
    "data": {"workers": 2, "chunk_size": 262_144, "queue_size": 16},
    "model": {
        "vocab_size": 0, "name": "transformer", "context_length": 256, "d_model": 192, "num_layers": 4,
        "num_heads": 6, "num_kv_heads": None, "d_ff": None, "dropout": 0.0, "tied": False, "bias": False,
        "placement": "pre", "norm": {"name": "rmsnorm", "eps": 1e-5}, "position": {"name": "rope"},
        "feedforward": {"name": "swiglu"}, "qk_norm": False, "window": None, "softcap": None,
        "attention": "auto",
    },
    "batches": {"name": "documents"},
    "optimizer": {"name": "adamw", "lr": 0.003, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup_steps": 50, "floor": 0.1},
    "train": {"steps": 1200, "batch_tokens": 4096, "grad_clip": 1.0, "precision": "auto", "eval_every": 100},
    "sampling": {"temperature": 1.0, "top_k": None, "top_p": None, "max_new_tokens": 256, "seed": 0},
}  # fmt: skip

ENVIRONMENT = {
    "scratchlm": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu", "numpy": "2.3.5",
    "platform": "Linux-6.1-x86_64",
    "processor": "AMD EPYC 9R45", "cores": 2, "threads": 2, "memory_bytes": 8_200_000_000, "gpu": None,
    "commit": "32a5ac9",
}  # fmt: skip


def write_run(folder: Path, *, seed: int = 0) -> Path:
    """Write a run folder with everything but checkpoints and shards."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", metrics(random))
    write_rows(folder / "samples.jsonl", samples(random))
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def metrics(random: np.random.Generator) -> list[dict]:
    rows = []
    for step in [1, *range(10, 1201, 10)]:
        tokens, seconds = step * 4096, step * 0.134
        loss = FLOOR + 0.16 + 5.7 * np.exp(-step / 55) + 0.9 * np.exp(-step / 260)
        warm = min(1.0, step / 50)
        rows.append(
            {
                "kind": "train", "step": step, "tokens": tokens,
                "loss": float(loss + random.normal(0, 0.06)),
                "lr": float(0.003 * warm * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / 1200)))),
                "grad_norm": float(0.4 + 2.5 * np.exp(-step / 60) + random.exponential(0.08)),
                "tokens_per_second": float(30_500 + random.normal(0, 700)), "seconds": seconds,
            }
        )  # fmt: skip
        if step % 100 == 0:
            valid = SUMMARY["valid_loss"] if step == 1200 else float(loss + 0.004)
            bits = valid / np.log(2) / 4.093
            rows.append(
                {
                    "kind": "valid",
                    "step": step,
                    "tokens": tokens,
                    "loss": valid,
                    "bits_per_byte": bits,
                    "seconds": seconds,
                }
            )
    return rows


def samples(random: np.random.Generator) -> list[dict]:
    rows = []
    course = ((60, 0, 0.7, 0), (300, 1, 2, 5), (600, 1, 3, 6), (900, 2, 4, 7), (1200, 2, 5, 8))
    for step, text, sharpness, facts in course:
        pieces = re.findall(r"\s?\w{1,6}|\s?[^\w\s]|\s", STORIES[text])
        tokens = [{"text": piece, "probability": float(random.beta(sharpness, 0.8))} for piece in pieces]
        score = {"num_facts": facts, "num_consistent": max(0, facts - (1 if step < 1200 else 0))}
        rows.append(
            {"step": step, "prompt": "", "text": STORIES[text], "tokens": tokens, "consistency": score}
        )
    return rows


def write_tokenizer(folder: Path) -> None:
    """Add a small byte-pair tokenizer, trained on the stories above by the plain trainer."""
    from scratchlm.tokenizer.bpe import BPETokenizer
    from scratchlm.tokenizer.bpe_reference import train_bpe_reference

    special = ["<|endoftext|>"]
    vocab, merges = train_bpe_reference(list(STORIES[1:]), vocab_size=420, special_tokens=special)
    BPETokenizer(vocab, merges, special).save(folder / "tokenizer.scratchlm.json")
