"""A task and a folder come in; the questions that are asked come out, and what stands in front of them.

    folder/hellaswag_val_800.jsonl     asked: the file's name is the task's, or begins with it and "_"
    folder/math/gsm8k_test.jsonl       asked                  folders inside of folders are looked through
    folder/math/gsm8k_train.jsonl      shown solved           a word of the name is train or dev

Shots come from rows that are never asked: of the train or dev file, of rows that the task marks so, or, where
there is neither, drawn from the file itself and then left out. They are the same in front of every question.
With `limit` the questions are drawn by the seed, not taken from the file's beginning, whose rows may be about
one thing; a smaller limit asks a part of what a larger one asks.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.evaluate.tasks.task import Question, Task

DEPTH = 3
"""Folders inside of each other that are looked through."""
SHOWN, ASKED = {"train", "dev"}, {"test", "val", "valid", "validation"}
"""Words of a file's name that say what it is for."""


class TaskFiles(NamedTuple):
    """Where a task's rows are."""

    asked: Path
    shown: Path | None = None
    """Rows that may be shown solved; None: some of `asked`."""


class Asked(NamedTuple):
    """The questions of one evaluation."""

    questions: list[Question]
    numbers: list[int]
    """Which of the file's questions they are, counted from 0."""
    prefixes: dict[str, str]
    """Group -> what stands in front of its questions: a heading and the shots."""
    shots: int
    num_all: int
    """How many questions there were to draw from."""


def find_files(name: str, place: Path) -> TaskFiles:
    """Find a task's files.

    Args:
        name: The task's name.
        place: A folder; or the file that is asked, beside which the file to show from is looked for.

    Raises:
        ValueError: There is none, or more than one could be meant.
    """
    if place.is_file():
        found = [path for path in _files(name, place.parent) if path != place]
        return TaskFiles(place, next((path for path in found if _words(name, path) & SHOWN), None))
    if not place.is_dir():
        raise ValueError(f"{place}: no such folder; give the folder that holds {name}.jsonl.")
    found = _files(name, place)
    asked = [path for path in found if _words(name, path) & ASKED or not _words(name, path) & SHOWN]
    shown = [path for path in found if path not in asked]
    if len(asked) > 1 or len(shown) > 1:
        names = ", ".join(str(path.relative_to(place)) for path in (asked if len(asked) > 1 else shown))
        raise ValueError(f"{name}: {names} could be meant; say which: {name}=FILE.")
    if not asked:
        raise ValueError(f"{place}: holds no {name}.jsonl or {name}_*.jsonl; say which: {name}=FILE.")
    return TaskFiles(asked[0], shown[0] if shown else None)


def ask(
    task: Task, files: TaskFiles, *, limit: int | None = None, shots: int | None = None, seed: int = 0
) -> Asked:
    """Choose the questions and what stands in front of them.

    Args:
        task: The task.
        files: Where its rows are.
        limit: At most so many questions, drawn by the seed. None: all.
        shots: Solved questions in front of each. None: as many as are usual for the task.
        seed: The same seed chooses the same questions and shots.

    Raises:
        ValueError: A row is not of the task's form, there are no questions, or too few to show.
    """
    shots = task.shots if shots is None else shots
    rows = list(read_questions(task, files.asked))
    pool = [question for question, is_shot in rows if is_shot]
    questions = [question for question, is_shot in rows if not is_shot]
    numbers = list(range(len(questions)))
    if files.shown is not None:
        pool += [question for question, _ in read_questions(task, files.shown)]
    if not pool and shots:
        drawn = set(_order(f"shots {seed}", len(questions))[:shots])
        pool = [questions[number] for number in sorted(drawn)]
        numbers = [number for number in numbers if number not in drawn]
    if not numbers:
        raise ValueError(f"{files.asked}: holds no question to ask besides {shots} to show.")
    num_all = len(numbers)
    if limit is not None:
        numbers = sorted(numbers[place] for place in _order(f"questions {seed}", num_all)[:limit])
    chosen = [questions[number] for number in numbers]
    groups = sorted({question.group for question in chosen})
    prefixes = {group: task.header(group) + _shown(task, group, pool, shots, seed) for group in groups}
    return Asked(chosen, numbers, prefixes, shots, num_all)


def read_questions(task: Task, path: Path) -> Iterator[tuple[Question, bool]]:
    """Yield a file's questions, and whether the task marks a row as one to show.

    Raises:
        ValueError: A row is not of the task's form; the message says where.
    """
    for where, row in read_rows(path):
        try:
            yield task.question(row), task.is_shot(row)
        except KeyError as error:
            has = ", ".join(map(str, row))
            raise ValueError(
                f"{where}: a row of {task.name} needs {error.args[0]!r}; it has {has}."
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error} (a row of {task.name}).") from None


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a file with one JSON object a line, with where they stand; blank lines are none.

    Raises:
        ValueError: The file is missing, not UTF-8, or a line is no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except (ValueError, RecursionError) as error:
                reason = "is nested too deeply" if isinstance(error, RecursionError) else error
                raise ValueError(f"{where}: no JSON object: {reason}") from None
            if row is None and not line.strip():
                continue
            if not isinstance(row, dict):
                raise ValueError(f'{where}: must be a JSON object, as {{"key": "value"}}.')
            yield where, row


def _files(name: str, folder: Path) -> list[Path]:
    found = []
    for depth in range(DEPTH):
        for path in folder.glob("*/" * depth + f"{name}*.jsonl"):
            if path.is_file() and (path.stem == name or path.stem.startswith(f"{name}_")):
                found.append(path)
    return sorted(found)


def _words(name: str, path: Path) -> set[str]:
    """Split the rest of a name: "gsm8k_test_first1000" -> {"test", "first1000"}."""
    return set(path.stem.removeprefix(name).lower().split("_"))


def _order(seed: str, count: int) -> list[int]:
    """A permutation: the first few of it are a sample, and more of it contain them."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _shown(task: Task, group: str, pool: Sequence[Question], shots: int, seed: int) -> str:
    """The shots of a group: of its own where there are some, all in the file's order."""
    mine = [question for question in pool if question.group == group]
    mine = mine or list(pool)
    if shots > len(mine):
        raise ValueError(
            f"{task.name}: shots={shots}, but there are {len(mine)} solved questions to show"
            f"{f' about {group}' if group else ''}; ask for fewer."
        )
    chosen = sorted(_order(f"shown {seed}", len(mine))[:shots])
    return "".join(f"{mine[place].solved}\n\n" for place in chosen)
