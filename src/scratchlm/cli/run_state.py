"""What is known about a run while it runs: events come in, the figures that are drawn come out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scratchlm.train import events

MAX_POINTS = 400
"""Training losses kept for the curve; when there are more, every second one goes."""
CHARACTERS_PER_SECOND = 160
"""Speed at which a sample appears: fast reading."""
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
"""Eighths of a character cell, from low to full."""
PLAIN_BLOCKS = "_.-=+*#@"
"""The same where the terminal has only ASCII."""
TELLING = {
    "reward_mean": "reward",
    "accuracy": "accuracy",
    "margin": "margin",
    "kl": "KL",
    "entropy": "entropy",
    "answer_tokens": "tokens an answer",
    "base_loss": "base loss",
    "flat_groups": "flat groups",
}
"""Figures that stand first -> their names in a line."""
TROUBLE = {"reward_failures": "failed rewards", "prompts_skipped": "prompts without room"}
"""Shares that stand before the others -> their names in a line; left out where they are 0."""
LEADING = ("reward_mean", "margin")
"""Figures that say more of a step than its loss: a curve is drawn of the first that there is."""
LINE = 72
"""Characters that further figures may take beside those of trouble; metrics.jsonl has all."""


@dataclass
class Phase:
    """One line of the checklist."""

    name: str
    detail: str = ""
    done: int = 0
    total: int | None = None
    seconds: float | None = None
    """How long it took; None while it runs."""


@dataclass
class RunState:
    """Everything that the live view shows."""

    title: str
    phases: list[Phase] = field(default_factory=list)
    message: str = ""
    step: events.StepEnded | None = None
    losses: list[float] = field(default_factory=list)
    leading: str = ""
    """Which further figure is followed beside the loss; "" where there is none."""
    followed: list[float] = field(default_factory=list)
    """Its values, as the losses."""
    stride: int = 1
    """Only every stride-th step's loss is kept."""
    speed: float = 0.0
    """Tokens per second, smoothed."""
    valid: events.Validated | None = None
    samples: list[events.Sampled] = field(default_factory=list)
    """What was written after one step, the latest."""
    sample_since: float = 0.0
    training_since: float = field(default_factory=time.monotonic)
    """When the last phase before training ended."""
    training_seconds: float = 0.0
    """How long training has taken, compilation included."""
    summary: dict[str, Any] | None = None

    def take(self, event: events.Event) -> None:
        """Remember what `event` says."""
        match event:
            case events.PhaseStarted():
                self.phases.append(Phase(event.name, event.detail))
            case events.PhaseProgress():
                phase = self._phase(event.name)
                phase.done, phase.total = event.done, event.total
                phase.detail = event.detail or event.unit
            case events.PhaseEnded():
                phase = self._phase(event.name)
                phase.seconds = event.seconds
                phase.detail = figures(event.summary) or phase.detail
                self.training_since = time.monotonic()
            case events.StepEnded():
                self._take_step(event)
            case events.Validated():
                self.valid = event
            case events.Sampled():
                if not self.samples or self.samples[0].step != event.step:
                    self.samples, self.sample_since = [], time.monotonic()
                self.samples.append(event)
            case events.Message():
                self.message = event.text
            case events.Finished():
                self.summary = event.summary

    def sample_text(self, *, everything: bool) -> str:
        """As much of the latest sample as has been "typed" by now."""
        text = "\n\n".join(conversation(sample) for sample in self.samples)
        shown = int((time.monotonic() - self.sample_since) * CHARACTERS_PER_SECOND)
        return text if everything else text[:shown]

    def _phase(self, name: str) -> Phase:
        for phase in reversed(self.phases):
            if phase.name == name:
                return phase
        self.phases.append(Phase(name))
        return self.phases[-1]

    def _take_step(self, event: events.StepEnded) -> None:
        self.step, self.training_seconds = event, time.monotonic() - self.training_since
        self.speed = (
            event.tokens_per_second if not self.speed else 0.9 * self.speed + 0.1 * event.tokens_per_second
        )
        self.leading = self.leading or next((name for name in LEADING if name in event.figures), "")
        if event.step % self.stride == 0:
            self.losses.append(event.loss)
            if self.leading in event.figures:
                self.followed.append(event.figures[self.leading])
        if len(self.losses) > MAX_POINTS:
            self.losses, self.stride = self.losses[1::2], self.stride * 2
            self.followed = self.followed[1::2]


def sparkline(values: list[float], width: int, *, floor: float | None = None, blocks: str = BLOCKS) -> str:
    """A curve of `width` characters; the bottom is `floor` or the least value.

    Example: sparkline([3.0, 2.0, 1.0], 3) -> full, half, lowest block.
    """
    if not values or width < 1:
        return ""
    width = min(width, len(values))
    means = []
    for column in range(width):
        part = values[column * len(values) // width : (column + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    low = min(means) if floor is None else min(floor, *means, means[0])
    span = max(means) - low
    top = len(blocks) - 1
    return "".join(blocks[round((value - low) / span * top) if span > 0 else 0] for value in means)


def figures(summary: dict[str, Any]) -> str:
    """A phase's figures in words. Example: {"documents": 200} -> "200 documents"."""
    words = {
        "vocab_size": "{:,} entries",
        "documents": "{:,} documents",
        "tokens": "{:,} tokens",
        "bytes_per_token": "{:.2f} bytes per token",
    }
    return ", ".join(
        words.get(key, key.replace("_", " ") + " {}").format(value) for key, value in summary.items()
    )


def numbers(found: Mapping[str, float]) -> str:
    """The most telling further figures, in words. Example: {"reward_mean": 0.5} -> "reward 0.5"."""
    trouble = [_words(name, found[name]) for name in TROUBLE if found.get(name)]
    names = [*(name for name in TELLING if name in found), *(name for name in found if name not in TELLING)]
    text = ""
    for name in (name for name in names if name not in TROUBLE):
        words = _words(name, found[name])
        if text and len(text) + 2 + len(words) > LINE:
            break
        text += f", {words}" if text else words
    return ", ".join([*trouble, text] if text else trouble)


def _words(name: str, value: float) -> str:
    return f"{(TROUBLE | TELLING).get(name, name.replace('_', ' '))} {value:.3g}"


def conversation(sample: events.Sampled) -> str:
    """A text that continues its prompt as it is; an answer below its question."""
    if sample.text.startswith(sample.prompt):
        return sample.text
    return f"> {sample.prompt.strip()}\n{sample.text}"


def bits_per_byte(valid: events.Validated) -> str:
    """Bits per byte in words; where no text was predicted, what the loss is."""
    return "not solved" if valid.bits_per_byte is None else f"{valid.bits_per_byte:.3f} bits per byte"


def distance(valid: events.Validated) -> str:
    """How far from the floor a validation loss is, in words; empty where there is no floor."""
    if valid.floor_loss is None:
        return ""
    return f"{valid.loss - valid.floor_loss:.3f} above the floor of {valid.floor_loss:.3f}"
