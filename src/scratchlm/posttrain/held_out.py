"""A post-trained run's folder comes in; the questions that it was not trained on, and its base, go out.

    posttrain.json   stage and data     ->   conversations that end with the user, each once
    RUN/base         weights, settings  ->   the model as it was before the first step

What a run is compared with answers the same questions, whatever stage and data made it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.config import read_tree, validate
from scratchlm.data.permutation import permute
from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES, STAGES
from scratchlm.posttrain.base import Base, open_base
from scratchlm.posttrain.config import DpoConfig, GrpoConfig, PosttrainConfig, SftConfig
from scratchlm.posttrain.datasets import Broken, Messages, both_splits, checked_messages, entries, text_of
from scratchlm.posttrain.stage import stage_file
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.train.folder import RunFolder

VALID_SEED = 0
"""Held-out problems are the same whatever the run's seed: runs are compared on them."""
ASK = "name a file of questions: --questions FILE"
"""What to do where a run has none."""


def held_out_order(first: int, last: int, number: int, seed: int = VALID_SEED) -> list[int]:
    """Return which of `number` held-out items come at the places from `first` to before `last`.

    Shuffled, for data stands in an order (one exercise after the other, or a sorted file) and often a part
    is measured; in the same way for the same seed, for what is measured is compared.
    """
    return [permute(place, number, seed) for place in range(first, min(last, number))]


def is_post_trained(path: Path) -> bool:
    """Whether the folder is that of a post-trained run."""
    return stage_file(path).is_file()


def settings_of(path: Path) -> PosttrainConfig:
    """The settings of a post-trained run.

    Raises:
        ValueError: It is none, or they cannot be read.
    """
    if not is_post_trained(path):
        raise ValueError(f"{path}: is no post-trained run ({stage_file(path).name} is missing).")
    tree = read_tree(stage_file(path))
    return validate(STAGES.get(tree.pop("stage", "")).Config, tree, source=str(stage_file(path)))


def base_of(path: Path) -> Base:
    """What a post-trained run began with; its base run may be gone.

    Raises:
        ValueError: It is no post-trained run.
    """
    return open_base(settings_of(path), RunFolder(path))


class Questions(NamedTuple):
    """Conversations that end with the user."""

    asked: list[Messages]
    num_all: int | None
    """Of how many they were drawn; None: problems are made without end."""


def held_out_questions(path: Path, most: int, *, seed: int = VALID_SEED) -> Questions:
    """Questions that a run was not trained on, each once.

    They are drawn from all, and a smaller number asks a part of what a larger one asks.

    Args:
        path: The run's folder.
        most: How many; fewer where there are not as many.
        seed: The same seed draws the same ones.

    Raises:
        ValueError: It is no post-trained run, its data is gone, or nothing of it was held out.
    """
    config = settings_of(path)
    found = list({repr(messages): messages for messages in _questions(config, most, seed)}.values())
    if not found:
        raise ValueError(f"{path}: nothing of its data was held out (valid_share); {ASK}.")
    asked = [found[number] for number in held_out_order(0, most, len(found), seed)]
    return Questions(asked, None if isinstance(config, GrpoConfig) else len(found))


def read_questions(path: Path, most: int | None, *, seed: int = VALID_SEED) -> Questions:
    """Questions of a file, in its order.

    Args:
        path: JSON Lines with "prompt", "instruction", "question" or "messages", or a text, one a line.
        most: How many are drawn from it; None: all are taken.
        seed: The same seed draws the same ones.

    Raises:
        ValueError: There is no such file, it holds none, or a line has no question; it says which line.
    """
    if not path.is_file():
        raise ValueError(f"--questions: {path}: no such file.")
    if path.suffix not in (".json", ".jsonl"):
        lines = filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines()))
        found = [({"role": "user", "content": line},) for line in lines]
    else:
        found = [_question(entry, f"{path}:{line}") for line, entry in entries(path)]
    if not found:
        raise ValueError(f"--questions: {path}: holds no question.")
    if most is None:
        return Questions(found, len(found))
    drawn = sorted(held_out_order(0, most, len(found), seed))
    return Questions([found[number] for number in drawn], len(found))


def _question(entry: Any, where: str) -> Messages:
    try:
        if isinstance(entry, Broken):
            raise ValueError(entry.reason)
        if not isinstance(entry, Mapping):
            raise ValueError("is no object of names and values")
        if isinstance(messages := entry.get("messages", entry.get("prompt")), list):
            while messages and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
                messages = messages[:-1]
            return checked_messages(messages, last="user")
        text = text_of(entry, "prompt", "instruction", "question")
        given = text_of(entry, "input", empty=True).strip()
        return ({"role": "user", "content": f"{text}\n\n{given}" if given else text},)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from None


def _questions(config: PosttrainConfig, most: int, seed: int) -> list[Messages]:
    match config:
        case GrpoConfig():
            exercise = EXERCISES.build(config.data.name, **config.data.settings)
            problems = exercise.problems(seed, "valid", 0, most)
            return [({"role": "user", "content": problem.prompt},) for problem in problems]
        case DpoConfig():
            source = PREFERENCES.build(config.data.name, **config.data.settings)
            pairs = both_splits(source, share=config.valid_share, seed=config.seed)["valid"]
            return [pair.prompt for pair in pairs]
        case SftConfig():
            source = INSTRUCTIONS.build(config.data.name, **config.data.settings)
            examples = both_splits(source, share=config.valid_share, seed=config.seed)["valid"]
            return [example.messages[:-1] for example in examples if len(example.messages) > 1]
        case _:
            raise ValueError(f"{type(config).__name__}: nobody knows its questions; {ASK}.")
