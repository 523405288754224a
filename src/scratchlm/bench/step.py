r"""Models, batches and ways of computing come in; time, speed and peak memory of a training step go out.

    warm-up (5) | call, call, ... (10)  ->  mean +- std, median     peak memory of one more call
    tokens/s = batch * context_length / median        MFU = FLOPs / median / the device's peak

Every case is built anew and given back before the next. What does not fit is a row that says so: a GPU runs
into it, a CPU (where the system would kill the process or swap) is asked before by formula.

Source: the grid is that of Stanford CS336, assignment 2, section 1.1 (benchmarking, mixed precision, memory);
MFU: hardware.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import torch

from scratchlm.bench import clock
from scratchlm.bench.cases import Precision, Scope, StepCase, Workbench, estimated_bytes, size_of
from scratchlm.bench.tables import Status, Table, milliseconds, places_of, size
from scratchlm.config import Config
from scratchlm.hardware import peak_flops
from scratchlm.model import accounting
from scratchlm.train.plan import free_memory

LARGE = 10_000_000
"""Parameters of a model that is looked for and taken away before the next is built."""

SCOPE_WORDS = {"forward": "forward", "both": "forward + backward", "step": "full step"}
"""How a table calls a scope."""


class StepResult(Config):
    """One measured case."""

    case: StepCase
    status: Status = "measured"
    note: str = ""
    """Why nothing was measured."""
    parameters: int = 0
    warmup: int = 0
    """Calls before the first that counts."""
    calls: int = 0
    """Calls that count."""
    mean_ms: float | None = None
    std_ms: float | None = None
    """Sample standard deviation."""
    median_ms: float | None = None
    tokens_per_second: float | None = None
    """By the median."""
    flops_per_second: float | None = None
    """The model's arithmetic by the median."""
    mfu: float | None = None
    """Share of the device's peak; None where no peak is known."""
    peak_bytes: int | None = None
    """Tensors alive at once, weights included."""


def cases(
    models: Iterable[str],
    *,
    scopes: Iterable[Scope],
    precisions: Iterable[Precision] = ("float32",),
    compiled: Iterable[bool] = (False,),
    checkpointing: Iterable[bool] = (False,),
    batches: Iterable[int] = (4,),
    contexts: Iterable[int] = (),
    optimizer: str = "adamw",
    changes: Mapping[str, Any] | None = None,
) -> list[StepCase]:
    """Return every combination, models outermost; a forward pass alone has nothing to checkpoint.

    Args:
        models: Names of sizes.
        scopes: How much of a step.
        precisions: Number formats.
        compiled: With and without torch.compile.
        checkpointing: With and without gradient checkpointing.
        batches: Rows in a batch.
        contexts: Tokens in a row; each size's own by default.
        optimizer: For the full step.
        changes: Settings of the model that differ from the size's.
    """
    made = []
    lengths = [{"context_length": length} for length in contexts] or [{}]
    for name, length in product(models, lengths):
        settings = size_of(name, {**(changes or {}), **length})
        for batch, precision, fast, again, scope in product(
            batches, precisions, compiled, checkpointing, scopes
        ):
            if not (again and scope == "forward"):
                made.append(
                    StepCase(
                        model=name, settings=settings, batch=batch, scope=scope, precision=precision,
                        compiled=fast, checkpointing=again, optimizer=optimizer,
                    )
                )  # fmt: skip
    return made


def run_cases(
    chosen: Iterable[StepCase],
    device: torch.device,
    *,
    warmups: Iterable[int] = (5,),
    steps: int = 10,
    limit: float = float("inf"),
    starting: Callable[[StepCase], None] = lambda case: None,
) -> Iterator[StepResult]:
    """Measure the cases one after the other.

    Args:
        chosen: What to measure.
        device: Where.
        warmups: Calls before the first that counts; several numbers measure each case with each.
        steps: Calls that count.
        limit: Seconds per case, after which fewer calls have to do.
        starting: Called before each measurement.
    """
    counts = tuple(warmups)
    for case in chosen:
        for warmup in counts:
            starting(case)
            yield run_case(case, device, warmup=warmup, steps=steps, limit=limit)


