r"""The guard: a step's loss and gradient norm come in before the update; what to do with the step goes out.

    not usable:   the loss or the norm is NaN or infinite
    a spike:      x > mean + spike_sigma * std      over the last `window` accepted steps, for x = loss, norm

A step that is left out touches nothing: neither weights nor moments, and not by multiplying the update with
zero, since 0 * NaN is NaN. It costs its batch. A run that leaves out `max_skipped` steps in a row is broken
and stops; which steps these were is remembered, so that their batches can be looked at. All that the guard
remembers is in the checkpoint, so a resumed run decides as the first one would have.

Source: the window and six standard deviations as in OLMo 2, https://arxiv.org/abs/2501.00656; going back and
skipping data: Chowdhery et al. 2022 (PaLM), https://arxiv.org/abs/2204.02311, section 5.1.
"""

import math
import statistics
from collections import deque
from typing import Any, Literal, NamedTuple

from pydantic import Field

from scratchlm.config import Config

Action = Literal["apply", "skip", "rollback", "stop"]


class GuardConfig(Config):
    """What happens to a step whose numbers are not usable, or not usual."""

    on_nonfinite: Literal["skip", "stop"] = "skip"
    """A loss or gradient that is NaN or infinite: leave the step out, or stop; weights stay as they were."""
    max_skipped: int = Field(default=5, ge=1)
    """Steps left out in a row after which the run stops."""
    window: int = Field(default=128, ge=8)
    """Steps that say what is usual."""
    spike_sigma: float = Field(default=6.0, gt=0)
    """A loss or gradient norm above the window's mean by this many standard deviations is a spike."""
    on_spike: Literal["record", "skip", "rollback"] = "record"
    """Only write a spike down, leave its step out, or go back to a checkpoint and skip the data after it."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks after which spikes are only written down."""


class Spike(NamedTuple):
    """A value far above what is usual."""

    what: Literal["loss", "gradient norm"]
    value: float
    mean: float
    sigma: float


class LeftOut(NamedTuple):
    """A step that was left out."""

    step: int
    """Its number; the first is 1."""
    data_step: int
    """The step, from 0, whose batch the loader gave it."""
    reason: str


class Judgement(NamedTuple):
    """What shall happen to a step, and why."""

    action: Action
    reason: str = ""
    """Empty for a usual step."""
    spike: Spike | None = None


class Guard:
    """Remembers what is usual and judges each step by it."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.num_skipped, self.num_spikes, self.num_rollbacks = 0, 0, 0
        self.left_out: list[LeftOut] = []
        """The newest steps in a row that were left out; empty after a usable one."""

    def judge(self, loss: float, grad_norm: float, *, step: int, data_step: int) -> Judgement:
        """Say what shall happen to a step with these numbers, and remember it.

        Args:
            loss: Of the whole batch, in nats per token.
            grad_norm: Of the whole batch's gradient, before clipping.
            step: The step's number; the first is 1.
            data_step: The step, from 0, whose batch it read.
        """
        judgement = self._judge(loss, grad_norm)
        self.num_spikes += judgement.spike is not None
        if judgement.action == "apply":
            self.losses.append(loss)
            self.norms.append(grad_norm)
            self.left_out = []
        elif judgement.action in ("skip", "stop"):
            return self.leave_out(judgement, step=step, data_step=data_step)
        return judgement

    def leave_out(self, judgement: Judgement, *, step: int, data_step: int) -> Judgement:
        """Count a step that is left out; too many in a row are a reason to stop.

        Args:
            judgement: "skip" or "stop"; "rollback" where there was nothing to go back to.
            step: The step's number; the first is 1.
            data_step: The step, from 0, whose batch it read.
        """
        self.left_out.append(LeftOut(step, data_step, judgement.reason))
        self.num_skipped += 1
        if len(self.left_out) >= self.config.max_skipped:
            reason = f"{judgement.reason}, the last of {len(self.left_out)} steps left out in a row"
            return Judgement("stop", reason, judgement.spike)
        return judgement._replace(action="skip") if judgement.action == "rollback" else judgement

    def _judge(self, loss: float, grad_norm: float) -> Judgement:
        for what, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Judgement(self.config.on_nonfinite, f"the {what} is {value}")
        spike = _spike("loss", loss, self.losses, self.config) or _spike(
            "gradient norm", grad_norm, self.norms, self.config
        )
        if spike is None:
            return Judgement("apply")
        reason = (
            f"the {spike.what} {spike.value:.4g} is more than {self.config.spike_sigma:g} standard "
            f"deviations ({spike.sigma:.2g}) above the mean of the last {self.config.window} steps "
            f"({spike.mean:.4g})"
        )
        wanted = self.config.on_spike
        if wanted == "rollback" and self.num_rollbacks < self.config.max_rollbacks:
            return Judgement("rollback", reason, spike)
        return Judgement("skip" if wanted == "skip" else "apply", reason, spike)

    def state(self) -> dict[str, Any]:
        """Everything remembered, as plain values."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "left_out": [left._asdict() for left in self.left_out],
            "num_skipped": self.num_skipped,
            "num_spikes": self.num_spikes,
            "num_rollbacks": self.num_rollbacks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; another `window` keeps the newest entries."""
        self.losses = deque(state["losses"], maxlen=self.config.window)
        self.norms = deque(state["norms"], maxlen=self.config.window)
        # older checkpoints have only the number of those left out in a row: their row begins anew
        self.left_out = [LeftOut(**left) for left in state.get("left_out", [])]
        if len(self.left_out) >= self.config.max_skipped:
            self.left_out = []  # the run stopped for them; whoever goes on has changed something
        self.num_skipped = state["num_skipped"]
        self.num_spikes, self.num_rollbacks = state["num_spikes"], state["num_rollbacks"]


def _spike(
    what: Literal["loss", "gradient norm"], value: float, window: deque[float], config: GuardConfig
) -> Spike | None:
    if len(window) < config.window:
        return None  # what is usual is not known yet
    mean = statistics.fmean(window)
    sigma = statistics.pstdev(window, mean)
    return Spike(what, value, mean, sigma) if value > mean + config.spike_sigma * sigma else None
