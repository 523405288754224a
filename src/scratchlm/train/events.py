"""What a run tells whoever watches it: small frozen records, in the order in which things happen.

The run calls `on_event(event)` and knows nothing of terminals; the command line draws them, a test collects
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of the run begins ("tokenizer", "data", "compile", "train", ...)."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class PhaseProgress:
    """How far the running phase is."""

    name: str
    done: int
    total: int | None
    unit: str
    detail: str = ""


@dataclass(frozen=True)
class PhaseEnded:
    """A phase is over."""

    name: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepEnded:
    """One optimizer step is done. `loss` is in nats per token."""

    step: int
    total_steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    """Seen so far."""
    epochs: float
    """Passes over the training split so far."""
    tokens_per_second: float
    mfu: float | None
    """Share of the device's peak arithmetic; None where no peak is known."""
    seconds_left: float
    figures: dict[str, float] = field(default_factory=dict)
    """Further numbers of this step."""
    tokens_per_parameter: float | None = None
    """Seen so far, for each number that is trained; None where nothing reads tokens."""


@dataclass(frozen=True)
class Validated:
    """The validation split was measured. Losses are in nats per token, or what post-training minimises."""

    step: int
    loss: float
    bits_per_byte: float | None
    """None where no text was predicted: then `loss` is the share of problems that were not solved."""
    floor_loss: float | None
    best: bool
    figures: dict[str, float] = field(default_factory=dict)
    """Further numbers that were measured."""


@dataclass(frozen=True)
class Sampled:
    """The model wrote a text; `pieces` holds each token's text and probability."""

    step: int
    prompt: str
    text: str
    pieces: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Message:
    """Something worth a line."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over; `summary` is what summary.json holds."""

    summary: dict[str, Any]


Event = (
    PhaseStarted | PhaseProgress | PhaseEnded | StepEnded | Validated | Sampled | Saved | Message | Finished
)
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing: the default for `on_event`."""
