"""A base run with random weights, data files, and settings, all tiny."""

import json

import torch

from scratchlm.checkpoint import save_checkpoint
from scratchlm.config import load
from scratchlm.data.prepare import prepare
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chat import CHAT_TOKENS
from scratchlm.train import recipes
from scratchlm.train.build import build_corpus, build_model
from scratchlm.train.changes import leaves
from scratchlm.train.config import RunConfig
from scratchlm.train.folder import RunFolder

TEXTS = ["Once upon a time there was a cat. It sat on 12 mats and said 345 words to the dog! " * 9]

WORDS = [
    "name=tiny",
    "corpus.num_train=8",
    "corpus.num_valid=8",
    "tokenizer.vocab_size=300",
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.d_ff=48",
    "model.context_length=64",
    "train.batch_tokens=64",
    "train.precision=float32",
]

TRAIN = {
    "train.steps": 4,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.sample_every": 100,
    "train.save_every": 2,
    "train.device": "cpu",
    "train.precision": "float32",
    "optimizer.lr": 3e-3,
    "sampling.max_new_tokens": 6,
    "base_tokens": 256,
}
"""Settings of a run of four steps."""


def tokenizer_of(*, chat=False):
    """A tokenizer with an odd number of ids."""
    return train_bpe(TEXTS, vocab_size=291, special_tokens=(END_OF_TEXT, *(CHAT_TOKENS if chat else ())))


def make_base(folder, *words, chat=False, text=True):
    """A run folder with random weights that every command can read."""
    config = load(RunConfig, recipes.find("demo"), [*WORDS, *words])
    tokenizer, run = tokenizer_of(chat=chat), RunFolder(folder)
    model = build_model(config, tokenizer)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    folder.mkdir(parents=True)
    tokenizer.save(run.tokenizer)
    if text:
        prepare(build_corpus(config), tokenizer, run.shards("valid"), split="valid", workers=1)
    save_checkpoint(run.checkpoints, 3, {"model": model.state_dict()}, {"best_step": 3})
    run.config.write_text(config.to_json(), encoding="utf-8")
    return folder


def write_lines(path, entries):
    """Write JSON Lines; what is a text already stands as it is."""
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sayings(number=40):
    """Entries in Alpaca's form, of different lengths."""
    return [
        {"instruction": f"Say {i % 7} {'cat ' * (i % 5)}", "output": f"It is {i % 7}{' and so' * (i % 3)}."}
        for i in range(number)
    ]


def settings(kind, base, *words, **more):
    """The settings of a short run of `kind`."""
    given = TRAIN | {"name": "tiny", "base": str(base)} | more
    return load(kind, None, [*(f"{key}={json.dumps(value)}" for key, value in leaves(given)), *words])
