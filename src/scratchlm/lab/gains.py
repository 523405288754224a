"""Paired differences of a study of changes come in, what each change brings goes out: alone and among others.

    alone    = none - (+ change)               how much lower the number is with this change and no other
    among    = (all but change) - all          how much higher it is when this change alone is taken out

Both are gains: above 0 the change helps. They differ where changes overlap: what two of them mend, the second
one cannot mend again.

Source: ablation in both directions, as in Narang et al. 2021, https://arxiv.org/abs/2102.11972, which tried
changes to the transformer one by one; leaving one out of all as in Meyes et al. 2019,
https://arxiv.org/abs/1901.08644.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scratchlm.lab.search import alone, left_out
from scratchlm.lab.spec import Study
from scratchlm.lab.statistics import Interval


class Gain(NamedTuple):
    """What one change brings; above 0 it helps."""

    change: str
    alone: Interval | None
    """Over no change; None where runs are missing."""
    among: Interval | None
    """Over all changes but this one; likewise."""


def gains_of(study: Study, differences: Mapping[str, Interval | None]) -> list[Gain]:
    """The gains of a study's changes; none where it is no study of changes.

    Args:
        study: In one size.
        differences: Label of a cell -> its paired difference to what it is compared to.
    """
    found = []
    for change in study.changes or ():
        put_in, taken_out = differences.get(alone(change.label)), differences.get(left_out(change.label))
        found.append(Gain(change.label, put_in and put_in._replace(mean=-put_in.mean), taken_out))
    return found


def gain_words(gains: Sequence[Gain]) -> list[str]:
    """Two sentences: what each change brings alone, and among the others."""
    said = []
    for title, of in (
        ("Put in alone, gain", lambda gain: gain.alone),
        ("On top of the others, gain", lambda gain: gain.among),
    ):
        known = [(gain.change, of(gain)) for gain in gains if of(gain) is not None]
        known.sort(key=lambda pair: -pair[1].mean)
        if known:
            said.append(f"{title}: {', '.join(f'{name} {signed(gain)}' for name, gain in known)}.")
    return said


def signed(gain: Interval) -> str:
    """A gain with its interval, and whether it is clear: "+0.013 +- 0.020 (within noise)"."""
    if gain.half_width is None:
        return f"{gain.mean:+.3f} (one seed)"
    return f"{gain.mean:+.3f} +- {gain.half_width:.3f}{'' if gain.is_clear else ' (within noise)'}"
