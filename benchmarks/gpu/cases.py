"""What a part of the proof consists of: cases, each of which becomes one row of the results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]


class Case(NamedTuple):
    """One thing to check or to measure."""

    name: str
    run: Callable[[], Row]
    """Returns the row's own fields; may raise, which costs this row only."""


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    tiny: bool
    """Shapes for a rehearsal on a CPU, through Triton's interpreter."""
    until: float = float("inf")
    """time.time() after which nothing new begins."""

    @property
    def half(self) -> torch.dtype:
        """The 16-bit format; the interpreter computes bfloat16 wrongly (kernels/gpu/support.py)."""
        return torch.float16 if self.tiny else torch.bfloat16

    def pick(self, real: Any, tiny: Any) -> Any:
        """The first on a GPU, the second in a rehearsal."""
        return tiny if self.tiny else real

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        """Random numbers, never zeros: a product of zeros runs faster (13 % on an H200)."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(
            dtype or self.half
        )


class MissedError(AssertionError):
    """A result is outside its bound; the row says by how much."""

    def __init__(self, message: str, row: Row) -> None:
        super().__init__(message)
        self.row = row


class MissingError(LookupError):
    """What the case needs is not there (a kernel that is not written, a backend that torch lacks)."""
