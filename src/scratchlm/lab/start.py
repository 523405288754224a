r"""What all cells of a study go on from: a chain of runs comes in, made once; the last run's folder goes out.

    start = [{ do = "train", recipe = "demo" }, { do = "sft", recipe = "demo-sft" }]
        -> shared/start-KEY/1-train -> shared/start-KEY/2-sft <- base of every cell

KEY is made of all settings of the chain, so another chain is another start, and its cells are other cells.
A link that was interrupted goes on from its last checkpoint, one that has ended is kept.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchlm.config import Config
from scratchlm.lab.experiments import EXPERIMENTS
from scratchlm.lab.posttraining import PosttrainExperiment
from scratchlm.lab.spec import Link, Study
from scratchlm.train.events import OnEvent

FOLDER = "shared"
"""In a study's folder: what its cells have in common."""
KEY_LENGTH = 10
"""As that of cells: a study has one start, a second one is a changed study."""


class Chain(Config):
    """What the process that makes a start is asked for."""

    links: tuple[Link, ...]
    """In their order."""


def resolve_start(name: str, links: Sequence[Link]) -> list[Config]:
    """Return the settings of all links.

    Raises:
        ValueError: One is wrong; the message names it.
    """
    found = []
    for place, link in enumerate(links):
        try:
            experiment = EXPERIMENTS.build(link.do)
            if isinstance(experiment, PosttrainExperiment) == (place == 0):
                raise ValueError("the first link is a train, the others are ways of post-training.")
            found.append(experiment.resolve(link.recipe, link.settings))
        except ValueError as error:
            raise ValueError(f"{name}, start[{place}] ({link.do}): {error}") from None
    return found


def start_folder(study: Study) -> Path | None:
    """Return where the start's last run lies, from the study's folder on; None where there is no start.

    Raises:
        ValueError: A link is wrong.
    """
    if not study.start:
        return None
    configs = resolve_start(study.name, study.start)
    trees = [config.model_dump(mode="json", exclude_defaults=True) for config in configs]
    digest = hashlib.sha256(json.dumps(trees, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
    return Path(FOLDER) / f"start-{digest}" / link_name(study.start, len(study.start) - 1)


def link_name(links: Sequence[Link], place: int) -> str:
    """Return the name of a link's folder."""
    return f"{place + 1}-{links[place].do}"


def make_start(tree: Mapping[str, Any], folder: Path, on_event: OnEvent) -> None:
    """Make what is missing of a chain in `folder`.

    Args:
        tree: A Chain.
        folder: Where its runs shall lie.
        on_event: Told what is done.

    Raises:
        ValueError: A link cannot be run.
    """
    from scratchlm.lab.cells import read_note

    links = Chain.model_validate(tree).links
    base: Path | None = None
    for place, config in enumerate(resolve_start("study", links)):
        run = (folder / link_name(links, place)).resolve()
        made = config if base is None else config.model_copy(update={"base": base})
        summary = read_note(run / "summary.json")
        if not summary or summary.get("stopped_early"):
            summary = EXPERIMENTS.build(links[place].do).run(made, run, on_event)
        if summary.get("stopped_early"):
            return  # somebody asked this process to stop
        base = run
