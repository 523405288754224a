r"""Learning-rate schedules: a step comes in, a multiplier of the learning rate in [0, 1] goes out.

    u = updates made when this one is done, 1 ... total_steps;  W = warm-up steps;  f = floor
    all:       u / W                                                      u < W
    constant:  1
    linear:    1 - (1 - f) * (u - W) / (total - W)                        u >= W
    cosine:    f + (1 - f) * (1 + cos(pi * (u - W) / (total - W))) / 2    u >= W
    wsd:       1 until the last D steps, then down to f ("warm-up, stable, decay")

Warm-up keeps the first steps small while AdamW's means of squares are still guesses. Decay lets the noise of
the steps die away at the end; the floor is where it stops. A built schedule is called with the number of
updates already made (0 before the first), so the first update has a learning rate above 0 and the last one
has exactly the floor. Every multiplier is a pure function of the step: nothing to save, nothing to restore.

Source: cosine from Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, with warm-up as in Stanford
CS336, assignment 1; wsd from Hu et al. 2024 (MiniCPM), https://arxiv.org/abs/2404.06395; its "sqrt" shape
(1 - sqrt) from Hagele et al. 2024, https://arxiv.org/abs/2405.18392.
"""

import math
from typing import Literal

from torch.optim import Optimizer

from scratchlm.optim import SCHEDULES, Schedule


@SCHEDULES.register("constant")
def constant(total_steps: int, *, warmup: int | float = 0) -> Schedule:
    """The full learning rate throughout, after an optional warm-up.

    Args:
        total_steps: How many updates the run makes.
        warmup: A number of steps (an integer), or a fraction of the run (0.05).
    """
    warmup_steps = count_steps("warmup", warmup, total_steps)
    return lambda step: _warmed(step + 1, warmup_steps)


@SCHEDULES.register("linear")
def linear(total_steps: int, *, warmup: int | float = 0, floor: float = 0.0) -> Schedule:
    """Warm-up, then a straight line down to the floor.

    Args:
        total_steps: How many updates the run makes.
        warmup: A number of steps (an integer), or a fraction of the run (0.05).
        floor: The multiplier of the last update, in [0, 1].
    """
    warmup_steps = count_steps("warmup", warmup, total_steps)
    floor = _checked_floor(floor)

    def multiplier(step: int) -> float:
        done = _progress(step + 1, warmup_steps, total_steps)
        return _warmed(step + 1, warmup_steps) * _between(1 - done, floor)

    return multiplier


@SCHEDULES.register("cosine")
def cosine(total_steps: int, *, warmup: int | float = 0, floor: float = 0.1) -> Schedule:
    """Warm-up, then half a cosine wave down to the floor.

    Args:
        total_steps: How many updates the run makes.
        warmup: A number of steps (an integer), or a fraction of the run (0.05).
        floor: The multiplier of the last update, in [0, 1].
    """
    warmup_steps = count_steps("warmup", warmup, total_steps)
    floor = _checked_floor(floor)
    return lambda step: cosine_with_warmup(step + 1, 1.0, floor, warmup_steps, total_steps)


@SCHEDULES.register("wsd")
def wsd(
    total_steps: int,
    *,
    warmup: int | float = 0,
    decay: int | float = 0.2,
    floor: float = 0.0,
    shape: Literal["linear", "cosine", "sqrt"] = "linear",
) -> Schedule:
    """Warm-up, stable, decay: full speed until the last steps, so a run can be prolonged from its plateau.

    Args:
        total_steps: How many updates the run makes.
        warmup: A number of steps (an integer), or a fraction of the run.
        decay: How much of the end decays: a number of steps, or a fraction of the run.
        floor: The multiplier of the last update, in [0, 1].
        shape: The way down: a line, half a cosine wave, or 1 - sqrt (steep first).
    """
    warmup_steps = count_steps("warmup", warmup, total_steps)
    decay_steps = count_steps("decay", decay, total_steps)
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warmup ({warmup_steps} steps) and decay ({decay_steps} steps) do not fit into "
            f"{total_steps} steps; shorten one of them."
        )
    if shape not in (shapes := {"linear": _line, "cosine": _half_wave, "sqrt": _one_minus_sqrt}):
        raise ValueError(f"shape={shape!r}: use one of {', '.join(shapes)}.")
    floor = _checked_floor(floor)

    def multiplier(step: int) -> float:
        done = _progress(step + 1, total_steps - decay_steps, total_steps)
        return _warmed(step + 1, warmup_steps) * _between(shapes[shape](done), floor)

    return multiplier


def cosine_with_warmup(
    step: int, maximum: float, minimum: float, warmup_steps: int, total_steps: int
) -> float:
    """Return CS336's learning rate: 0 at step 0, `maximum` at `warmup_steps`, `minimum` from `total_steps`.

    Example: maximum=1, minimum=0.1, warmup_steps=2, total_steps=6 -> 0, 0.5, 1, 0.868, 0.55, 0.232, 0.1, 0.1
    """
    if step < warmup_steps:
        return maximum * step / warmup_steps
    return minimum + (maximum - minimum) * _half_wave(_progress(step, warmup_steps, total_steps))


def set_learning_rate(optimizer: Optimizer, multiplier: float) -> float:
    """Set every group's `lr` to its `initial_lr` times `multiplier`; return the first group's.

    `initial_lr` is the group's `lr` at the first call, and is saved and restored with the optimizer's state.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier
    return optimizer.param_groups[0]["lr"]


def count_steps(what: str, length: int | float, total_steps: int) -> int:
    """Return a number of steps: an integer is one already, a float is a fraction of `total_steps`.

    Raises:
        ValueError: `total_steps` is below 1, or the length lies outside the run.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: a schedule needs at least one step.")
    steps = length if isinstance(length, int) else round(length * total_steps)
    if not 0 <= steps <= total_steps or (isinstance(length, float) and not 0 <= length <= 1):
        raise ValueError(
            f"{what}={length}: give a number of steps from 0 to {total_steps}, or a fraction from 0.0 to 1.0."
        )
    return steps


def _checked_floor(floor: float) -> float:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: the floor is a fraction of the learning rate, from 0 to 1.")
    return floor


def _warmed(update: int, warmup_steps: int) -> float:
    return update / warmup_steps if update < warmup_steps else 1.0


def _progress(update: int, first: int, last: int) -> float:
    """How far `update` is on the way from `first` (0) to `last` (1)."""
    if update <= first:
        return 0.0
    return min(1.0, (update - first) / max(1, last - first))


def _between(part: float, floor: float) -> float:
    return floor + (1 - floor) * part


def _line(done: float) -> float:
    return 1 - done


def _half_wave(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _one_minus_sqrt(done: float) -> float:
    return 1 - math.sqrt(done)
