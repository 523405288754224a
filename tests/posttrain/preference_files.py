"""Pairs with a plain rule: the better answer says please. And runs on them."""

import json
import random

from scratchlm.config import load
from scratchlm.posttrain import run as posttrain
from scratchlm.posttrain.config import DpoConfig
from scratchlm.posttrain.datasets import Pair

WORDS = ["cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "ant", "elk", "emu", "yak"]


def pairs(number, first=0):
    """`number` pairs, all different."""
    for index in range(first, first + number):
        word, other = WORDS[index % 12], WORDS[index // 12 % 12]
        yield {
            "prompt": f"{word} {other} {index // 144}",
            "chosen": f"please, {word}",
            "rejected": f"now, {word}",
        }


def write(path, rows):
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(role, content):
    """A message."""
    return {"role": role, "content": content}


def some_pairs(number, seed=0):
    """Pairs of different lengths, some behind several turns or a system's words."""
    generator = random.Random(seed)
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "fleas"]

    def text():
        return " ".join(generator.choices(words, k=generator.randint(1, 6)))

    for index in range(number):
        prompt = [said("system", text())] * generator.randint(0, 1)
        for _ in range(generator.randint(0, 2)):
            prompt += [said("user", text()), said("assistant", text())]
        asked, answer = (*prompt, said("user", text())), text()
        yield Pair(asked, f"{answer} {index}", f"{text()} x{index}", f"pairs:{index}")


def settings(folder, base, *words):
    """Settings of a short run over pairs that lie in `folder`."""
    files = {
        "paths": [write(folder / "train.jsonl", pairs(40))],
        "valid_paths": [write(folder / "valid.jsonl", pairs(10, first=40))],
    }
    tree = {
        "name": "polite",
        "base": str(base),
        "data": {"name": "prompt_pairs", **files},
        "pairs_per_step": 8,
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "constant"},
        "train": {
            "steps": 8,
            "device": "cpu",
            "precision": "float32",
            "eval_every": 4,
            "sample_every": 100,
            "save_every": 4,
            "log_every": 1,
        },
        "sampling": {"max_new_tokens": 4},
        "base_tokens": 256,
    }
    return load(DpoConfig, None, words, base=tree)


def train(path, config, **how):
    """A whole run; its summary, the rows of its record, and the events."""
    events = []
    summary = posttrain.run("dpo", config, path, on_event=events.append, **how)
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return summary, [json.loads(line) for line in lines], events
