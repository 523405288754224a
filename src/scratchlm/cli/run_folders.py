"""Which folder a command's run has: a new one, an interrupted one, or a finished one that gets more steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def choose(
    base: Path, *, resume: bool, restartable: bool, command: str, steps_of: Callable[[Path], int]
) -> tuple[Path, str]:
    """Return the folder and its state: "free" to begin, "interrupted" to go on, "finished" to do nothing.

    A finished run goes on where the settings give it more steps than it has.

    Args:
        base: The folder asked for; its numbered relatives are base-2, base-3, ...
        resume: Go on with the newest of them.
        restartable: Begin, go on or do nothing, as it needs, in `base` itself.
        command: What the user typed, for the advice.
        steps_of: Folder of a finished run -> the steps that it has with the settings typed.

    Raises:
        ValueError: Nothing to resume; an interrupted run in the way; a folder that holds something else.
    """

    def is_longer(folder: Path) -> bool:
        return steps_of(folder) > _summary(folder)["steps"]

    if not restartable:
        folder = choose_folder(base, resume=resume, command=command, is_longer=is_longer)
        return folder, "interrupted" if resume else "free"
    state = state_of(base)
    if state == "other":
        raise _no_run_folder(base)
    return base, "interrupted" if state == "finished" and is_longer(base) else state


def choose_folder(
    base: Path, *, resume: bool, command: str, is_longer: Callable[[Path], bool] = lambda folder: False
) -> Path:
    """The folder of a run: a finished run is kept and a new one gets a number, an interrupted one is resumed.

    Args:
        base: The folder asked for; its numbered relatives are base-2, base-3, ...
        resume: Choose the interrupted run instead.
        command: What the user typed, for the advice.
        is_longer: Folder of a finished run -> whether it shall have more steps; then it is resumed, too.

    Raises:
        ValueError: Nothing to resume; an interrupted run in the way; a folder that holds something else.
    """
    last, number = None, 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        state = state_of(folder)
        if state == "free":
            break
        if state == "other":
            raise _no_run_folder(folder)
        if state == "interrupted":
            if resume:
                return folder
            raise ValueError(
                f"{folder}: holds an interrupted run; go on with `{command} --resume`, "
                "or start anew in another --folder."
            )
        last, number = folder, number + 1
    if not resume:
        return folder
    if last is None:
        raise ValueError(f"{base}: there is no run to resume; leave --resume out.")
    if is_longer(last):
        return last
    raise ValueError(
        f"{last}: this run is finished; leave --resume out to start a new one, or give it more than its "
        f"{_summary(last)['steps']:,} steps with train.steps=."
    )


def state_of(folder: Path) -> str:
    """What stands under a name: "free", "finished", "interrupted" or "other"."""
    from scratchlm.lock import LOCK_FILE

    if not folder.exists() or (folder.is_dir() and {file.name for file in folder.iterdir()} <= {LOCK_FILE}):
        return "free"
    if not (folder / "config.json").is_file():
        # of a post-training run posttrain.json comes first
        return "interrupted" if (folder / "posttrain.json").is_file() else "other"
    try:
        summary = _summary(folder)
    except (OSError, ValueError):
        return "interrupted"
    return "interrupted" if summary.get("stopped_early") else "finished"


def _no_run_folder(folder: Path) -> ValueError:
    return ValueError(f"{folder}: is there already and is no run folder; choose another with --folder.")


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
