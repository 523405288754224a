r"""Settings come in; how the run will be computed, and the memory, disk and time it needs, go out.

    step    = accumulation * micro-batch + update                                          train/pace.py
    seconds = compiling + steps * step + tokens to validate * seconds per token
    memory  = weights + gradients + optimizer + activations + process + allocator          train/memory.py
    disk    = checkpoints that are kept * (weights + optimizer) + 2 bytes per token

`probe=True` times and weighs real steps on random ids (train/probe.py): seconds, or half a minute where it
compiles too. Without it time and activations are estimates by formula.
"""

from dataclasses import dataclass

import psutil
import torch

from scratchlm.hardware import Peak, mfu, peak_flops
from scratchlm.model import ModelConfig, accounting
from scratchlm.runtime import choose_device, choose_precision
from scratchlm.train import memory
from scratchlm.train.config import RunConfig
from scratchlm.train.memory import MemoryPart
from scratchlm.train.pace import Draft, Timing, estimate_timing, matmul_rate, probe_timing
from scratchlm.train.probe import Probe
from scratchlm.train.trainer import Execution, largest_divisor

CACHE_FRIENDLY_TOKENS = 4096
"""On a CPU larger micro-batches only leave the caches."""


LONG_SECONDS = 600.0
"""A run of ten minutes bears a probe that compiles: up to a minute."""


@dataclass(frozen=True)
class Plan:
    """What a run will need and how it will be computed."""

    parameters: int
    flops_per_token: float
    """Training, by model/accounting.py."""
    flops: float
    """Of all steps."""
    memory: tuple[MemoryPart, ...]
    """What takes memory, by formula."""
    memory_bytes: int
    """At the peak: measured by the probe, else the sum of the parts."""
    cache_bytes: int
    """Keys and values of one text of context_length tokens while the model writes."""
    disk_bytes: int
    """Checkpoints that are kept, and the token shards where their size is known."""
    steps: int
    tokens: int
    """Seen by the model: steps * batch_tokens."""
    batch_rows: int
    """Rows in one optimizer step: the effective batch, whatever is computed at once."""
    tokens_per_parameter: float
    epochs: float | None
    """Passes over the training split; None before the data are prepared."""
    step_seconds: float
    compile_seconds: float
    validation_seconds: float | None
    """All validations; None where the size of the split or the speed is unknown."""
    seconds: float
    """Compiling, all steps, and the validations where they are known."""
    probed: Probe | None
    """What the steps took that were tried; None for an estimate."""
    rate_flops_per_second: float
    """Of a matrix product, just measured."""
    peak: Peak | None
    """Of the device, where it is known."""
    micro_batch_tokens: int
    accumulation: int
    device: str
    precision: str
    precision_reason: str
    compile: bool
    compile_reason: str
    free_to_compile: bool
    """Whether nobody has said yes or no to compiling."""

    @property
    def tokens_per_second(self) -> float:
        """Training speed between validations."""
        return self.tokens / self.steps / self.step_seconds

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak that the steps will reach; None where no peak is known."""
        return mfu(self.flops_per_token, self.tokens_per_second, self.peak) if self.peak else None


def make_plan(
    config: RunConfig,
    *,
    vocab_size: int | None = None,
    probe: bool = False,
    train_tokens: int | None = None,
    valid_tokens: int | None = None,
    world_size: int = 1,
) -> Plan:
    """Work out what `config` will need on this machine.

    Args:
        config: The run.
        vocab_size: The tokenizer's size where it is known already; else the size that the settings ask for.
        probe: Time and weigh real steps; takes seconds, or half a minute where the run will be compiled.
        train_tokens: Tokens of the training split, where the data are prepared.
        valid_tokens: Tokens of the validation split.
        world_size: Processes that share each step's rows.
    """
    here = psutil.Process().memory_info().rss
    draft = _draft(config, vocab_size, world_size)
    timing = probe_timing(draft) if probe and _fits(draft) else estimate_timing(draft)
    how = {
        "micro_rows": draft.micro_rows,
        "precision": draft.precision.name,
        "cached_logits": draft.device.type == "cpu" and not timing.compile,
    }
    if probe:
        activations = memory.counted_activations(config, draft.settings, **how)
    else:
        activations = memory.estimated_activations(draft.settings, **how)
    process = max(here, memory.PROCESS_BYTES) if draft.device.type == "cpu" else None
    parts = memory.training_parts(config, draft.settings, activations, process_bytes=process)
    peak = sum(part.num_bytes for part in parts)
    if timing.probed is not None and process is not None:
        peak = _probed_peak(config, parts, timing.probed.peak_bytes + process - here)
    return _assemble(draft, timing, parts, peak, train_tokens=train_tokens, valid_tokens=valid_tokens)


def probe_pays(plan: Plan) -> bool:
    """Whether a run with this estimate is long enough, and free enough to choose, to try steps before it."""
    return plan.probed is None and plan.free_to_compile and plan.seconds > LONG_SECONDS


def execution(plan: Plan, context_length: int) -> Execution:
    """The part of a plan that the trainer needs."""
    return Execution(
        torch.device(plan.device), plan.precision, plan.compile, plan.micro_batch_tokens // context_length
    )


def choose_micro_rows(config: RunConfig, vocab_size: int, device: torch.device, *, rows: int = 0) -> int:
    """Rows computed at once: the largest divisor of a step's rows that fits into half of the free memory.

    Args:
        config: The run.
        vocab_size: Tokens in the vocabulary.
        device: Where it is computed.
        rows: Rows of a step on this process; 0 for all of them.
    """
    asked, context = config.train.micro_batch_tokens, config.model.context_length
    rows = rows or config.rows_per_step
    if asked != "auto":
        return largest_divisor(rows, asked // context)
    settings, free = config.model.with_vocabulary(vocab_size), free_memory(device)
    fitting = min(rows, max(1, CACHE_FRIENDLY_TOKENS // context)) if device.type == "cpu" else rows
    while fitting > 1 and _formula_bytes(settings, fitting) > free / 2:
        fitting //= 2
    return largest_divisor(rows, fitting)


def free_memory(device: torch.device) -> int:
    """Bytes that `device` has free now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _probed_peak(config: RunConfig, parts: tuple[MemoryPart, ...], seen: int) -> int:
    """Add to the most that the probe saw what it does not do: it neither averages nor saves."""
    taken = {part.name: part.num_bytes for part in parts}
    seen, copy = seen + taken.get("average", 0), taken.get("copy to save", 0)
    if config.train.save_every < config.train.steps:
        return seen + copy  # it may be written while the next step is computed
    # the only save comes after the last step, when the activations have gone, and what the optimizer took
    activations = taken["activations"]
    return max(seen, min(seen + copy - activations, sum(taken.values()) - activations))


