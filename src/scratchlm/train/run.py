"""A whole run: settings and a folder come in; tokenizer, shards, model, metrics and summary lie there after.

    corpus -> tokenizer -> shards -> model -> steps (validation, samples, checkpoints)
           -> summary.json, a row in results.md

Everything that is finished is kept: an interrupted run goes on with `resume` from its last complete
checkpoint, and phases whose result lies in the folder already are not done again.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchlm import runtime
from scratchlm.data.corpora import Corpus
from scratchlm.data.prepare import prepare
from scratchlm.data.shards import TokenDataset
from scratchlm.loss import bits_per_byte
from scratchlm.tokenizer import Tokenizer, load_tokenizer
from scratchlm.train import build
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Finished, Message, OnEvent, PhaseEnded, PhaseProgress, PhaseStarted, ignore
from scratchlm.train.folder import RunFolder, read_config
from scratchlm.train.session import Floor, Session


def run(config: RunConfig, path: Path, *, resume: bool = False, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Do the whole way and return the summary (what summary.json holds).

    Args:
        config: The settings.
        path: The run folder: new or empty, unless `resume`.
        resume: Go on from the newest complete checkpoint in `path`.
        on_event: Called with each Event.

    Raises:
        ValueError: The folder holds another run, or the settings do not fit the data.
        OSError: The disk is full or not writable.
    """
    folder = RunFolder(path)
    _claim(folder, config, resume=resume)
    corpus = build.build_corpus(config)
    tokenizer = _tokenizer(folder, config, corpus, on_event)
    train_set = _shards(folder, config, corpus, tokenizer, "train", on_event)
    valid_set = _shards(folder, config, corpus, tokenizer, "valid", on_event)
    floor = _floor(corpus, valid_set, on_event)
    session = Session(folder, config, corpus, tokenizer, train_set, valid_set, floor, on_event)
    summary = session.run(resume=resume)
    runtime.write_text_atomically(folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    on_event(Finished(summary))
    return summary


def _claim(folder: RunFolder, config: RunConfig, *, resume: bool) -> None:
    """Make the folder this run's own, or see that it is.

    Raises:
        ValueError: It is somebody else's.
    """
    occupied = folder.config.exists() or folder.checkpoints.exists()
    if resume:
        if not folder.config.is_file():
            raise ValueError(
                f"{folder.path}: nothing to resume (config.json is missing); leave --resume out."
            )
        _same_run(read_config(folder), config, folder.path)
    elif occupied:
        raise ValueError(
            f"{folder.path}: holds a run already; continue it with --resume or choose another folder."
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    runtime.write_text_atomically(folder.config, config.to_json())


def _same_run(old: RunConfig, new: RunConfig, path: Path) -> None:
    """Refuse to resume with settings that change what is learned; lengths and intervals may change."""
    meaning = ("corpus", "tokenizer", "model", "seed")
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed = [key for key in meaning if before[key] != after[key]]
    if changed:
        lines = ", ".join(f"{key}: {before[key]} -> {after[key]}" for key in changed)
        raise ValueError(
            f"{path}: these settings differ from the run to resume: {lines}; start a new folder."
        )


def _tokenizer(folder: RunFolder, config: RunConfig, corpus: Corpus, on_event: OnEvent) -> Tokenizer:
    if folder.tokenizer.is_file():
        return load_tokenizer(folder.tokenizer)
    with _phase("tokenizer", f"{config.tokenizer.name} on {config.corpus.name}", on_event) as ended:

        def progress(phase: str, done: int, total: int) -> None:
            on_event(PhaseProgress("tokenizer", done, total or None, phase))

        tokenizer = build.train_tokenizer(config, corpus, progress)
        tokenizer.save(folder.tokenizer)
        ended["vocab_size"] = tokenizer.vocab_size
    return tokenizer


def _shards(
    folder: RunFolder, config: RunConfig, corpus: Corpus, tokenizer: Tokenizer, split: str, on_event: OnEvent
) -> TokenDataset:
    target = folder.shards(split)
    if not (target / "manifest.json").is_file():
        with _phase(f"{split} data", "documents -> token shards", on_event) as ended:

            def progress(done: int, total: int | None, documents: int, tokens: int) -> None:
                detail = f"{documents:,} documents, {tokens:,} tokens"
                on_event(PhaseProgress(f"{split} data", done, total, "bytes", detail))

            settings = config.data.model_dump()
            stats = prepare(corpus, tokenizer, target, split=split, progress=progress, **settings)
            ended.update(
                documents=stats.documents, tokens=stats.tokens, bytes_per_token=stats.bytes_per_token
            )
    return TokenDataset.open(target, tokenizer_fingerprint=tokenizer.fingerprint)


def _floor(corpus: Corpus, valid_set: TokenDataset, on_event: OnEvent) -> Floor | None:
    """The loss that no model can beat on the validation split, where the corpus knows it."""
    nats = 0.0
    for chunk in corpus.chunks("valid"):
        log_probability = corpus.log_probability(chunk.text)
        if log_probability is None:
            return None
        nats -= log_probability
    floor = nats / valid_set.num_tokens
    bits = bits_per_byte(floor, valid_set.num_tokens, valid_set.num_bytes)
    on_event(
        Message(f"No model can beat {floor:.3f} nats per token ({bits:.3f} bits per byte) on this corpus.")
    )
    return Floor(floor, bits)


@contextlib.contextmanager
def _phase(name: str, detail: str, on_event: OnEvent) -> Iterator[dict[str, Any]]:
    """Tell the watcher when a phase begins and ends; yields a dict for the figures at its end."""
    figures: dict[str, Any] = {}
    started = time.perf_counter()
    on_event(PhaseStarted(name, detail))
    yield figures
    on_event(PhaseEnded(name, time.perf_counter() - started, figures))
