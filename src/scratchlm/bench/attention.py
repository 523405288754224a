r"""Lengths, widths and ways of computing attention come in; time, arithmetic rate and memory of each go out.

    FLOPs of the forward pass    4 B H T^2 K     two products of T x T x K, 2 FLOPs each; half if causal
    of the backward pass         2.5 times that  five products instead of two
    rate                         FLOPs / median

The rate is the usual convention: work that a method does beyond it (computing the future and masking it,
computing scores again) does not count, so methods can be compared by rate as by time. Each way runs alone and
under its own name; torch's attention appears once for each of its backends, pinned, since what it takes by
itself depends on GPU and version.

What does not fit is a row of the table. A GPU runs into it. On a CPU the system would swap or kill, so three
small runs are weighed before and the parabola through them foretells the large one: memory of attention is at
most quadratic in T. In the same way a call that would take too long is foretold from the length before.

Source: the grid is that of Stanford CS336, assignment 2, sections 1.2 and 1.3; the convention that of Dao
2023, https://arxiv.org/abs/2307.08691, section 4.1.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.bench import clock
from scratchlm.bench.cases import Precision
from scratchlm.bench.tables import Status
from scratchlm.config import Config
from scratchlm.kernels import KERNELS, choose
from scratchlm.registry import unknown
from scratchlm.train.plan import free_memory

Scope = Literal["forward", "backward", "both"]
"""What is timed: the backward pass alone is that of a forward pass that is not timed."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

LENGTHS = tuple(2**power for power in range(7, 17))
"""The handout's grid: 128 to 65,536 tokens."""
WIDTHS = (16, 32, 64, 128)
"""The handout's d_head."""
FORWARD, BACKWARD = 1.0, 2.5
"""Arithmetic of the two passes, in forward passes."""

BACKENDS = {
    "sdpa-flash": "FLASH_ATTENTION",
    "sdpa-cudnn": "CUDNN_ATTENTION",
    "sdpa-efficient": "EFFICIENT_ATTENTION",
    "sdpa-math": "MATH",
}
"""Name -> the backend to which torch's attention is pinned."""
COMPILED = "compiled"
"""The reference through torch.compile."""

TUNED = "triton_tuned"
"""Its first call of each shape compiles and times some seventy tiles: minutes a shape, so only by name."""

COMPILING = {COMPILED, "flex"}
"""Ways that torch.compile writes for each shape anew."""

WEIGHED_LENGTHS = (1024, 1536, 2048)
"""Lengths that are weighed to foretell a large one: multiples of all tile sizes, and long enough that none
changes any more (torch's CPU kernel takes larger tiles from 768 queries on)."""
WEIGHED_HEADS = 2
"""Heads that are weighed; the others are as many times as much."""
SMALL_BYTES = 2**28
"""Nothing is foretold where ten tables of scores together are smaller."""
SHARE_OF_FREE = 0.8
"""Of the free memory that a case may need on a CPU."""
WEIGHING_SECONDS = 2.0
"""Longer calls are not weighed on a CPU: the profiler keeps every operation of them."""


class AttentionCase(Config):
    """One cell of the grid."""

    way: str
    """The implementation: a name of kernels/, or one of the additions above."""
    tokens: int
    """Queries and keys."""
    d_head: int
    precision: Precision
    scope: Scope
    batch: int = 1
    heads: int = 16
    causal: bool = True

    def __str__(self) -> str:
        """A few words, for somebody who waits."""
        return f"{self.way}, {self.tokens:,} tokens x {self.d_head}, {self.precision}, {self.scope}"

    @property
    def flops(self) -> float:
        """By the convention in this file's head."""
        passes = {"forward": FORWARD, "backward": BACKWARD, "both": FORWARD + BACKWARD}[self.scope]
        pairs = self.tokens**2 / (2 if self.causal else 1)
        return 4 * passes * self.batch * self.heads * pairs * self.d_head

    def at(self, tokens: int) -> "AttentionCase":
        """The same at another length."""
        return self.model_copy(update={"tokens": tokens})


class AttentionResult(Config):
    """One measured cell."""

    case: AttentionCase
    status: Status = "measured"
    note: str = ""
    """Why nothing was measured."""
    calls: int = 0
    median_ms: float | None = None
    mean_ms: float | None = None
    std_ms: float | None = None
    flops_per_second: float | None = None
    """By the median."""
    peak_bytes: int | None = None
    """Tensors alive at once, inputs included."""
    kept_bytes: int | None = None
    """What stays between the forward and the backward pass, the output included; inputs not."""


