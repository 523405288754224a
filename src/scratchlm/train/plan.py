"""What a run will need, before it starts: settings come in; parameters, memory, disk and arithmetic come out.

The formulas are those of model/accounting.py. Time is an estimate from a short matrix product on this
machine:

    seconds = floating-point operations of all steps / (rate of a matrix product * share)

where the share is what a training step reached of that rate: 0.44 compiled and 0.21 eager, the model of
benchmarks/bench_train.py on two cores (16,056 and 7,428 tokens/s at 27.1 MFLOP each, 980 GFLOP/s).
"""

import time
from dataclasses import dataclass

import psutil
import torch

from scratchlm.model import accounting
from scratchlm.runtime import choose_device, choose_precision, has_compiler
from scratchlm.train.config import RunConfig
from scratchlm.train.trainer import Execution, largest_divisor

COMPILED_SHARE = 0.44
"""Share of the matrix-product rate that a compiled training step reaches (measured, see above)."""
EAGER_SHARE = 0.21
"""The same without compilation."""
COMPILE_SECONDS = 25.0
"""What torch.compile takes the first time on two cores (measured: 18 to 25 s)."""
CACHE_FRIENDLY_TOKENS = 4096
"""On a CPU larger micro-batches only leave the caches."""


@dataclass(frozen=True)
class Plan:
    """What a run will need and how it will be computed."""

    parameters: int
    flops: float
    memory_bytes: int
    disk_bytes: int
    seconds: float
    tokens: int
    tokens_per_parameter: float
    rate_flops_per_second: float
    micro_batch_tokens: int
    accumulation: int
    device: str
    precision: str
    precision_reason: str
    compile: bool
    compile_reason: str


def make_plan(config: RunConfig, *, vocab_size: int | None = None) -> Plan:
    """Work out what `config` will need on this machine.

    Args:
        config: The run.
        vocab_size: The tokenizer's size where it is known already; else the size that the settings ask for.
    """
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    settings = config.model.with_vocabulary(
        vocab_size or int(config.tokenizer.settings.get("vocab_size", 256))
    )
    context = settings.context_length
    tokens = config.train.steps * config.train.batch_tokens
    flops = accounting.flops_per_token(settings, context) * tokens
    rate = matmul_rate(device, precision.name)
    compiled, reason = decide_compile(config, device, flops / (rate * EAGER_SHARE))
    rows = choose_micro_rows(config, settings.vocab_size, device)
    memory = accounting.training_memory(settings, rows, context)
    seconds = flops / (rate * (COMPILED_SHARE if compiled else EAGER_SHARE)) + (
        COMPILE_SECONDS if compiled else 0.0
    )
    parameters = accounting.num_parameters(settings)
    return Plan(
        parameters=parameters,
        flops=flops,
        memory_bytes=memory,
        disk_bytes=12 * parameters * (config.train.keep_checkpoints + 1),
        seconds=seconds,
        tokens=tokens,
        tokens_per_parameter=tokens / parameters,
        rate_flops_per_second=rate,
        micro_batch_tokens=rows * context,
        accumulation=config.rows_per_step // rows,
        device=str(device),
        precision=precision.name,
        precision_reason=precision.reason,
        compile=compiled,
        compile_reason=reason,
    )


def execution(plan: Plan, context_length: int) -> Execution:
    """The part of a plan that the trainer needs."""
    return Execution(
        torch.device(plan.device), plan.precision, plan.compile, plan.micro_batch_tokens // context_length
    )


def choose_micro_rows(config: RunConfig, vocab_size: int, device: torch.device) -> int:
    """Rows computed at once: the largest divisor of a step's rows that fits into half of the free memory."""
    asked, context = config.train.micro_batch_tokens, config.model.context_length
    if asked != "auto":
        return asked // context
    settings = config.model.with_vocabulary(vocab_size)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    rows = config.rows_per_step
    if device.type == "cpu":
        rows = min(rows, max(1, CACHE_FRIENDLY_TOKENS // context))
    while rows > 1 and accounting.training_memory(settings, rows, context) > free / 2:
        rows //= 2
    return largest_divisor(config.rows_per_step, rows)


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
    return True, f"about {eager_seconds:.0f} s of eager steps outweigh {COMPILE_SECONDS:.0f} s of compiling"


def matmul_rate(device: torch.device, precision: str, *, size: int = 1024) -> float:
    """Floating-point operations per second of a matrix product: the best of four."""
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    assert product.shape == matrix.shape, product.shape
    return 2.0 * size**3 / best
