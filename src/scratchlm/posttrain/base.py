"""A run to go on from comes in; its model, its tokenizer with the tokens of a conversation, its text go out.

    BASE/checkpoints/step-...   ->   RUN/base/step-...           the weights, with rows for new tokens
    BASE/tokenizer              ->   RUN/tokenizer...json        and the tokens of a conversation
    BASE/data/valid             ->   RUN/data/valid              the same ids: what must not be forgotten

The copy makes a post-trained run whole by itself: it goes on, measures what it has forgotten and computes
the reference's probabilities though the base is gone. A new token's rows in embedding and head begin at the
mean of the others', so that at first it is as likely as an average token, plus noise of a tenth of their
spread, so that the four are not alike.

Source: rows at the mean: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.checkpoint import CheckpointError, latest, load_checkpoint, save_checkpoint
from scratchlm.data.shards import MANIFEST
from scratchlm.model import MODELS, ModelConfig
from scratchlm.model.config import reading_on
from scratchlm.model.linear import no_initial_values
from scratchlm.posttrain.config import PosttrainConfig
from scratchlm.runtime import folder_atomically, write_text_atomically
from scratchlm.tokenizer import Tokenizer, load_tokenizer
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.chat import CHAT_TOKENS
from scratchlm.train.config import RunConfig
from scratchlm.train.folder import RunFolder, load_run, read_config

FOLDER = "base"
"""Where a post-trained run keeps what it began with."""
NOISE = 0.1
"""Spread of the noise on new rows, in that of the others."""
TABLES = ("token_embeddings.weight", "lm_head.weight", "lm_head.bias")
"""Tensors with a row for each token."""


@dataclass(frozen=True)
class Base:
    """What post-training goes on from."""

    config: RunConfig
    """The base run's settings."""
    settings: ModelConfig
    """Its model's, with the new vocabulary."""
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    """Named as a plain model's; on the CPU."""
    step: int

    def model(self, device: torch.device | str = "cpu") -> Module:
        """Return a new model with the base's weights, in evaluation mode; it draws no random number."""
        with no_initial_values():  # a run gone on with makes its reference at another moment, in any thread
            model = MODELS.get(self.settings.name)(self.settings)
        model.load_state_dict(self.weights)
        return model.eval().to(device)

    def reference(self, device: torch.device | str = "cpu") -> Module:
        """Return the same with nothing to train: what answers are compared with."""
        return self.model(device).requires_grad_(False)


def open_base(config: PosttrainConfig, folder: RunFolder) -> Base:
    """Take what lies in the run folder already, or copy it there from the base run.

    Raises:
        ValueError: There is no such base run, or it cannot be gone on from in this way.
    """
    kept = folder.path / FOLDER
    if not (kept / "config.json").is_file():
        _copy(config, folder)
    saved_at = latest(kept)
    if saved_at is None:
        raise CheckpointError(f"{kept}: the weights that the run began with are damaged; start a new folder.")
    saved = load_checkpoint(saved_at)
    tokenizer = load_tokenizer(folder.tokenizer)
    base = read_config(RunFolder(kept))
    settings = base.model.with_vocabulary(tokenizer.vocab_size)
    return Base(base, settings, tokenizer, saved.tensors["model"], saved.step)


def _copy(config: PosttrainConfig, folder: RunFolder) -> None:
    """Put tokenizer, weights and validation text of the base run into the folder; settings come last."""
    if not (config.base / "config.json").is_file():
        raise ValueError(
            f"base={config.base}: no run folder (config.json is missing); give the folder of a trained run."
        )
    base = load_run(config.base, device="cpu", checkpoint=config.checkpoint)
    if base.config.model.name != "transformer":
        name = base.config.model.name
        raise ValueError(f"base={config.base}: is a {name}; post-training needs a transformer.")
    tokenizer = with_chat_tokens(base.tokenizer) if config.chat == "special" else base.tokenizer
    # not the run's seed: adapters of several runs add up on one base only
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: with_rows(tensor, tokenizer.vocab_size, generator) if name in TABLES else tensor
        for name, tensor in base.model.state_dict().items()
    }
    model = reading_on(base.config.model, config.context_length or 1)
    tokenizer.save(folder.tokenizer)
    _copy_text(RunFolder(config.base).shards("valid"), folder.shards("valid"), tokenizer)
    kept = folder.path / FOLDER
    shutil.rmtree(kept, ignore_errors=True)  # of a run that was killed here
    kept.mkdir(parents=True)
    state = {"best_step": 0, "best_loss": None, "training_seconds": 0.0, "optimizer": {}}
    identity = {"tokenizer": tokenizer.fingerprint}
    save_checkpoint(kept, base.step, {"model": weights}, state, identity=identity)
    settings = base.config.model_copy(update={"model": model})
    write_text_atomically(kept / "config.json", settings.to_json())


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the special tokens of a conversation; its own ids stay.

    Raises:
        ValueError: A tokenizer of this kind takes no further tokens.
    """
    if all(name in tokenizer.special_tokens for name in CHAT_TOKENS):
        return tokenizer
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} takes no further special tokens ({', '.join(CHAT_TOKENS)}); say "
            "chat=plain, and roles are words."
        )
    return BPETokenizer(
        tokenizer.vocab,
        tokenizer.merges,
        list(dict.fromkeys([*tokenizer.special_tokens, *CHAT_TOKENS])),
        pattern=tokenizer.pattern,
        ignore_merges=tokenizer.ignore_merges,
        normalization=tokenizer.normalization,
    )


def with_rows(table: Float[Tensor, "..."], rows: int, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Return a table of `rows` rows: new ones are the mean of the others plus a little noise."""
    missing = rows - len(table)
    if missing <= 0:
        return table
    spread = table.std(dim=0, keepdim=True) * NOISE
    noise = torch.randn(missing, *table.shape[1:], generator=generator)
    return torch.cat([table, table.mean(dim=0, keepdim=True) + spread * noise])


def _copy_text(source: Path, target: Path, tokenizer: Tokenizer) -> None:
    """Let the shards of `source` stand in `target` too: old ids mean the same to the larger tokenizer."""
    if not (source / MANIFEST).is_file() or target.exists():
        return
    with folder_atomically(target) as place:
        for file in source.iterdir():
            if file.suffix != ".npy":
                continue
            try:
                os.link(file.resolve(), place / file.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, place / file.name)
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        manifest |= {"tokenizer_fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
        write_text_atomically(place / MANIFEST, json.dumps(manifest, indent=2) + "\n")
