"""A stopped run comes in, as its newest checkpoint left it; the same run goes on, its records included.

    --resume     weights, optimizer, guard, records       of the newest checkpoint that can be read whole
    rollback     the same in the middle of a run          after a spike; the data since then is skipped

Rows behind a checkpoint are cut, since their steps come again. What comes not again stays: that the run was
resumed and with which changes, rollbacks, and the last look at a finished run that gets more steps.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scratchlm.checkpoint import (
    CheckpointError,
    CheckpointReader,
    latest,
    of_later_version,
    open_checkpoint,
)
from scratchlm.checkpoint.retention import checkpoint_folders
from scratchlm.train import snapshot

if TYPE_CHECKING:
    from scratchlm.train.session import Session


def restore(session: "Session", changes: dict[str, Any]) -> None:
    """Go on from the newest checkpoint, or from the first step where none was written yet.

    Args:
        session: Built, and not run yet.
        changes: Settings that differ from those the run had, for the record.

    Raises:
        CheckpointError: A later version wrote the newest, none can be read whole, or the newest belongs to
            another tokenizer or other data.
        ValueError: More steps are done than the run shall have.
    """
    _refuse_later_version(session)
    saved = take_back(session)
    if saved is None:
        _refuse_damaged(session)
        session.record.say("No checkpoint yet: training starts at the first step.")
        session.record.take_back(0, {"metrics": 0, "samples": 0}, _was_resumed)
        return
    steps = session.config.train.steps
    session.record.resumed(saved.step, changes, session.processes.world_size)
    session.record.say(f"Continuing at step {saved.step} of {steps}.")
    if "train.steps" in changes and saved.step < steps:
        session.record.say(
            "The learning rate follows its schedule over the new number of steps from here on."
        )


def take_back(session: "Session", *, rolling_back: bool = False) -> CheckpointReader | None:
    """Be what the newest checkpoint is, its records included; return it, or None where there is none."""
    # the first looks: a file system may show the others something older
    processes, folder = session.processes, session.folder
    newest = latest(folder.checkpoints) if processes.first else None
    name = processes.from_first(newest.name if newest is not None else "")
    if not name:
        return None
    with open_checkpoint(folder.checkpoints / name) as saved:
        _check_identity(session, saved)
        _check_steps(session, saved)
        session.progress = snapshot.put_back(
            saved, session.trainer, session.average, session.aim.load_weights
        )
        session.aim.restore(saved, saved.state.get("aim", {}))
    if saved.state.get("part", session.part) != session.part:
        # validations were of another part of the split: their losses say nothing about those to come
        session.progress.best_loss = session.progress.best_saved_loss = math.inf
    session.last_saved, session.validated = saved.step, None
    keep = _kept(saved, session.config.train.steps, rolling_back=rolling_back)
    session.record.take_back(saved.step, saved.state.get("records", {}), keep)
    processes.barrier()
    return saved


def _kept(saved: CheckpointReader, steps: int, *, rolling_back: bool) -> Callable[[Mapping[str, Any]], bool]:
    """Which rows behind a checkpoint no later step writes again."""
    had_ended = saved.state.get("steps") == saved.step < steps

    def keep(row: Mapping[str, Any]) -> bool:
        if _was_resumed(row) or (rolling_back and row.get("kind") == "rollback"):
            return True
        return had_ended and row["step"] == saved.step and row.get("kind", "sample") in ("valid", "sample")

    return keep


def _was_resumed(row: Mapping[str, Any]) -> bool:
    return row.get("kind") == "resume"


def _refuse_later_version(session: "Session") -> None:
    """The run would go on from a checkpoint before it, and remove it when it saves."""
    folder = session.folder.checkpoints
    newer = of_later_version(folder) if session.processes.first else None
    name = session.processes.from_first(newer.name if newer is not None else "")
    if name:
        raise CheckpointError(
            f"{folder / name}: a later version of scratchlm wrote it; update scratchlm to go on from there, "
            "or move it elsewhere to go on from the checkpoint before it."
        )


def _refuse_damaged(session: "Session") -> None:
    """The run would begin again, and remove what somebody may want to mend when it saves."""
    folder = session.folder.checkpoints
    found = [path.name for path in checkpoint_folders(folder)] if session.processes.first else []
    names = session.processes.from_first(", ".join(found))
    if names:
        raise CheckpointError(
            f"{folder}: none of its checkpoints can be read whole ({names}); mend them, or move them "
            "elsewhere to begin at the first step again."
        )


def _check_identity(session: "Session", saved: CheckpointReader) -> None:
    wanted = snapshot.identity(session.trainer, session.tokenizer.fingerprint)
    for what in ("tokenizer", "data"):
        had = saved.identity.get(what, wanted[what])
        if had != wanted[what]:
            raise CheckpointError(
                f"{saved.path}: was trained with {what} {str(had)[:12]}, but what the run would read now "
                f"is {str(wanted[what])[:12]}; put the run's own {what} back."
            )


def _check_steps(session: "Session", saved: CheckpointReader) -> None:
    steps = session.config.train.steps
    if saved.step > steps:
        raise ValueError(
            f"{session.folder.path}: {saved.step:,} steps are done, more than train.steps={steps:,}; give "
            f"train.steps={saved.step} to end the run here, or more to go on."
        )
