"""Recipes: a name or a path comes in, a file of settings comes out; also settings fitted to somebody's text.

Recipes are TOML or JSON files in the package's recipes/ folder, one a named run. `for_text` starts from the
recipe "quick" and fits vocabulary, model and length to the amount of text, so that a run takes minutes on two
CPU cores. `for_size` starts from "llama-125m" and gives a known model the steps usual for its size.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scratchlm.config import load
from scratchlm.model import ModelConfig, accounting
from scratchlm.model.sizes import named_size
from scratchlm.registry import UnknownNameError, unknown
from scratchlm.train.config import RunConfig

FOLDER = Path(__file__).parents[1] / "recipes"
SUFFIXES = (".toml", ".json")
"""Kinds of recipe files: TOML has room for remarks, JSON is what other programs write."""


class Size(NamedTuple):
    """Settings for a text of at least `bytes` bytes."""

    bytes: int
    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    context_length: int
    batch_tokens: int


SIZES = (
    Size(
        8 * 2**20,
        vocab_size=4096,
        num_layers=4,
        d_model=256,
        num_heads=4,
        context_length=256,
        batch_tokens=8192,
    ),
    Size(
        2**20, vocab_size=2048, num_layers=4, d_model=192, num_heads=6, context_length=256, batch_tokens=4096
    ),
    Size(
        64 * 2**10,
        vocab_size=1024,
        num_layers=3,
        d_model=128,
        num_heads=4,
        context_length=128,
        batch_tokens=2048,
    ),
    Size(0, vocab_size=512, num_layers=2, d_model=64, num_heads=4, context_length=64, batch_tokens=1024),
)
"""From large to small. A model of the first size trains about 13,000 tokens a second on two cores."""

MAX_TOKENS = 4_000_000
"""About five minutes of training on two CPU cores at the largest size."""
MAX_EPOCHS = 5
"""More passes make a model recite: 1 MB of WikiText was best after 5.4 (experiments/2026-11-own-text)."""
BYTES_PER_TOKEN = 3.0
"""A rough figure for a small vocabulary; it only sets the length of the run."""

STEPS = (
    (0.25e9, 2**19, 6e-4),
    (0.55e9, 2**19, 3e-4),
    (1.0e9, 2**19, 2.5e-4),
    (1.9e9, 2**20, 2e-4),
    (4.3e9, 2**20, 1.6e-4),
    (9.3e9, 2**21, 1.2e-4),
    (48e9, 2**21, 1e-4),
    (float("inf"), 2**22, 0.6e-4),
)
"""Parameters up to which (the means, by ratio, of neighbours) -> tokens in a step, learning rate: GPT-3's,
Brown et al. 2020, https://arxiv.org/abs/2005.14165, table 2.1, tokens as powers of two."""
TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556: where loss falls most for its arithmetic."""


def names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.iterdir() if path.suffix in SUFFIXES)


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe, or of somebody's own.

    Raises:
        UnknownNameError: Neither a shipped recipe nor a file.
    """
    path = Path(name_or_path)
    if path.suffix in SUFFIXES:
        if path.is_file():
            return path
        raise UnknownNameError(f"{path}: no such file. Shipped recipes: {', '.join(names())}.")
    if name_or_path not in names():
        if Path(name_or_path).exists():
            raise ValueError(
                f"{name_or_path}: is no recipe; for text of your own: scratchlm run {name_or_path}"
            )
        raise UnknownNameError(unknown("recipe", name_or_path, names()))
    return next(path for suffix in SUFFIXES if (path := FOLDER / f"{name_or_path}{suffix}").is_file())


def read(name_or_path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The settings of a recipe, with `key=value` words laid over them."""
    return load(RunConfig, find(name_or_path), overrides)


def for_text(paths: Iterable[Path], overrides: Iterable[str] = ()) -> RunConfig:
    """Settings for somebody's own files and folders, fitted to the amount of text.

    Raises:
        ValueError: A path does not exist, or there is no text at all.
    """
    places = [Path(path) for path in paths]
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: no such file or folder; give files or folders of text.")
    total = sum(_size(place) for place in places)
    if total == 0:
        raise ValueError(f"{', '.join(map(str, places))}: empty; give files or folders with text in them.")
    size = next(size for size in SIZES if total >= size.bytes)
    tokens = min(MAX_TOKENS, MAX_EPOCHS * total / BYTES_PER_TOKEN)
    steps = 8 * max(13, round(tokens / size.batch_tokens / 8))  # validations at eighths, the last at the end
    fitted = {
        "name": places[0].stem,
        "corpus.paths": [str(place) for place in places],
        "tokenizer.vocab_size": size.vocab_size,
        "model.num_layers": size.num_layers,
        "model.d_model": size.d_model,
        "model.num_heads": size.num_heads,
        "model.context_length": size.context_length,
        "train.batch_tokens": size.batch_tokens,
        "train.steps": steps,
        "train.eval_every": steps // 8,
        "train.sample_every": steps // 8,
        "train.save_every": steps // 4,
        "train.first_sample": min(50, steps // 2),
    }
    words = [f"{key}={json.dumps(value)}" for key, value in fitted.items()]
    return load(RunConfig, find("quick"), [*words, *overrides])


def for_size(name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Settings for a model with a name (model/sizes.py): its vocabulary, usual steps, 20 tokens a parameter.

    Raises:
        UnknownNameError: There is no such size.
    """
    size = ModelConfig(**named_size(name))
    parameters = accounting.num_parameters(size)
    batch_tokens, lr = next((tokens, lr) for limit, tokens, lr in STEPS if parameters <= limit)
    fitted = {
        "name": name,
        "description": f"{TOKENS_PER_PARAMETER} tokens for each parameter",
        "tokenizer.vocab_size": size.vocab_size,
        "model": name,
        "optimizer.lr": lr,
        "train.batch_tokens": batch_tokens,
        "train.steps": -(-TOKENS_PER_PARAMETER * parameters // batch_tokens),
    }
    words = [f"{key}={json.dumps(value)}" for key, value in fitted.items()]
    return load(RunConfig, find("llama-125m"), [*words, *overrides])


def _size(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    packed = {".gz": 3, ".zst": 3, ".parquet": 2}  # text grows by about this much when unpacked
    return sum(file.stat().st_size * packed.get(file.suffix, 1) for file in files)
