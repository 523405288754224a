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
from functools import partial
from pathlib import Path
from typing import Any

from scratchlm import runtime
from scratchlm.data.corpora import Corpus
from scratchlm.data.prepare import prepare
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.process import Processes
from scratchlm.lock import run_lock
from scratchlm.loss import bits_per_byte
from scratchlm.tokenizer import Tokenizer, load_tokenizer
from scratchlm.train import build
from scratchlm.train.changes import Change, check_changes
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Finished, Message, OnEvent, PhaseEnded, PhaseProgress, PhaseStarted, ignore
from scratchlm.train.examine import Floor
from scratchlm.train.folder import RunFolder, read_config
from scratchlm.train.session import Session
from scratchlm.train.track import require_trackers


def run(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    on_event: OnEvent = ignore,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Do the whole way and return the summary (what summary.json holds).

    Args:
        config: The settings.
        path: The run folder: new or empty, unless `resume`.
        resume: Go on from the newest complete checkpoint in `path`.
        allow_changes: Resume although optimizer or schedule have changed.
        on_event: Called with each Event, in the first process.
        processes: Those that share the work; None: this one alone.

    Raises:
        ValueError: The folder holds another run or is in use, the settings do not fit the data, or another
            process has other data.
        OSError: The disk is full or not writable.
    """
    folder, processes = RunFolder(path), processes or Processes()
    build.check_sharing(config, processes.world_size)
    build.check_parts(config)
    if processes.first:
        path.mkdir(parents=True, exist_ok=True)
    with run_lock(path) if processes.first else contextlib.nullcontext():
        with processes.first_alone():
            changes = {}
            if processes.first:
                changes = _claim(folder, config, resume=resume, allow_changes=allow_changes)
            parts = _prepare(folder, config, on_event if processes.first else ignore)
        _, tokenizer, train_set, valid_set, _ = parts
        data = {"training data": train_set.fingerprint, "validation data": valid_set.fingerprint}
        processes.agree("corpus", {"tokenizer": tokenizer.fingerprint} | data)
        session = Session(folder, config, *parts, on_event, processes)
        summary = session.run(resume=resume, changes=changes, settle=partial(_write, folder, config))
        if processes.first:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            runtime.write_text_atomically(folder.summary, text)
            on_event(Finished(summary))
    return summary


def _claim(folder: RunFolder, config: RunConfig, *, resume: bool, allow_changes: bool) -> dict[str, Change]:
    """Make the folder this run's own, or see that it is; return the settings that changed.

    Raises:
        ValueError: It is somebody else's, or the settings do not fit those it has.
    """
    changes: dict[str, Change] = {}
    require_trackers(config.train.track)  # a missing library is told before hours of preparation
    if resume:
        if not folder.config.is_file():
            raise ValueError(
                f"{folder.path}: nothing to resume (config.json is missing); leave --resume out."
            )
        changes = check_changes(read_config(folder), config, folder.path, allow_learning=allow_changes)
    elif folder.config.exists() or folder.checkpoints.exists():
        raise ValueError(
            f"{folder.path}: holds a run already; continue it with --resume or choose another folder."
        )
    if not resume:  # a run that goes on has its settings until it stands that it can have others
        _write(folder, config)
    return changes


def _write(folder: RunFolder, config: RunConfig) -> None:
    """Write the settings; a result that was there is not theirs."""
    runtime.write_text_atomically(folder.config, config.to_json())
    folder.summary.unlink(missing_ok=True)


def _prepare(
    folder: RunFolder, config: RunConfig, on_event: OnEvent
) -> tuple[Corpus, Tokenizer, TokenDataset, TokenDataset, Floor | None]:
    """Corpus, tokenizer, both splits and the floor: made, or found in the folder."""
    corpus = build.build_corpus(config)
    tokenizer = _tokenizer(folder, config, corpus, on_event)
    train_set = _shards(folder, config, corpus, tokenizer, "train", on_event)
    valid_set = _shards(folder, config, corpus, tokenizer, "valid", on_event)
    return corpus, tokenizer, train_set, valid_set, _floor(corpus, valid_set, on_event)


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
                detail = f"{documents:,} document{'s' if documents != 1 else ''}, {tokens:,} tokens"
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
