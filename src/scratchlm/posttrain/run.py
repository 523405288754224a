"""A whole post-training run: settings and a folder come in; a run folder like any other lies there after."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scratchlm.posttrain.config import PosttrainConfig
from scratchlm.train.events import OnEvent, ignore


def read(stage: str, name_or_path: str, overrides: Iterable[str] = ()) -> PosttrainConfig:
    """The settings of a recipe by name, of a file, or of an earlier run's folder, with words laid over them."""
    raise NotImplementedError


def run(
    stage: str,
    config: PosttrainConfig,
    path: Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Do the whole run and return the summary (what summary.json holds)."""
    raise NotImplementedError
