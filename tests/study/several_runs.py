"""Run folders as several real runs would leave them: other optimizers, other seeds, one that is stopped."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
from synthetic_run import CONFIG, ENVIRONMENT, SUMMARY, write_rows

BATCH = 4096


def write_small_run(
    folder: Path,
    *,
    seed=0,
    optimizer="adamw",
    shift=0.0,
    noise=0.01,
    steps=1200,
    until=None,
    changes=(),
    tokenizer=None,
):
    """Write a run: its loss falls as in real runs, `shift` higher; `until` stops it early."""
    until = until or steps
    config = copy.deepcopy(CONFIG)
    config |= {"name": "demo", "seed": seed, "optimizer": {"name": optimizer, "lr": 0.003}}
    config["model"].pop("vocab_size")
    config["train"] |= {"steps": steps}
    for key, value in changes:
        owner = config
        for part in key.split(".")[:-1]:
            owner = owner[part]
        owner[key.split(".")[-1]] = value
    random = np.random.default_rng(seed + 1000 * len(optimizer))
    rows, valid = [], []
    for step in [1, *range(10, until + 1, 10)]:
        loss = 1.3 + shift + 5.0 * np.exp(-step / 55) + 0.9 * np.exp(-step / 260)
        row = {"step": step, "tokens": step * BATCH, "seconds": step * 0.13}
        measured = {"loss": loss + random.normal(0, 0.06), "lr": 0.003, "grad_norm": 0.5}
        rows.append({"kind": "train", **row, **measured, "tokens_per_second": 31_000.0})
        if step % 100 == 0:
            valid.append(
                {"kind": "valid", **row, "loss": loss + random.normal(0, noise), "bits_per_byte": 0.5}
            )
            rows.append(valid[-1])
    folder.mkdir(parents=True)
    write_rows(folder / "metrics.jsonl", rows)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    if tokenizer is not None:
        shutil.copy(tokenizer, folder / "tokenizer.scratchlm.json")
    for split, count in (("train", 2_400_000), ("valid", 40_000)):
        (folder / "data" / split).mkdir(parents=True)
        manifest = {"num_tokens": count, "tokenizer_fingerprint": "9f86d081"}
        (folder / "data" / split / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    if until == steps:
        summary = {**SUMMARY, "steps": steps, "tokens": steps * BATCH, "seconds": steps * 0.13}
        summary |= {"valid_loss": valid[-1]["loss"], "best_valid_loss": min(row["loss"] for row in valid)}
        summary |= {"tokens_per_second": BATCH / 0.13, "optimizer": optimizer, "seed": seed, "name": "demo"}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder
