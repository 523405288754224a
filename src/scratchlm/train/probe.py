r"""Settings come in; the time and the memory of a few real steps on random ids go out.

    seconds per step = accumulation * micro-batch + update

    micro-batch    forward, loss and backward of one micro-batch, in the run's number format
    update         clipping, the optimizer, giving the gradient's memory back
    validation     forward passes over the rows that validation takes at once
    compiling      a first compiled micro-batch, less what the later ones take; the probe filled torch's cache

Time depends on ids hardly at all, so random ones will do: no text and no tokenizer is needed. The first steps
warm up; of the others the median counts, so that one disturbance of the machine changes nothing. Nothing of
the probe stays: random numbers are drawn afterwards as if it had never run.
"""

import gc
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from scratchlm.evaluate.likelihood import rows_together
from scratchlm.hardware import synchronize
from scratchlm.loss import token_losses
from scratchlm.model import MODELS, ModelConfig
from scratchlm.optim.clip import clip_gradients_
from scratchlm.runtime import COMPILING, autocast, keeping_freed_memory, log, release_freed_memory
from scratchlm.train.build import build_optimizer
from scratchlm.train.config import RunConfig
from scratchlm.train.objective import Objective
from scratchlm.train.trainer import Execution

STEPS = 5
"""Steps that are timed, after those that are not."""
WARM_SECONDS = 0.5
"""Steps are not timed for so long: the first small ones took a quarter more than the later (measured)."""
SECONDS = 10.0
"""Fewer steps when they take longer than this together; two at least, of which the faster counts."""


class Probe(NamedTuple):
    """What a few steps took."""

    micro_seconds: float
    """Forward and backward of one micro-batch."""
    update_seconds: float
    """Clipping, optimizer, giving the gradient's memory back."""
    compile_seconds: float
    """What compiling will take, now that the compiled code lies in torch's cache on disk; 0 without it."""
    validation_seconds: float
    """Per token of the validation split."""
    peak_bytes: int
    """On a CPU the process's memory at its highest, else the device's."""
    steps: int
    """How many steps were timed."""

    def step_seconds(self, accumulation: int) -> float:
        """One optimizer step of `accumulation` micro-batches."""
        return accumulation * self.micro_seconds + self.update_seconds


class CompilationError(ValueError):
    """torch.compile does not work here."""


def probe_steps(config: RunConfig, settings: ModelConfig, execution: Execution) -> Probe:
    """Time and weigh some steps of the run.

    Args:
        config: The run.
        settings: Its model, with the vocabulary.
        execution: Device, number format, compilation, rows at once.

    Raises:
        CompilationError: `execution` asks for compilation, which fails on this machine.
        torch.OutOfMemoryError: The device is too small.
    """
    with _leaving_no_trace(execution):
        torch.manual_seed(config.seed)
        return _measure(config, settings, execution)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held so far: the process's on a CPU, the device's elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return _peak_by_system()


def _peak_by_system() -> int:
    """The high-water mark where there is no /proc."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kilobytes


def _measure(config: RunConfig, settings: ModelConfig, execution: Execution) -> Probe:
    device = execution.device
    _reset_peak(device)
    model = MODELS.get(settings.name)(settings).to(device)
    eager = Objective(
        model,
        config.train,
        device=device,
        precision=execution.precision,
        micro_tokens=execution.micro_rows * settings.context_length,
        compiled=execution.compile,
        end_of_text_id=0,
    )
    objective = torch.compile(eager, **COMPILING) if execution.compile else eager
    ids = torch.randint(settings.vocab_size, (execution.micro_rows, settings.context_length + 1))
    batch = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)
    compiling = 0.0
    try:
        micro, update = _time_steps(config, model, objective, batch, device)
        timed = statistics.median_low(micro)
        if execution.compile:
            compiling = max(0.0, _time_compiling(eager, batch) - timed)
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to load

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise CompilationError(f"torch.compile fails on this machine: {reason}") from error
    release_freed_memory()  # as a run does before it validates
    return Probe(
        micro_seconds=timed,
        update_seconds=statistics.median_low(update),
        compile_seconds=compiling,
        validation_seconds=_time_validation(settings, model, execution),
        peak_bytes=peak_bytes(device),
        steps=len(micro),
    )


def _time_steps(
    config: RunConfig,
    model: torch.nn.Module,
    objective: Objective,
    batch: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Seconds of the micro-batches and of the updates, after those that warmed up."""
    optimizer = build_optimizer(config, model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def one_step() -> tuple[float, float]:
        started = time.perf_counter()
        objective(*batch).backward()
        synchronize(device)
        between = time.perf_counter()
        clip_gradients_(parameters, config.train.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        return between - started, time.perf_counter() - between

    if config.rows_per_step > len(batch[0]):  # the second micro-batch has the gradient of the first beside it
        objective(*batch).backward()
    one_step()  # compiles, allocates
    warming = sum(one_step())
    while warming < WARM_SECONDS:
        warming += sum(one_step())
    timed = [one_step(), one_step()]
    while len(timed) < STEPS and sum(map(sum, timed)) < SECONDS:
        timed.append(one_step())
    return [micro for micro, _ in timed], [update for _, update in timed]


def _time_compiling(eager: Objective, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Seconds of compiling once more, as the run will: most of the work is found on disk by then."""
    torch.compiler.reset()
    again = torch.compile(eager, **COMPILING)
    started = time.perf_counter()
    again(*batch).backward()
    return time.perf_counter() - started


def _time_validation(settings: ModelConfig, model: torch.nn.Module, execution: Execution) -> float:
    """Seconds per token of looking as evaluate/likelihood.py does, not compiled: the fastest of three."""
    device = execution.device
    rows = rows_together(settings.context_length, settings.vocab_size)
    ids = torch.randint(settings.vocab_size, (rows, settings.context_length), device=device)
    seconds = []
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            with autocast(device, execution.precision):
                logits = model(ids)
            float(token_losses(logits, ids).sum())
            seconds.append(time.perf_counter() - started)
    return min(seconds) / ids.numel()


@contextmanager
def _leaving_no_trace(execution: Execution) -> Iterator[None]:
    """Give random numbers, compiled code and memory back as they were."""
    device = execution.device
    devices = [device] if device.type == "cuda" else []
    with keeping_freed_memory():  # as in a run
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            if execution.compile:
                torch.compiler.reset()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _reset_peak(device: torch.device) -> None:
    """Start a new high-water mark where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        except OSError:
            log.debug("the high-water mark of memory counts from the start of the process here")