def _draft(config: RunConfig, vocab_size: int | None, world_size: int) -> Draft:
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    settings = config.model.with_vocabulary(
        vocab_size or int(config.tokenizer.settings.get("vocab_size", 256))
    )
    rows = max(1, config.rows_per_step // world_size)
    return Draft(
        config,
        settings,
        device,
        precision,
        rows,
        choose_micro_rows(config, settings.vocab_size, device, rows=rows),
        matmul_rate(device, precision.name),
    )


def _fits(draft: Draft) -> bool:
    return _formula_bytes(draft.settings, draft.micro_rows) < free_memory(draft.device)


def _formula_bytes(settings: ModelConfig, rows: int) -> int:
    held = memory.logit_tokens(settings, rows)
    return accounting.training_memory(settings, rows, settings.context_length, logit_tokens=held)


def _assemble(
    draft: Draft,
    timing: Timing,
    parts: tuple[MemoryPart, ...],
    memory_bytes: int,
    *,
    train_tokens: int | None,
    valid_tokens: int | None,
) -> Plan:
    config, settings = draft.config, draft.settings
    parameters, tokens = accounting.num_parameters(settings), config.train.steps * config.train.batch_tokens
    validation = _validation_seconds(draft, timing, valid_tokens)
    states = next(part.num_bytes for part in parts if part.name == "optimizer")
    return Plan(
        parameters=parameters,
        flops_per_token=draft.flops_per_token,
        flops=draft.flops_per_token * tokens,
        memory=parts,
        memory_bytes=memory_bytes,
        cache_bytes=accounting.cache_memory(settings, 1, settings.context_length),
        disk_bytes=_disk_bytes(config, settings, states, (train_tokens or 0) + (valid_tokens or 0)),
        steps=config.train.steps,
        tokens=tokens,
        batch_rows=config.rows_per_step,
        tokens_per_parameter=tokens / parameters,
        epochs=tokens / train_tokens if train_tokens else None,
        step_seconds=timing.step_seconds,
        compile_seconds=timing.compile_seconds,
        validation_seconds=validation,
        seconds=timing.compile_seconds + config.train.steps * timing.step_seconds + (validation or 0.0),
        probed=timing.probed,
        rate_flops_per_second=draft.rate,
        peak=peak_flops(draft.device, draft.precision.name),
        micro_batch_tokens=draft.micro_rows * settings.context_length,
        accumulation=draft.accumulation,
        device=str(draft.device),
        precision=draft.precision.name,
        precision_reason=draft.precision.reason,
        compile=timing.compile,
        compile_reason=timing.reason,
        free_to_compile=config.train.compile == "auto",
    )


def _disk_bytes(config: RunConfig, settings: ModelConfig, states: int, data_tokens: int) -> int:
    """Checkpoints that lie there at the end, the best one beside the others if there is one, and shards."""
    train = config.train
    saved = {*range(train.save_every, train.steps, train.save_every), train.steps}
    stay = set(sorted(saved)[-train.keep_checkpoints :])
    stay |= {step for step in saved if train.keep_every and step % train.keep_every == 0}
    validated = range(train.eval_every, train.steps, train.eval_every)
    best = saved | {step for step in validated if train.save_best and step > train.save_every}
    kept = len(stay) + bool(best - stay)
    one = memory.saved_bytes(config, accounting.num_parameters(settings), states)
    return one * kept + data_tokens * (2 if settings.vocab_size <= 2**16 else 4)


def _validation_seconds(draft: Draft, timing: Timing, valid_tokens: int | None) -> float | None:
    if timing.probed is None or valid_tokens is None:
        return None
    train = draft.config.train
    times = (train.steps - 1) // train.eval_every + (train.eval_tokens is not None)  # at the end once more
    tokens = times * min(train.eval_tokens or valid_tokens, valid_tokens) + valid_tokens
    return timing.probed.validation_seconds * tokens