class Settings(NamedTuple):
    """How long and how often."""

    warmup: int = 5
    steps: int = 20
    limit: float = 1.0
    """Seconds for a cell, after which fewer calls have to do."""
    patience: float = 10.0
    """Seconds that one call may take; one that is foretold to take longer is left out."""


def ways() -> list[str]:
    """Return every name: our kernels as they are registered, the compiled reference, torch's backends."""
    ours = [name for name in KERNELS["attention"] if name != "sdpa"]
    return [ours[0], COMPILED, *ours[1:], *BACKENDS]


def usual_ways(device: torch.device) -> list[str]:
    """Return what is compared when nobody chooses: without tuning, on a CPU without compiling."""
    absent = {"sdpa-math"} if device.type == "cuda" else {COMPILED, "flex", "sdpa-efficient", "sdpa-cudnn"}
    absent |= {name for name in ways() if name.startswith("triton")} - _runnable(device)
    return [name for name in ways() if name not in absent | {TUNED}]


def grid(
    chosen: Iterable[str],
    *,
    lengths: Iterable[int],
    widths: Iterable[int],
    precisions: Iterable[Precision],
    scopes: Iterable[Scope],
    batch: int = 1,
    heads: int = 16,
    causal: bool = True,
) -> list[AttentionCase]:
    """Return all cells, the scopes of one setting beside each other.

    Raises:
        ValueError: An unknown way.
    """
    names = list(chosen)
    for name in names:
        if name not in ways():
            raise ValueError(unknown("attention", name, ways()))
    return [
        AttentionCase(
            way=way, tokens=tokens, d_head=d_head, precision=precision, scope=scope, batch=batch,
            heads=heads, causal=causal,
        )
        for precision, d_head, tokens, way, scope in product(precisions, widths, lengths, names, scopes)
    ]  # fmt: skip


def run_grid(
    cells: Iterable[AttentionCase],
    device: torch.device,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    starting: Callable[[AttentionCase], None] = lambda case: None,
) -> Iterator[AttentionResult]:
    """Measure the cells one after the other.

    Args:
        cells: What to measure, shorter lengths of a way before longer ones.
        device: Where.
        settings: How long and how often.
        starting: Called before each cell.
    """
    before: dict[AttentionCase, AttentionResult] = {}
    compiled_for = None
    for case in cells:
        starting(case)
        shape = case.model_copy(update={"scope": "both"})
        if case.way in COMPILING and shape != compiled_for:
            compiled_for = shape
            torch.compiler.reset()  # after eight shapes the compiler would give up and run eagerly
        result = _foretold(case, before.get(case.at(0)), device, settings) or run_case(case, device, settings)
        if result.status == "measured":  # length 0 stands for all lengths
            before[case.at(0)] = result
        yield result


def run_case(case: AttentionCase, device: torch.device, settings: Settings = Settings()) -> AttentionResult:  # noqa: B008 - frozen
    """Measure one cell; what cannot run is a result that says why."""
    try:
        with _prepared(case, device) as work:
            timing = clock.measure(
                work.run, device, warmup=settings.warmup, steps=settings.steps, limit=settings.limit,
                prepare=work.prepare, cold=True,
            )  # fmt: skip
            memory = None
            if device.type != "cpu" or timing.median < WEIGHING_SECONDS:
                memory = work.weigh()
    except clock.failures() as error:
        found = _failed(case, error)
    else:
        found = _measured(case, timing, memory)
    clock.free(device, collect=found.status != "measured")
    return found


def foretold_bytes(case: AttentionCase, device: torch.device) -> int:
    """Return what the case will take at its peak: the parabola through three small runs of few heads.

    What all heads share, the mask, counts once for every WEIGHED_HEADS: rather too much than too little.
    """
    heads = min(case.heads, WEIGHED_HEADS)
    few = {"heads": heads, "batch": 1} | ({"way": "reference"} if case.way == COMPILED else {})
    plain = case.model_copy(update=few)
    weighed = []
    for tokens in WEIGHED_LENGTHS:
        with _prepared(plain.at(tokens), device) as work:
            memory = work.weigh()
        assert memory is not None, device
        weighed.append(memory.peak)
    times = case.batch * case.heads / heads
    return round(times * _through(WEIGHED_LENGTHS, weighed, case.tokens))


