"""Named sizes: a name comes in, the settings of a known model go out.

GPT-2: Radford et al. 2019, table 2 (the small one has 124,439,808 parameters; the paper's 117M is a
miscount). cs336: Stanford CS336, assignment 1, section 7.2 (TinyStories) and assignment 2, section 1.1.
smollm-135m and tinyllama-1.1b: their published config.json files. llama-125m: LLaMA's parts at GPT-2
small's width and depth. llama-1b and llama-3b: Llama 3.2; llama-8b and llama-70b: Llama 3 (Grattafiori et al.
2024, https://arxiv.org/abs/2407.21783, table 3, and their published config.json files), with the rows of
8,192 tokens that they were mostly trained on.

`model=llama-1b` on the command line, or `name = "llama-1b"` in a recipe's [model], takes all settings of a
size but the vocabulary, which the tokenizer decides; settings beside it win.
"""

from typing import Any

from scratchlm.registry import UnknownNameError, unknown


def _gpt2(num_layers: int, num_heads: int, d_model: int) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "context_length": 1024,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "d_model": d_model,
        "d_ff": 4 * d_model,
        "bias": True,
        "tied": True,
        "norm": {"name": "layernorm", "eps": 1e-5},
        "position": {"name": "learned"},
        "feedforward": {"name": "gelu", "approximate": "tanh"},
    }


def _llama(
    num_layers: int, num_heads: int, d_model: int, d_ff: int, *, vocab_size: int, context_length: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "d_model": d_model,
        "d_ff": d_ff,
        "norm": {"name": "rmsnorm", "eps": 1e-5},
        "position": {"name": "rope", "theta": 10000.0},
        "feedforward": {"name": "swiglu"},
    }


def _llama3(num_layers: int, num_heads: int, d_model: int, d_ff: int, *, tied: bool) -> dict[str, Any]:
    return {
        **_llama(num_layers, num_heads, d_model, d_ff, vocab_size=128256, context_length=8192),
        "num_kv_heads": 8,
        "tied": tied,
        "position": {"name": "rope", "theta": 500000.0},
    }


SIZES: dict[str, dict[str, Any]] = {
    "gpt2-small": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "cs336-tinystories-17m": _llama(4, 16, 512, 1344, vocab_size=10000, context_length=256),
    "cs336-small": _llama(12, 12, 768, 3072, vocab_size=10000, context_length=512),
    "cs336-medium": _llama(24, 16, 1024, 4096, vocab_size=10000, context_length=512),
    "cs336-large": _llama(36, 20, 1280, 5120, vocab_size=10000, context_length=512),
    "cs336-xl": _llama(32, 32, 2560, 10240, vocab_size=10000, context_length=512),
    "llama-125m": _llama(12, 12, 768, 2048, vocab_size=32000, context_length=1024),
    "smollm-135m": {
        **_llama(30, 9, 576, 1536, vocab_size=49152, context_length=2048),
        "num_kv_heads": 3,
        "tied": True,
    },
    "tinyllama-1.1b": {
        **_llama(22, 32, 2048, 5632, vocab_size=32000, context_length=2048),
        "num_kv_heads": 4,
    },
    "llama-1b": _llama3(16, 32, 2048, 8192, tied=True),
    "llama-3b": _llama3(28, 24, 3072, 8192, tied=True),
    "llama-8b": _llama3(32, 32, 4096, 14336, tied=False),
    "llama-70b": _llama3(80, 64, 8192, 28672, tied=False),
}
"""Name -> settings of `ModelConfig`."""


def named_size(name: str) -> dict[str, Any]:
    """Return a fresh copy of the settings called `name`: ModelConfig(**named_size("gpt2-small")).

    Raises:
        UnknownNameError: There is no such size; the message lists them.
    """
    if name not in SIZES:
        raise UnknownNameError(unknown("model size", name, SIZES))
    return {key: dict(value) if isinstance(value, dict) else value for key, value in SIZES[name].items()}
