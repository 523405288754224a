"""A run's record comes in, the report's answer to "is this loss normal?" comes out.

    reference.json in the run folder   what `train --compare-to` was given
    recipes/curves/NAME.json           else the shipped curve of the run's recipe, if there is one

The verdict is reference_curve.py's; here are the words around it, and what this run was made with that the
reference was not: where settings and data are the same, that is where a loss that is too high comes from.
"""

from typing import NamedTuple

from scratchlm.study import units
from scratchlm.study.reference_curve import (
    HARDWARE,
    REFERENCE_FILE,
    VERSIONS,
    Expected,
    ReferenceCurve,
    Verdict,
)
from scratchlm.study.run_record import RunRecord, number

ANSWERS = {
    "normal": "Yes, this loss is normal",
    "too high": "No, this loss is too high",
    "better": "This loss is better than expected",
    "not comparable": "There is no equal run to compare this one with",
}
"""Kind of verdict -> the answer in a few words."""

PLUS_MINUS = "\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}"


class Point(NamedTuple):
    """How far the run was from what is expected, at one validation."""

    tokens: int
    difference: float
    """Loss minus the expected loss, in nats per token."""
    tolerance: float


class ReferenceChapter(NamedTuple):
    """What the report says about the loss."""

    answer: str
    verdict: Verdict
    sentence: str
    made: str
    """How the reference was made."""
    points: list[Point]
    """Empty where the runs cannot be compared."""
    differences: list[tuple[str, str, str]]
    """What is not the same: name, here, in the reference."""


def reference_chapter(record: RunRecord) -> ReferenceChapter | None:
    """Compare a run with its reference; None where there is no reference, or it cannot be read."""
    try:
        curve = _curve_of(record)
    except ValueError:
        return None  # a file that somebody damaged costs this chapter, not the page
    if curve is None or not record.valid:
        return None
    verdict = curve.judge_run(record)
    words = verdict.sentence.partition(": ")[2].replace(" +- ", PLUS_MINUS)
    since = f", from step {verdict.step:,} on" if verdict.step is not None else ""
    comparable = verdict.kind != "not comparable"
    return ReferenceChapter(
        answer=f"{ANSWERS[verdict.kind]}{since}",
        verdict=verdict,
        sentence=f"{words[0].upper()}{words[1:]}.",
        made=_made(curve),
        points=_points(record, curve.expected) if comparable else [],
        differences=_environment_differences(record, curve) if comparable else [],
    )


def _curve_of(record: RunRecord) -> ReferenceCurve | None:
    path = record.folder / REFERENCE_FILE
    return (
        ReferenceCurve.load(path) if path.is_file() else ReferenceCurve.find(str(record.config.get("name")))
    )


def _made(curve: ReferenceCurve) -> str:
    seeds = f"{len(curve.seeds)} runs with other seeds" if len(curve.seeds) > 1 else "one run"
    time = units.duration(sum(curve.seconds) / len(curve.seconds)) if any(curve.seconds) else ""
    where = str(curve.hardware.get("gpu") or curve.hardware.get("processor") or "")
    known = ", ".join(part for part in (where, f"{time} each" if time else "") if part)
    return f"{curve.name}, {seeds}" + (f" ({known})" if known else "") + f"; normal is {curve.basis}."


def _points(record: RunRecord, expected: list[Expected]) -> list[Point]:
    losses = {row["step"]: number(row, "loss") for row in record.valid}
    return [
        Point(at.tokens, loss - at.mean, at.tolerance)
        for at in expected
        if (loss := losses.get(at.step)) is not None
    ]


def _environment_differences(record: RunRecord, curve: ReferenceCurve) -> list[tuple[str, str, str]]:
    pairs = [(key, curve.versions.get(key)) for key in VERSIONS]
    pairs += [(key, curve.hardware.get(key)) for key in HARDWARE if not key.endswith("_bytes")]
    return [
        (key, str(record.environment[key]), str(there))
        for key, there in pairs
        if there is not None and record.environment.get(key) not in (None, there)
    ]