def run_case(
    case: StepCase,
    device: torch.device,
    *,
    warmup: int = 5,
    steps: int = 10,
    limit: float = float("inf"),
) -> StepResult:
    """Build, measure and weigh one case; a case that cannot run is a result that says why."""
    parameters = accounting.num_parameters(case.settings)
    needed, there = estimated_bytes(case), free_memory(device)
    if device.type == "cpu" and needed > there:
        note = f"needs about {needed / 1e9:,.1f} GB, {there / 1e9:,.1f} GB are free"
        return StepResult(case=case, status="out of memory", note=note, parameters=parameters, warmup=warmup)
    try:
        bench = Workbench(case, device)
        timing = clock.measure(bench.run, device, warmup=warmup, steps=steps, limit=limit)
        bench.model.zero_grad(set_to_none=True)
        memory = clock.weigh(bench.run, device, held=bench.held())
    except clock.failures() as error:
        short = clock.is_out_of_memory(error)
        status: Status = "out of memory" if short else "failed"
        note = "" if short else clock.reason(error)
        return StepResult(case=case, status=status, note=note, parameters=parameters, warmup=warmup)
    finally:
        bench = None
        if case.compiled:
            torch.compiler.reset()
        clock.free(device, collect=case.compiled or parameters > LARGE)
    known = peak_flops(device, case.precision)
    rate = case.flops / timing.median
    return StepResult(
        case=case,
        parameters=parameters,
        warmup=warmup,
        calls=len(timing.seconds),
        mean_ms=1e3 * timing.mean,
        std_ms=1e3 * timing.std,
        median_ms=1e3 * timing.median,
        tokens_per_second=case.tokens / timing.median,
        flops_per_second=rate,
        mfu=rate / known.flops_per_second if known else None,
        peak_bytes=memory.peak if memory else None,
    )


def tables(results: list[StepResult]) -> list[Table]:
    """Return one table; a column in which all rows say the same moves into its title."""
    if not results:
        return []
    labels = {
        "model": [_model(result) for result in results],
        "batch": [f"{r.case.batch} x {r.case.settings.context_length:,}" for r in results],
        "precision": [result.case.precision for result in results],
        "compiled": ["compiled" if result.case.compiled else "eager" for result in results],
        "checkpointing": ["checkpointed" if r.case.checkpointing else "all kept" for r in results],
        "warm-up": [str(result.warmup) for result in results],
        "pass": [SCOPE_WORDS[result.case.scope] for result in results],
    }
    common = {name: cells[0] for name, cells in labels.items() if len(set(cells)) == 1}
    shown = [name for name in labels if name not in common or name == "pass"]
    figures = ["median", "mean +- std", "tokens/s", "MFU", "peak memory"]
    if all(result.mfu is None for result in results):
        figures.remove("MFU")
    rows = [
        [*(labels[name][number] for name in shown), *_figures(result, figures)]
        for number, result in enumerate(results)
    ]
    title = ", ".join(text for name, text in common.items() if name not in ("pass", "warm-up"))
    return [Table(title, [*shown, *figures], rows, len(shown))]


def _figures(result: StepResult, columns: list[str]) -> list[str]:
    if result.median_ms is None or result.mean_ms is None or result.tokens_per_second is None:
        words = result.status if not result.note else f"{result.status}: {result.note}"
        return [words, *[""] * (len(columns) - 1)]
    places = places_of(result.mean_ms)
    found = {
        "median": f"{milliseconds(result.median_ms)} ms",
        "mean +- std": f"{result.mean_ms:,.{places}f} +- {result.std_ms or 0.0:,.{places}f} ms",
        "tokens/s": f"{result.tokens_per_second:,.0f}",
        "MFU": "" if result.mfu is None else f"{result.mfu:.1%}",
        "peak memory": "" if result.peak_bytes is None else size(result.peak_bytes),
    }
    return [found[name] for name in columns]


def _model(result: StepResult) -> str:
    numbers = result.parameters
    count = f"{numbers / 1e9:.1f} B" if numbers >= 1e9 else f"{numbers / 1e6:.3g} M"
    return f"{result.case.model} ({count})"