class _Work:
    """Inputs of one cell and what is called on them."""

    def __init__(self, case: AttentionCase, device: torch.device, function: Callable[..., Tensor]) -> None:
        shape = case.batch, case.heads, case.tokens, case.d_head
        dtype = getattr(torch, case.precision)
        torch.manual_seed(0)
        self.case, self.device, self.function = case, device, function
        self.q, self.k, self.v = (
            torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)
        )
        self.gradient = torch.randn(shape, device=device, dtype=dtype)

    def prepare(self) -> tuple[Tensor, ...]:
        """The output whose backward pass is timed, made outside of the time."""
        self.q.grad = self.k.grad = self.v.grad = None
        return (self._forward(),) if self.case.scope == "backward" else ()

    def run(self, *outputs: Tensor) -> Tensor | None:
        """What is timed."""
        output = outputs[0] if outputs else self._forward()
        if self.case.scope == "forward":
            return output
        output.backward(self.gradient)
        return None

    def weigh(self) -> clock.Memory | None:
        """Bytes of one call; those of a backward pass with its forward pass."""
        self.q.grad = self.k.grad = self.v.grad = None
        return clock.weigh(self.run, self.device, held=(self.q, self.k, self.v, self.gradient))

    def _forward(self) -> Tensor:
        return self.function(self.q, self.k, self.v, causal=self.case.causal)


@contextlib.contextmanager
def _prepared(case: AttentionCase, device: torch.device) -> Iterator[_Work]:
    """Yield the work of a cell with its function chosen, compiled or pinned."""
    if case.way in BACKENDS:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, BACKENDS[case.way])):
            warnings.simplefilter("ignore")  # torch explains every backend that it does not take
            yield _Work(case, device, choose("attention", "sdpa").function)
    elif case.way == COMPILED:
        yield _Work(
            case, device, torch.compile(choose("attention", "reference").function, **runtime.COMPILING)
        )
    else:
        yield _Work(case, device, choose("attention", case.way, device).function)


def _foretold(
    case: AttentionCase, shorter: AttentionResult | None, device: torch.device, settings: Settings
) -> AttentionResult | None:
    """A result for what need not be tried: on a CPU too large, anywhere too long; else None."""
    try:
        needed = _bytes_if_many(case, device)
    except clock.failures() as error:
        return _failed(case, error)
    if needed > SHARE_OF_FREE * free_memory(device):
        return AttentionResult(case=case, status="out of memory", note=f"needs about {needed / 1e9:,.3g} GB")
    if shorter is None or shorter.median_ms is None:
        return None
    seconds = shorter.median_ms / 1e3 * case.flops / shorter.case.flops
    if seconds <= settings.patience:
        return None
    return AttentionResult(case=case, status="too slow", note=f"about {seconds:,.0f} s a call")


def _bytes_if_many(case: AttentionCase, device: torch.device) -> int:
    """What the case takes, where that is worth weighing: 0 for small ones, and on a GPU, which will tell."""
    scores = case.batch * case.heads * case.tokens**2 * (2 if case.precision == "bfloat16" else 4)
    if device.type != "cpu" or 10 * scores < SMALL_BYTES:
        return 0
    return foretold_bytes(case, device)


def _measured(case: AttentionCase, timing: clock.Timing, memory: clock.Memory | None) -> AttentionResult:
    return AttentionResult(
        case=case,
        calls=len(timing.seconds),
        median_ms=1e3 * timing.median,
        mean_ms=1e3 * timing.mean,
        std_ms=1e3 * timing.std,
        flops_per_second=case.flops / timing.median,
        peak_bytes=memory.peak if memory else None,
        kept_bytes=memory.kept if memory and case.scope == "forward" else None,
    )


def _failed(case: AttentionCase, error: BaseException) -> AttentionResult:
    if clock.is_out_of_memory(error):
        return AttentionResult(case=case, status="out of memory")
    # torch says on a GPU that there is no kernel, on a CPU that there is no backend
    pinned = "No available kernel" in str(error) or "No viable backend" in str(error)
    absent = pinned or isinstance(error, ValueError | ImportError)
    note = clock.reason(error)
    return AttentionResult(case=case, status="not here" if absent else "failed", note=note)


def _runnable(device: torch.device) -> set[str]:
    """Names of Triton's that run on this device."""
    from scratchlm.kernels import triton_obstacle

    return set(KERNELS["attention"]) if triton_obstacle(device) is None else set()


def _through(x: tuple[int, ...], y: list[int], at: float) -> float:
    """The value at `at` of the polynomial through the points (Lagrange)."""
    total = 0.0
    for i, value in enumerate(y):
        term = float(value)
        for j, other in enumerate(x):
            if i != j:
                term *= (at - other) / (x[i] - other)
        total += term
    return total
