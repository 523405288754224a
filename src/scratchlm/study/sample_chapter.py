"""A run's record comes in, the texts that its model wrote come out: token by token, with their probabilities.

The first, the middle and the last texts are shown, each token in the colour of how likely it was.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from scratchlm.study import units
from scratchlm.study.run_record import Row, RunRecord, number, section

LEVELS = (
    (0.9, "over 90 %"),
    (0.5, "50-90 %"),
    (0.2, "20-50 %"),
    (0.05, "5-20 %"),
    (0.0, "under 5 %"),
)
"""Lower edge of each band of token probabilities and its name in the legend, from expected to surprising."""

MAX_SAMPLE_TOKENS = 1000
"""Tokens of a sample that are shown."""


class Token(NamedTuple):
    """One token of a sample."""

    text: str
    level: int
    """Index into LEVELS."""
    probability: str


class Sample(NamedTuple):
    """One text that the model wrote."""

    title: str
    detail: str
    prompt: str
    tokens: list[Token]
    omitted: int
    """Tokens that are not shown."""
    consistency: str
    """How many statements of the text agree with each other; empty where nobody counted."""


def sample_views(record: RunRecord) -> list[Sample]:
    """The first, the middle and the last sample (of each prompt, up to three prompts a step)."""
    steps = sorted({row["step"] for row in record.samples})
    if not steps:
        return []
    names = {steps[len(steps) // 2]: "In the middle", steps[0]: "First sample", steps[-1]: "Last sample"}
    if len(steps) == 1:
        names = {steps[0]: "Sample"}
    return [
        _sample(row, names[step], record)
        for step in sorted(names)
        for row in [row for row in record.samples if row["step"] == step][:3]
    ]


def _sample(row: Row, title: str, record: RunRecord) -> Sample:
    details = [f"step {row['step']:,}"]
    seen = _tokens_seen(record, row["step"])
    if seen is not None:
        details.append(f"{units.count(seen)} tokens seen")
    pieces = row.get("tokens")
    pieces = [piece for piece in pieces if isinstance(piece, Mapping)] if isinstance(pieces, list) else []
    prompt, text = str(row.get("prompt") or ""), str(row.get("text") or "")
    tokens = [_token(piece) for piece in pieces[:MAX_SAMPLE_TOKENS]]
    if not tokens:
        tokens = [Token(text.removeprefix(prompt), 0, units.MISSING)]
    chances = [
        chance for piece in pieces if (chance := number(piece, "probability")) is not None and chance > 0
    ]
    if chances:
        mean = math.exp(sum(math.log(chance) for chance in chances) / len(chances))
        details.append(f"{units.percent(mean)} average probability of its tokens")
    return Sample(
        title,
        " \N{MIDDLE DOT} ".join(details),
        prompt if text.startswith(prompt) else f"{prompt.rstrip()}\n",  # an answer begins a line
        tokens,
        max(0, len(pieces) - MAX_SAMPLE_TOKENS),
        _consistency(row, is_answer="posttrain" in record.summary),
    )


def _tokens_seen(record: RunRecord, step: int) -> float | None:
    """Tokens of training up to a step: as recorded, or as many each step as the settings say."""
    for row in record.valid:
        if row["step"] == step and (tokens := number(row, "tokens")) is not None:
            return tokens
    batch_tokens = number(section(record.config, "train"), "batch_tokens")
    return step * batch_tokens if batch_tokens and "posttrain" not in record.summary else None


def _token(piece: Mapping[str, Any]) -> Token:
    chance = number(piece, "probability")
    text = str(piece.get("text") or "")
    if chance is None or math.isnan(chance):
        return Token(text, 0, units.MISSING)
    level = next((index for index, (edge, _) in enumerate(LEVELS) if chance >= edge), len(LEVELS) - 1)
    return Token(text, level, units.percent(chance))


def _consistency(row: Row, *, is_answer: bool) -> str:
    """How many statements of a story agree; an answer need not be one."""
    score = section(row, "consistency")
    facts, consistent = number(score, "num_facts"), number(score, "num_consistent")
    if facts is None or consistent is None:
        return ""
    if facts == 0:
        return "" if is_answer else "It makes no statement that could be checked."
    share = units.percent(consistent / facts)
    return f"{consistent:.0f} of its {facts:.0f} checkable statements are consistent ({share})."
