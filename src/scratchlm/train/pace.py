r"""A run that is settled but for its time comes in; how long a step takes, compiled or not, goes out.

    eager run    = steps * eager step
    compiled run = compiling + steps * compiled step             the one that ends earlier is taken

Both steps are tried where that can pay (`probe_timing`): eager ones first, which takes seconds; compiled ones
only if the eager run would last three times as long as compiling. Without trying, a step is estimated from a
matrix product (`estimate_timing`), FLOPs / (rate of the product * share): the share is what a step reached
of that rate, 0.52 compiled and 0.36 eager, the model of benchmarks/bench_train.py on two cores (15,725 and
10,772 tokens/s at 27.1 MFLOP each, 820 GFLOP/s). Other shapes reach other shares; it may be wrong by a factor
of two.
"""

import time
from dataclasses import dataclass

import torch

from scratchlm import runtime
from scratchlm.hardware import synchronize
from scratchlm.model import ModelConfig, accounting
from scratchlm.runtime import Precision, has_compiler, log
from scratchlm.train.config import RunConfig
from scratchlm.train.probe import CompilationError, Probe, probe_steps
from scratchlm.train.trainer import Execution

COMPILED_SHARE = 0.52
"""Share of the matrix-product rate that a compiled training step reaches (measured, see above)."""
EAGER_SHARE = 0.36
"""The same without compilation."""
COMPILE_SECONDS = 33.0
"""What torch.compile takes the first time on two cores (measured: 33 s with three layers, 38 s with four)."""


CROWDED = 2.0
"""How many times slower than one all threads are where it is worth a warning."""


def warn_if_crowded() -> None:
    """Say it when other programs keep the cores so busy that one thread would be faster than all."""
    slower = runtime.slowed_by_threads()
    if slower > CROWDED:
        log.warning(
            "Other programs keep this machine busy: %d threads are %.0f times slower than one right now. "
            "Wait for them, or begin the run with OMP_NUM_THREADS=1 (the number decides its last bits).",
            torch.get_num_threads(),
            slower,
        )


@dataclass(frozen=True)
class Draft:
    """What is settled about a run before its time is."""

    config: RunConfig
    settings: ModelConfig
    device: torch.device
    precision: Precision
    rows: int
    """Rows of a step on this process."""
    micro_rows: int
    """Rows computed at once."""
    rate: float
    """Floating-point operations per second of a matrix product."""

    @property
    def accumulation(self) -> int:
        """Micro-batches in a step."""
        return self.rows // self.micro_rows

    @property
    def flops_per_token(self) -> float:
        """Of training, by model/accounting.py."""
        return accounting.flops_per_token(self.settings, self.settings.context_length)

    def execution(self, *, compiled: bool) -> Execution:
        """What the trainer needs."""
        return Execution(self.device, self.precision.name, compiled, self.micro_rows)


@dataclass(frozen=True)
class Timing:
    """How long a step takes, and whether it is compiled."""

    step_seconds: float
    compile_seconds: float
    compile: bool
    reason: str
    probed: Probe | None = None


def estimate_timing(draft: Draft) -> Timing:
    """Estimate a step from a matrix product."""
    step = draft.flops_per_token * draft.rows * draft.settings.context_length / draft.rate
    steps = draft.config.train.steps
    compiled, reason = decide_compile(draft.config, draft.device, steps * step / EAGER_SHARE)
    share = COMPILED_SHARE if compiled else EAGER_SHARE
    return Timing(step / share, COMPILE_SECONDS if compiled else 0.0, compiled, reason)


def probe_timing(draft: Draft) -> Timing:
    """Try real steps: eager ones, and compiled ones where they may win."""
    if draft.config.train.compile is True:
        found = probe_steps(draft.config, draft.settings, draft.execution(compiled=True))
        return _timing(draft, found, "as configured", compiled=True)
    eager = probe_steps(draft.config, draft.settings, draft.execution(compiled=False))
    eager_seconds = draft.config.train.steps * eager.step_seconds(draft.accumulation)
    worth, reason = decide_compile(draft.config, draft.device, eager_seconds)
    if not worth:
        return _timing(draft, eager, reason, compiled=False)
    try:
        compiled = probe_steps(draft.config, draft.settings, draft.execution(compiled=True))
    except CompilationError as error:
        log.warning("%s; the steps stay eager.", error)
        return _timing(draft, eager, str(error), compiled=False)
    return _faster(draft, eager, compiled)


def decide_compile(config: RunConfig, device: torch.device, eager_seconds: float) -> tuple[bool, str]:
    """Whether to compile, and why: a run must be long enough to win the compilation time back."""
    if config.train.compile != "auto":
        return config.train.compile, "as configured"
    if device.type == "mps":
        return False, "compilation does not pay on MPS"
    if device.type == "cpu" and has_compiler() is None:
        return False, "no C++ compiler on this machine (g++ or clang++)"
    if eager_seconds < 3 * COMPILE_SECONDS:
        return (
            False,
            f"the run is too short ({eager_seconds:.0f} s) to win {COMPILE_SECONDS:.0f} s of compiling back",
        )
    return True, f"about {eager_seconds:,.0f} s of eager steps outweigh {COMPILE_SECONDS:.0f} s of compiling"


def matmul_rate(device: torch.device, precision: str, *, size: int = 1024) -> float:
    """Floating-point operations per second of a matrix product: the best of 50 ms and of four."""
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds) < 0.05:
        started = time.perf_counter()
        product = matrix @ matrix
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    assert product.shape == matrix.shape, product.shape
    return 2.0 * size**3 / min(seconds)


def _faster(draft: Draft, eager: Probe, compiled: Probe) -> Timing:
    """The one that ends earlier, compiling included."""
    steps, times = draft.config.train.steps, draft.accumulation
    slow, fast = eager.step_seconds(times), compiled.step_seconds(times)
    figures = f"a step takes {1e3 * slow:.0f} ms eager and {1e3 * fast:.0f} ms compiled"
    if steps * fast + compiled.compile_seconds < steps * slow:
        return _timing(
            draft, compiled, f"{figures}, compiling {compiled.compile_seconds:.0f} s", compiled=True
        )
    return _timing(draft, eager, f"{figures}: no gain in {steps:,} steps", compiled=False)


def _timing(draft: Draft, found: Probe, reason: str, *, compiled: bool) -> Timing:
    return Timing(found.step_seconds(draft.accumulation), found.compile_seconds, compiled, reason, found)
