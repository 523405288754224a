r"""A run and a kind of GPU come in; the best layout on so many GPUs, its memory, time and price go out.

    computing   = FLOPs per token * tokens per GPU / (peak * efficiency)     * 4/3 where blocks are recomputed
    update      = bytes of weights, gradients, optimizer state / (0.8 * the memory's bandwidth)
    step        = computing + update + messages that nothing hides           messages.py, layouts.py
    memory      = held + activations <= 0.9 * the GPU's memory               layouts.py, activations.py
    MFU         = FLOPs per token * tokens / (step * GPUs * peak)            hardware.py
    cost        = GPUs * hours * price

For each layout the micro-batch, recomputation and sharing that fit and make the shortest step are taken, and
the fastest layout is the best; of two that differ by less than 1 %, the simpler. `efficiency` is what one GPU
alone reaches of its peak while it computes: an assumption, stated with every figure.

Strong scaling: the same step on more GPUs; rows for each become few, messages stay as long. Weak scaling: a
step grows with the GPUs, and fewer steps see the same tokens; whether they learn as much is another question
(McCandlish et al. 2018, https://arxiv.org/abs/1812.06162).

What is not counted: validation, samples, checkpoints, compiling, waiting for the slowest GPU, links that
other jobs use, and Muon's exchange of whole matrices.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, NamedTuple

from scratchlm.config import Config
from scratchlm.machines import Machine
from scratchlm.model import ModelConfig, accounting
from scratchlm.model.config import divisors
from scratchlm.train import memory
from scratchlm.train.activations import Activations, count_activations
from scratchlm.train.config import RunConfig
from scratchlm.train.layouts import Layout, Messages, Sizes, held, messages_of, sizes_of
from scratchlm.train.memory import MemoryPart
from scratchlm.train.messages import exposed_seconds, total_seconds
from scratchlm.train.trainer import largest_divisor

EFFICIENCY = 0.4
"""Share of the peak while computing. Published runs reach 33 to 39 % (Llama 3 8B on 8 H100, torchtitan's
benchmarks) to 50 % (SmolLM 1.7B on 8 H100, picotron's README), counted with attention's future half."""
USABLE = 0.9
"""Share of a GPU's memory that tensors may take: the driver, kernels, NCCL's buffers and the allocator's gaps
need the rest (an assumption; a run shows its own in torch.cuda.max_memory_reserved)."""
MEMORY_SHARE = 0.8
"""Of the memory's bandwidth, that an element-wise pass reaches (4.0 of 4.8 TB/s copied on an H200)."""
RECOMPUTED = 4 / 3
"""Work of a step whose blocks run forward twice, against one whose do not: (1 + 1 + 2) / (1 + 2)."""
CLOSE = 0.01
"""Layouts this close count as equally fast."""

Scaling = Literal["strong", "weak"]


class Call(NamedTuple):
    """Messages of one kind in one phase of a step."""

    phase: str
    kind: str
    gpus: int
    """In the group that calls."""
    sent_bytes: float
    """By each GPU in a step."""
    seconds: float


class Candidate(Config):
    """One way to train on a number of GPUs, with what it needs."""

    layout: str
    """ddp, zero1, zero2 or fsdp2; "fsdp2 x8" shares each copy among 8."""
    shard: int
    """GPUs that share one copy of the parameters."""
    has_engine: bool
    """Whether the trainer can do it (distributed=NAME)."""
    micro_rows: int
    accumulation: int
    checkpointing: bool
    memory: tuple[MemoryPart, ...]
    memory_bytes: int
    """On each GPU."""
    fits: bool
    calls: tuple[Call, ...]
    """What travels in a step."""
    sent_bytes: float
    """By each GPU in a step."""
    compute_seconds: float
    update_seconds: float
    communication_seconds: float
    """All messages of a step, one after the other."""
    exposed_seconds: float
    """Those that no computation hides."""
    step_seconds: float


class ClusterPlan(Config):
    """What a run needs on a number of GPUs."""

    gpus: int
    machine: Machine
    parameters: int
    batch_tokens: int
    steps: int
    tokens: int
    flops_per_token: float
    peak_flops: float
    """Of one GPU, per second, in the number format of the products."""
    precision: str
    efficiency: float
    candidates: tuple[Candidate, ...] = ()
    """The best one of each layout, the simplest layout first."""
    obstacle: str = ""
    """Why there are none."""

    @property
    def best(self) -> Candidate | None:
        """The simplest of the fastest that fit and that the trainer can do; None where none fits."""
        fitting = [found for found in self.candidates if found.fits and found.has_engine]
        fastest = min((found.step_seconds for found in fitting), default=0.0)
        return next((found for found in fitting if found.step_seconds <= (1 + CLOSE) * fastest), None)

    @property
    def seconds(self) -> float | None:
        """All steps."""
        return self.steps * self.best.step_seconds if self.best else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all GPUs."""
        return self.batch_tokens / self.best.step_seconds if self.best else None

    @property
    def mfu(self) -> float | None:
        """Share of all peaks that the model's arithmetic reaches."""
        rate = self.tokens_per_second
        return rate and rate * self.flops_per_token / (self.gpus * self.peak_flops)

    @property
    def cost(self) -> float | None:
        """US dollars; None where the price is unknown."""
        price = self.machine.price
        return None if price is None or self.seconds is None else self.gpus * self.seconds / 3600 * price


class Task(NamedTuple):
    """What all layouts and numbers of GPUs have in common."""

    config: RunConfig
    settings: ModelConfig
    machine: Machine
    precision: str
    efficiency: float
    peak: float
    sizes: Sizes
    activations: Callable[[bool], Activations]
    """Checkpointing or not -> what a row needs."""

    @property
    def flops_per_token(self) -> float:
        """Of training, by model/accounting.py."""
        return accounting.flops_per_token(self.settings, self.settings.context_length)

    @property
    def limit(self) -> float:
        """Bytes that tensors may take on a GPU."""
        return USABLE * 1e9 * self.machine.memory_gb


def plan_cluster(
    config: RunConfig,
    machine: Machine,
    gpus: tuple[int, ...],
    *,
    vocab_size: int | None = None,
    efficiency: float = EFFICIENCY,
    scaling: Scaling = "strong",
) -> list[ClusterPlan]:
    """Work out what `config` needs on each number of GPUs.

    Args:
        config: The run.
        machine: Where.
        gpus: Numbers of GPUs, each at least 1.
        vocab_size: The tokenizer's; None for the one that the settings ask for.
        efficiency: Share of the peak while a GPU computes, above 0 and at most 1.
        scaling: What stays equal: the tokens of a step, or those of a GPU; the first number sets them.

    Raises:
        ValueError: A number is out of range, or the GPU's peak is unknown.
    """
    if not 0 < efficiency <= 1:
        raise ValueError(
            f"efficiency={efficiency}: must be above 0 and at most 1; published runs have 0.3 to 0.5."
        )
    if not gpus or min(gpus) < 1:
        raise ValueError(
            f"gpus={', '.join(map(str, gpus)) or 'none'}: give numbers of at least 1, such as 1, 8, 64."
        )
    task = _task(config, machine, vocab_size, efficiency)
    return [_plan(task, number, number / gpus[0] if scaling == "weak" else 1.0) for number in gpus]


def _task(config: RunConfig, machine: Machine, vocab_size: int | None, efficiency: float) -> Task:
    if machine.accelerator is None:
        raise ValueError(
            f"{machine.name}: its peak is unknown, so no time can be planned; name a GPU of hardware.py in "
            'the file, such as name = "H100".'
        )
    vocab_size = vocab_size or int(config.tokenizer.settings.get("vocab_size", 256))
    settings = config.model.with_vocabulary(vocab_size)
    precision = config.train.precision
    precision = "bfloat16" if precision in ("auto", "float16") else precision
    row = machine.accelerator
    states = memory.optimizer_bytes(config, settings) / accounting.num_parameters(settings)
    sizes = sizes_of(
        settings,
        state_bytes=states,
        whole_bytes=2 if precision == "bfloat16" else 4,
        averages=bool(config.train.ema_decay),
    )
    counted: dict[bool, Activations] = {}

    def activations(checkpointing: bool) -> Activations:
        if checkpointing not in counted:
            counted[checkpointing] = count_activations(settings, precision, checkpointing=checkpointing)
        return counted[checkpointing]

    peak = 1e12 * (row.bfloat16 if precision == "bfloat16" else row.float32)
    return Task(config, settings, machine, precision, efficiency, peak, sizes, activations)


def _plan(task: Task, gpus: int, growth: float) -> ClusterPlan:
    train, context = task.config.train, task.settings.context_length
    rows = round(task.config.rows_per_step * growth)
    tokens = train.steps * train.batch_tokens
    candidates, obstacle = (), ""
    if rows % gpus:
        obstacle = f"{rows:,} rows a step are not divisible by {gpus:,} GPUs; choose {_near(rows, gpus)}"
    else:
        candidates = tuple(_best(task, layouts, rows // gpus) for layouts in _layouts(task.machine, gpus))
    return ClusterPlan(
        gpus=gpus,
        machine=task.machine,
        parameters=task.sizes.parameters,
        batch_tokens=rows * context,
        steps=math.ceil(tokens / (rows * context)),
        tokens=tokens,
        flops_per_token=task.flops_per_token,
        peak_flops=task.peak,
        precision=task.precision,
        efficiency=task.efficiency,
        candidates=candidates,
        obstacle=obstacle,
    )


def _near(rows: int, gpus: int) -> str:
    """The numbers of GPUs around this one that could share so many rows: 128 rows, 7 GPUs -> "4 or 8"."""
    fitting = divisors(rows, rows)
    below, above = [n for n in fitting if n < gpus], [n for n in fitting if n > gpus]
    return " or ".join(f"{number:,}" for number in below[-1:] + above[:1])


def _layouts(machine: Machine, gpus: int) -> Iterator[list[Layout]]:
    """The layouts to compare; of those in one list the best is shown: they differ in who shares only."""
    yield [Layout("ddp", gpus, 1, machine.gpus)]
    if gpus == 1:
        return
    yield [Layout("zero1", gpus, 1, machine.gpus)]
    yield [Layout("zero2", gpus, 1, machine.gpus)]
    yield [Layout("fsdp2", gpus, gpus, machine.gpus)]
    shards = [machine.gpus * 2**power for power in range(20)]
    smaller = [shard for shard in shards if shard < gpus and gpus % shard == 0]
    if smaller:
        yield [Layout("fsdp2", gpus, shard, machine.gpus) for shard in smaller]


def _best(task: Task, layouts: list[Layout], rows: int) -> Candidate:
    """The fastest that fits; where none does, the one that needs least."""
    asked, context = task.config.train.micro_batch_tokens, task.settings.context_length
    sizes = divisors(rows, rows) if asked == "auto" else [largest_divisor(rows, asked // context)]
    checkpointing = [True] if task.config.train.gradient_checkpointing else [False, True]
    found = [
        _candidate(task, layout, rows, micro, again)
        for layout, again, micro in product(layouts, checkpointing, sizes)
    ]
    fitting = [candidate for candidate in found if candidate.fits]
    if not fitting:
        return min(found, key=lambda candidate: candidate.memory_bytes)
    return min(fitting, key=lambda candidate: (candidate.step_seconds, candidate.accumulation))


def _candidate(task: Task, layout: Layout, rows: int, micro: int, checkpointing: bool) -> Candidate:
    accumulation, machine = rows // micro, task.machine
    activations = task.activations(checkpointing).part(micro, 1e9 * machine.memory_gb)
    parts = (*held(layout, task.sizes), activations)
    total = sum(part.num_bytes for part in parts)
    sent = messages_of(layout, task.sizes)
    computing = task.flops_per_token * micro * task.settings.context_length / (task.peak * task.efficiency)
    computing *= RECOMPUTED if checkpointing else 1.0
    forward = computing / (4 if checkpointing else 3)
    bare, travelling = _waiting(sent, machine, accumulation, forward, computing - forward)
    updating = _update_seconds(task, layout)
    return Candidate(
        layout=layout.title,
        shard=layout.shard,
        has_engine=layout.name != "zero2",
        micro_rows=micro,
        accumulation=accumulation,
        checkpointing=checkpointing,
        memory=parts,
        memory_bytes=total,
        fits=total <= task.limit,
        calls=_calls(sent, machine, accumulation),
        sent_bytes=sent.sent_bytes(accumulation),
        compute_seconds=accumulation * computing,
        update_seconds=updating,
        communication_seconds=travelling,
        exposed_seconds=bare,
        step_seconds=accumulation * computing + updating + bare,
    )


def _waiting(
    sent: Messages, machine: Machine, accumulation: int, forward: float, backward: float
) -> tuple[float, float]:
    """Seconds of a step's messages that are not hidden, and of all."""
    earlier, last = sent.backward, sent.backward + sent.last_backward
    bare = accumulation * exposed_seconds(sent.forward, machine, forward)
    bare += (accumulation - 1) * exposed_seconds(earlier, machine, backward)
    bare += exposed_seconds(last, machine, backward) + total_seconds(sent.update, machine)
    travelling = accumulation * total_seconds(sent.forward + sent.backward, machine)
    return bare, travelling + total_seconds(sent.last_backward + sent.update, machine)


def _calls(sent: Messages, machine: Machine, accumulation: int) -> tuple[Call, ...]:
    """Every phase's messages in a step."""
    repeated = {"forward": accumulation, "backward": accumulation}
    return tuple(
        Call(
            phase.replace("_", " "),
            message.kind,
            message.group.size,
            repeated.get(phase, 1) * message.sent_bytes,
            repeated.get(phase, 1) * message.seconds(machine),
        )
        for phase, found in sent._asdict().items()
        for message in found
    )


def _update_seconds(task: Task, layout: Layout) -> float:
    """Weights and state are read and written, gradients read."""
    share = 1 / layout.shard if layout.name in ("ddp", "fsdp2") else task.sizes.largest_share(layout.gpus)
    traffic = (4 + 4 + 4 + 2 * task.sizes.state_bytes) * task.sizes.parameters * share
    return traffic / (MEMORY_SHARE * 1e9 * task.machine.memory_gb_per_second)
