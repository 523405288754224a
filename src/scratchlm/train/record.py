"""The record of a run: what happened comes in; rows of metrics.jsonl, trackers' points and events go out.

    kind "train"      a step, at intervals            "skip"       a step that was left out, and why
         "valid"      the validation loss             "spike"      a step far from usual that was made
         "statistics" sizes of weights, layer by layer "rollback"  back to a checkpoint, data skipped
         "resume"     the run went on, where, with which changes

Only the first of several processes writes and tells.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm import runtime
from scratchlm.data.loader import Batches, StartLoader
from scratchlm.hardware import mfu
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Event, Message, OnEvent, StepEnded
from scratchlm.train.folder import RunFolder
from scratchlm.train.guard import LeftOut
from scratchlm.train.metrics import JsonLines
from scratchlm.train.plan import Plan
from scratchlm.train.snapshot import Progress
from scratchlm.train.track import Trackers, open_trackers
from scratchlm.train.trainer import StepResult

RECENT = 64
"""Steps of which the usual one says how long the others will take."""


class TokensRead(NamedTuple):
    """How many tokens training has read."""

    so_far: int
    """The last step's included."""
    in_step: int
    """In the last step."""


class Record:
    """Writes down what happens to a run, and tells whoever watches."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        plan: Plan,
        on_event: OnEvent,
        *,
        train_tokens: int,
        writes: bool,
    ) -> None:
        """Open nothing yet.

        Args:
            folder: The run's folder.
            config: The run's settings.
            plan: What the model computes per token, and the device's peak.
            on_event: Who watches.
            train_tokens: Tokens of the training split.
            writes: Whether this process writes and tells.
        """
        self.folder, self.config, self.plan, self.on_event = folder, config, plan, on_event
        self.train_tokens, self.writes = train_tokens, writes
        self.metrics, self.samples = JsonLines(folder.metrics), JsonLines(folder.samples)
        self._trackers: Trackers | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._steps_seen = 0

    def tell(self, event: Event) -> None:
        """Let whoever watches know."""
        if self.writes:
            self.on_event(event)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self.tell(Message(text))

    def add(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.jsonl and hand it to the trackers."""
        if not self.writes:
            return
        self.metrics.append(row)
        if self.config.train.track:
            if self._trackers is None:
                settings = self.config.model_dump(mode="json")
                self._trackers = open_trackers(self.config.train.track, self.folder.path, settings)
            self._trackers.log(row)

    def step(
        self,
        result: StepResult,
        progress: Progress,
        *,
        tokens: TokensRead,
        figures: Mapping[str, float],
    ) -> None:
        """Tell of a step, and write it down at intervals or when it is not usual.

        Args:
            result: What it did.
            progress: How far the run is.
            tokens: How many were read.
            figures: Further numbers of this step.
        """
        train = self.config.train
        speed = tokens.in_step / result.seconds
        plan, epochs = self.plan, tokens.so_far / self.train_tokens
        if self._steps_seen or not plan.compile:  # the first one contains compiling
            self._recent.append(result.seconds)
        self._steps_seen += 1
        usual = statistics.median(self._recent) if self._recent else plan.step_seconds
        left = (train.steps - result.step) * usual
        share = mfu(plan.flops_per_token, speed, plan.peak) if plan.peak else None
        self.tell(
            StepEnded(
                result.step,
                train.steps,
                result.loss,
                result.lr,
                result.grad_norm,
                tokens.so_far,
                epochs,
                speed,
                share,
                left,
                dict(figures),
                tokens.so_far / plan.parameters,
            )
        )
        if result.judgement.reason:
            self._unusual(result)
        if result.judgement.action == "apply" and (
            result.step % train.log_every == 0 or result.step in (1, train.steps)
        ):
            self.add(
                {
                    "kind": "train",
                    "step": result.step,
                    "tokens": tokens.so_far,
                    "loss": result.loss,
                    "lr": result.lr,
                    "grad_norm": result.grad_norm,
                    "epochs": epochs,
                    "tokens_per_second": speed,
                    "seconds": progress.training_seconds,
                }
                | ({} if share is None else {"mfu": share})
                | dict(figures)
            )

    def resumed(self, step: int, changes: dict[str, Any], world_size: int) -> None:
        """Write down that the run went on, and what is different from before."""
        found = runtime.environment()
        where = {key: found[key] for key in ("scratchlm", "torch", "commit", "processor", "threads")}
        self.add({"kind": "resume", "step": step, "changes": changes, "world_size": world_size} | where)

    def take_back(
        self,
        step: int,
        lengths: dict[str, int],
        keep: Callable[[Mapping[str, Any]], bool] = lambda row: False,
    ) -> None:
        """Forget the rows behind those that a checkpoint of `step` remembers; they will be written again.

        Args:
            step: The checkpoint's.
            lengths: What `lengths` said then.
            keep: Which of these rows stay: what no later step will write again.
        """
        if not self.writes:
            return
        for name, lines in (("metrics", self.metrics), ("samples", self.samples)):
            if name not in lengths:
                lines.cut_after(step)  # a checkpoint of format 1 knows no lengths
                continue
            for row in filter(keep, lines.cut(lengths[name])):
                lines.append(row)

    def lengths(self) -> dict[str, int]:
        """Bring both records to the disk and return their bytes."""
        return {"metrics": self.metrics.sync(), "samples": self.samples.sync()}

    def close(self) -> None:
        """Let the trackers finish."""
        if self._trackers is not None:
            self._trackers.close()

    def _unusual(self, result: StepResult) -> None:
        judgement = result.judgement
        kind = "spike" if judgement.action == "apply" else "skip"
        row: dict[str, Any] = {"kind": kind, "step": result.step, "reason": judgement.reason}
        if judgement.spike is not None:
            row |= judgement.spike._asdict()
        for name, value in (("loss", result.loss), ("grad_norm", result.grad_norm)):
            row[name] = _plain(value)
        self.add(row | {"data_step": result.data_step, "rows": self.config.rows_per_step})
        what = "kept" if kind == "spike" else "left out, nothing was touched"
        self.say(f"Step {result.step}: {judgement.reason}; {what}.")


def write_batches(path: Path, left_out: Sequence[LeftOut], loader: Batches) -> None:
    """Write what steps read into a new file, a line of JSON each: step, reason, starts and ids of the rows.

    A batch that cannot be made again (answers that weights wrote which have changed since) has no ids.
    """
    with runtime.replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for left in left_out:
            file.write(json.dumps(left._asdict() | _read(loader, left.data_step)) + "\n")


def _read(loader: Batches, step: int) -> dict[str, Any]:
    """What a step read, as plain values."""
    found: dict[str, Any] = {"starts": None, "ids": None}
    if isinstance(loader, StartLoader):
        found["starts"] = [loader.start(step, row) for row in range(loader.rows_per_step)]
    batch = loader.again(step)
    for name, rows in batch._asdict().items() if batch is not None else ():
        found["ids" if name == "inputs" else name] = _plain(rows.tolist())
    return found


def _plain(values: Any) -> Any:
    """Numbers, or lists of them, that JSON can write: it has no NaN."""
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values if math.isfinite(values) else str(values)
