"""Small runs of every shape that is exported, and their logits here and there."""

import json

import torch

from scratchlm.checkpoint import save_checkpoint
from scratchlm.config import load
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chat import CHAT_TOKENS
from scratchlm.train import recipes
from scratchlm.train.build import build_model
from scratchlm.train.changes import leaves
from scratchlm.train.config import RunConfig
from scratchlm.train.folder import RunFolder

TEXTS = ["The cat sat on the mat, and the dog's 12 fleas sat on 345 caf\u00e9 chairs! " * 9]

SHAPES = {
    "llama": {"tied": False, "qk_norm": False, "num_kv_heads": 2},
    "llama tied": {"tied": True, "qk_norm": False, "num_kv_heads": 1},
    "llama biased": {"tied": False, "qk_norm": False, "bias": True},
    "qwen3": {"tied": True, "qk_norm": True, "num_kv_heads": 2},
    "qwen3 wide": {"tied": True, "qk_norm": True, "num_kv_heads": 2, "mup_width": 16, "mup_heads": 2},
    "llama wide": {"tied": False, "qk_norm": False, "mup_width": 16, "mup_heads": 2},
    "gpt2": {
        "tied": True,
        "qk_norm": False,
        "bias": True,
        "norm": {"name": "layernorm"},
        "position": {"name": "learned"},
        "feedforward": {"name": "gelu", "approximate": "tanh"},
    },
    "gpt2 plain": {
        "tied": False,
        "qk_norm": False,
        "norm": {"name": "layernorm", "bias": False, "eps": 1e-3},
        "position": {"name": "learned"},
        "feedforward": {"name": "gelu"},
    },
}
"""Settings over a model of 4 heads of 8, in two layers."""


def tokenizer_of(pattern="gpt2", chat=False):
    """A tokenizer with an odd number of ids."""
    names = (END_OF_TEXT, *(CHAT_TOKENS if chat else ()))
    return train_bpe(TEXTS, vocab_size=291, special_tokens=names, pattern=pattern)


def make_run(folder, shape="llama", *, tokenizer=None, **settings):
    """A run folder with random weights, every one of them other than it begins."""
    tokenizer = tokenizer or tokenizer_of()
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "context_length": 64, "d_ff": 48}
    chosen = {**sizes, **SHAPES[shape], **settings}
    words = ["name=tiny", *(f"{key}={json.dumps(value)}" for key, value in leaves({"model": chosen}))]
    config = load(RunConfig, recipes.find("quick"), words)
    model = build_model(config, tokenizer)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    tokenizer.save(run.tokenizer)
    save_checkpoint(run.checkpoints, 3, {"model": model.state_dict()}, {"best_step": 3})
    run.config.write_text(config.to_json(), encoding="utf-8")
    return folder


def ids_of(vocab_size, rows=2, length=24):
    """Random ids."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, vocab_size, (rows, length), generator=generator)
