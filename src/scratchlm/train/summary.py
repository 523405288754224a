"""The result of a run: a session and its last validation come in, what summary.json holds goes out."""

import time
from typing import TYPE_CHECKING, Any

import torch

from scratchlm.hardware import mfu
from scratchlm.kernels import KERNELS, choose
from scratchlm.model import accounting
from scratchlm.tokenizer import Tokenizer
from scratchlm.train.aim import Measured

if TYPE_CHECKING:
    from scratchlm.train.session import Session

LONGEST = 20
"""How many of the vocabulary's longest entries are shown."""


def summarise(session: "Session", final: Measured, *, stopped_early: bool) -> dict[str, Any]:
    """Everything that tables and reports show of a run."""
    config, floor, progress = session.config, session.floor, session.progress
    guard, plan, likelihood = session.trainer.guard, session.plan, final.likelihood
    kernels = kernels_used(config.model.attention, session.device)
    tokens = session.aim.tokens(config, progress.done_steps).so_far
    parameters = accounting.num_parameters(config.model.with_vocabulary(session.tokenizer.vocab_size))
    # a loss on a part of the split says nothing about the whole: then the last one counts
    best = min(progress.best_loss, final.loss) if session.part is None else final.loss
    return {
        "name": config.name,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "steps": progress.done_steps,
        "tokens": tokens,
        "batch_tokens": config.train.batch_tokens,
        "epochs": tokens / max(1, session.train_set.num_tokens),
        "parameters": parameters,
        "tokens_per_parameter": tokens / parameters,
        "valid_loss": final.loss,
        "best_valid_loss": best,
        "perplexity": likelihood.perplexity if likelihood else None,
        "bits_per_byte": likelihood.bits_per_byte if likelihood else None,
        "floor_loss": floor.loss if floor else None,
        "floor_bits_per_byte": floor.bits_per_byte if floor else None,
        "seconds": progress.training_seconds,
        "tokens_per_second": tokens / max(1e-9, progress.training_seconds),
        "device": str(session.device),
        "precision": plan.precision,
        "compiled": plan.compile,
        "mfu": plan.peak
        and mfu(plan.flops_per_token, tokens / max(1e-9, progress.training_seconds), plan.peak),
        "world_size": session.processes.world_size,
        "seed": config.seed,
        "stopped_early": stopped_early,
        "stopped_by": session.signals.name if stopped_early else None,
        "skipped_steps": guard.num_skipped,
        "spikes": guard.num_spikes,
        "rollbacks": guard.num_rollbacks,
        "corpus": config.corpus.name,
        "optimizer": config.optimizer.name,
        "attention": kernels["attention"],
        "kernels": kernels,
        "tokenizer": _vocabulary(session.tokenizer)
        | {"bytes_per_token": session.valid_set.num_bytes / max(1, session.valid_set.num_tokens)},
    } | session.aim.summary()


def kernels_used(attention: str, device: torch.device) -> dict[str, str]:
    """Return the name of each operation's implementation on `device`.

    Args:
        attention: The setting model.attention; the other operations are always chosen by the device.
        device: Where the model is trained.
    """
    named = {"attention": attention}
    return {op: choose(op, named.get(op, "auto"), device).name for op in KERNELS}


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    lengths = [(token, tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    longest = sorted(lengths, key=lambda entry: len(entry[1]), reverse=True)[:LONGEST]
    return {
        "vocab_size": tokenizer.vocab_size,
        "longest": [piece.decode("utf-8", errors="replace") for _, piece in longest],
    }
