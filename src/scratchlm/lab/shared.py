"""What cells have in common is made once: settings come in, a tokenizer with its shards comes out, linked.

Cells with the same corpus, tokenizer and data settings read the same ids. The shards are linked into each run
folder (hard links: the space is used once, and a run folder stays whole when it is moved); where the disk
knows no links, they are copied.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchlm.lab.worker import Notes
from scratchlm.runtime import folder_atomically
from scratchlm.train.config import RunConfig
from scratchlm.train.events import PhaseStarted
from scratchlm.train.folder import RunFolder

SECTIONS = ("corpus", "tokenizer", "data")
SPLITS = ("train", "valid")


def shared_key(config: RunConfig) -> str:
    """The same for cells that read the same ids."""
    tree = config.model_dump(mode="json")
    chosen = {name: tree[name] for name in SECTIONS} | {"data": {"chunk_size": tree["data"]["chunk_size"]}}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def is_prepared(folder: Path) -> bool:
    """Whether tokenizer and shards lie in `folder`; they appear all at once."""
    return (folder / "tokenizer.scratchlm.json").is_file()


def prepare_shared(tree: Mapping[str, Any], folder: Path, notes: Notes) -> None:
    """Learn the tokenizer of a configuration and write both splits.

    Args:
        tree: A RunConfig as config.json holds it.
        folder: Where they shall lie; appears when everything is there.
        notes: Told what is being done.

    Raises:
        ValueError: The corpus is missing or empty.
        OSError: The disk is full or not writable.
    """
    from scratchlm.config import load
    from scratchlm.data.prepare import prepare
    from scratchlm.train.build import build_corpus, train_tokenizer

    config = load(RunConfig, base=tree)
    corpus = build_corpus(config)
    with folder_atomically(folder) as temporary:
        run = RunFolder(temporary)
        notes.take(PhaseStarted("tokenizer"))
        tokenizer = train_tokenizer(config, corpus, lambda *_: notes.write())
        for split in SPLITS:
            notes.take(PhaseStarted(f"{split} data"))
            prepare(
                corpus,
                tokenizer,
                run.shards(split),
                split=split,
                progress=lambda *_: notes.write(),
                **config.data.model_dump(),
            )
        tokenizer.save(run.tokenizer)


def link_shared(source: Path, target: Path) -> None:
    """Put tokenizer and shards into a run folder that has none yet."""
    have, want = RunFolder(source), RunFolder(target)
    target.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if not want.shards(split).exists():
            with folder_atomically(want.shards(split)) as temporary:
                for file in have.shards(split).iterdir():
                    _link(file, temporary / file.name)
    if not want.tokenizer.exists():
        shutil.copyfile(have.tokenizer, want.tokenizer)


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno is None or not file.is_file():
            raise
        shutil.copyfile(file, name)
