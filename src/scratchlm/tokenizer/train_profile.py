"""Where the time and the memory of a training go: phase by phase, as a table.

    phase         seconds   peak memory
    count            0.06       142 MB      995 MB/s, 13,212,021 pieces
    ...

Pass a `TrainingProfile` to `train_bpe` or `train_bpe_on_file` and print it afterwards.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a training."""

    name: str
    """What was done."""

    seconds: float
    """How long it took."""

    peak_bytes: int
    """The most memory this process ever held until the end of the phase; 0 where the system does not say."""


@dataclasses.dataclass
class TrainingProfile:
    """What a training did; filled while it runs."""

    phases: list[Phase] = dataclasses.field(default_factory=list)
    """The phases in order."""

    num_threads: int = 0
    """Threads that counting was allowed."""

    num_bytes: int = 0
    """Bytes of text, special tokens included."""

    num_occurrences: int = 0
    """Pieces of the text."""

    num_pieces: int = 0
    """Distinct pieces."""

    table_bytes: int = 0
    """Memory of the table of distinct pieces."""

    num_merges: int = 0
    """Merges learnt."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside the `with` block."""
        start = time.perf_counter()
        yield
        self.phases.append(Phase(name, time.perf_counter() - start, _peak_bytes()))

    def seconds(self, name: str | None = None) -> float:
        """Seconds of the phase called `name`, or of all."""
        return sum(phase.seconds for phase in self.phases if name in (None, phase.name))

    def __str__(self) -> str:
        """The table, ready to be shown."""
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        done = {
            "count": f"{_rate(self.num_bytes / 1e6, self.seconds('count'))} MB/s on {threads}; "
            f"{self.num_occurrences:,} pieces",
            "combine": f"{self.num_pieces:,} distinct pieces in a table of {self.table_bytes / 1e6:,.0f} MB",
            "merge": f"{_rate(self.num_merges, self.seconds('merge'))} merges/s",
        }
        lines = [f"{'phase':<12}{'seconds':>9}{'peak memory':>14}"]
        for phase in self.phases:
            memory = f"{phase.peak_bytes / 1e6:,.0f} MB" if phase.peak_bytes else "unknown"
            note = done.get(phase.name, "")
            lines.append(f"{phase.name:<12}{phase.seconds:>9.3f}{memory:>14}   {note}".rstrip())
        return "\n".join([*lines, f"{'in all':<12}{self.seconds():>9.3f}"])


def _rate(amount: int | float, seconds: float) -> str:
    return f"{amount / seconds:,.0f}" if seconds > 0 else "0"


def _peak_bytes() -> int:
    """The most memory this process ever held."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
