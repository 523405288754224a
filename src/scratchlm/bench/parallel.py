r"""A model and the name of a way come in; the model that several processes train goes out, ready to step.

                     who wrote it            parameters   gradients   optimizer state
    alone            nobody communicates     all          all         all
    per_parameter, flat, overlapped, bucketed
                     distributed/ddp.py      all          all         all
    torch, torch_views
                     torch's DDP             all          all         all
    zero1, zero2     distributed/zero.py     all          all; 1/N    1/N
    fsdp             distributed/fsdp.py     1/N          1/N         1/N
    fsdp2            torch's fully_shard     1/N          1/N         1/N

Every way trains the same objective with the same AdamW in one group, so that nothing but the communication
differs. Both kinds of fully sharded training cut the model alike: each block is a unit and the rest
(embedding, last norm, head) another. `torch_views` is torch's DDP whose gradients are views into its buckets,
which saves a copy; torch's own default copies. Neither sends buffers, as ours does not.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.bench.cases import Precision, StepCase, estimated_bytes
from scratchlm.bench.group import read_group
from scratchlm.bench.tables import size
from scratchlm.config import Config
from scratchlm.distributed.buckets import BucketSize, take_from_first
from scratchlm.distributed.ddp import DATA_PARALLEL, DataParallel
from scratchlm.distributed.engine_ddp import torch_averaging
from scratchlm.distributed.fsdp import FullySharded
from scratchlm.distributed.process import Processes
from scratchlm.distributed.zero import ShardedGradients, ShardedOptimizer
from scratchlm.hardware import synchronize
from scratchlm.model import MODELS, ModelConfig, accounting
from scratchlm.model.block import Block
from scratchlm.optim import OPTIMIZERS
from scratchlm.train.config import TrainConfig
from scratchlm.train.objective import Objective
from scratchlm.train.plan import free_memory

FLOAT32 = 4
"""Bytes of a number."""
OPTIMIZER = "adamw"
"""Two numbers of state for each parameter, as the formulas of memory count."""


class ParallelCase(Config):
    """What several processes train together."""

    model: str
    """The size's name, for the table."""
    settings: ModelConfig
    """The model."""
    batch: int = Field(4, ge=1)
    """Rows of context_length tokens for each process."""
    precision: Precision = "float32"
    """Number format of matrix products; weights stay float32."""
    backend: str = "gloo"
    """gloo or nccl."""
    world_size: int = Field(2, ge=1)
    """Processes."""
    way: str = "bucketed"
    """How they share the work."""
    bucket_mb: BucketSize = "auto"
    """Largest bucket, where there are any; None: no limit; auto: as each way does by itself."""

    def __str__(self) -> str:
        """A few words, for somebody who waits."""
        return f"{self.model}, {self.way}, {self.world_size} processes"


class ParallelGroup(Config):
    """All that one group of processes measures, in turns."""

    cases: tuple[ParallelCase, ...]
    """They differ in `way` and `bucket_mb` only."""
    warmup: int = Field(2, ge=1)
    """Steps of each before the first that counts."""
    rounds: int = Field(10, ge=1)
    """Turns of each."""
    steps: int = Field(3, ge=1)
    """Steps of each turn, timed together."""


class Parallel:
    """One way of training: what computes, what moves the weights, and what stands between."""

    def __init__(self, module: Module, optimizer: Optimizer) -> None:
        self.module, self.optimizer = module, optimizer

    def forward_backward(self, batch: tuple[Tensor, Tensor]) -> None:
        """Compute the gradients, and whatever of their exchange this way does meanwhile."""
        for parameter in self.module.parameters():
            parameter.grad = None
        self.module(*batch).backward()

    def finish(self) -> None:
        """Wait until the optimizer may use the gradients."""
        if isinstance(self.module, DataParallel):
            self.module.finish_gradient_synchronization()

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Do a whole training step."""
        self.forward_backward(batch)
        self.finish()
        self.optimizer.step()

    def parameters(self) -> list[Tensor]:
        """Return what this process holds of the parameters between two steps."""
        return list(self.module.parameters())

    def gradients(self) -> list[Tensor]:
        """Return what it holds of the gradients before the optimizer's step."""
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def states(self) -> list[Tensor]:
        """Return what the optimizer remembers here."""
        values = (value for state in self._states().values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor)]

    def _states(self) -> Mapping[Tensor, Mapping[str, Any]]:
        sharded = isinstance(self.optimizer, ShardedOptimizer)
        return (self.optimizer.inner if sharded else self.optimizer).state


class ParallelShards(Parallel):
    """Torch's fully_shard, and an optimizer over plain tensors: the shards that are on this process."""

    def __init__(self, module: Module) -> None:
        self._shards = {parameter: Parameter(parameter.to_local()) for parameter in module.parameters()}
        super().__init__(module, _optimizer(list(self._shards.values())))

    def finish(self) -> None:
        """Show the optimizer the gradients' shards."""
        for parameter, shard in self._shards.items():
            shard.grad = None if parameter.grad is None else parameter.grad.to_local()

    def parameters(self) -> list[Tensor]:
        """Return the shards."""
        return list(self._shards.values())


def build(way: str, objective: Module, *, bucket_mb: BucketSize = "auto") -> Parallel:
    """Return an objective, its parameters now process 0's, and all that training it in this way needs.

    Args:
        way: One of WAYS.
        objective: Inputs and targets -> loss, on the device where it will run.
        bucket_mb: Largest bucket, where the way has any; None: no limit; auto: as the way does by itself.
    """
    if way in DATA_PARALLEL.names():
        settings = {"bucket_mb": bucket_mb} if way == "bucketed" else {}
        module = DATA_PARALLEL.build(way, objective, **settings)
        return Parallel(module, _optimizer(module.parameters()))
    return _MAKERS[way](objective, bucket_mb)


def _alone(objective: Module, bucket_mb: BucketSize) -> Parallel:
    for parameter in objective.parameters():
        take_from_first(parameter)
    return Parallel(objective, _optimizer(objective.parameters()))


def _torch(objective: Module, bucket_mb: BucketSize, *, views: bool) -> Parallel:
    everything = sum(p.nbytes for p in objective.parameters()) / 1e6 + 1
    limits: dict[BucketSize, float | None] = {None: everything, "auto": None}
    module = torch_averaging(
        objective, bucket_cap_mb=limits.get(bucket_mb, bucket_mb), gradient_as_bucket_view=views
    )
    return Parallel(module, _optimizer(module.parameters()))


def _zero1(objective: Module, bucket_mb: BucketSize) -> Parallel:
    module = DATA_PARALLEL.build("bucketed", objective, bucket_mb=bucket_mb)
    return Parallel(module, ShardedOptimizer(module.parameters(), _optimizer))


def _zero2(objective: Module, bucket_mb: BucketSize) -> Parallel:
    optimizer = ShardedOptimizer(objective.parameters(), _optimizer)
    return Parallel(ShardedGradients(objective, optimizer, bucket_mb=bucket_mb), optimizer)


def _fsdp(objective: Module, bucket_mb: BucketSize) -> Parallel:
    module = FullySharded(objective, lambda part: part is objective or isinstance(part, Block))
    return Parallel(module, _optimizer(module.parameters()))


def _fsdp2(objective: Module, bucket_mb: BucketSize) -> Parallel:
    device = next(objective.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for part in list(objective.modules()):
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    return ParallelShards(fully_shard(objective, mesh=mesh))


def _optimizer(params: ParamsT) -> Optimizer:
    return OPTIMIZERS.build(OPTIMIZER, params)


_MAKERS: dict[str, Callable[[Module, BucketSize], Parallel]] = {
    "alone": _alone,
    "torch": partial(_torch, views=False),
    "torch_views": partial(_torch, views=True),
    "zero1": _zero1,
    "zero2": _zero2,
    "fsdp": _fsdp,
    "fsdp2": _fsdp2,
}

DATA_PARALLEL_WAYS = ("per_parameter", "flat", "overlapped", "bucketed", "torch", "torch_views")
"""Every process holds everything."""
SHARDED_WAYS = ("bucketed", "zero1", "zero2", "fsdp", "fsdp2")
"""From all on every process to a share of all; `bucketed` is what the others are compared with."""


def run_group(
    name: str, group: ParallelGroup, *, starting: Callable[[str], None] = lambda text: None
) -> Iterator[Any]:
    """Let all candidates take turns in one group of processes; yield what was found of each.

    Args:
        name: The file that does the work: ddp or shards; its `RESULT` is the class that reads what it finds.
        group: What to measure.
        starting: Called with what comes next.

    Raises:
        ProcessError: A process failed.
    """
    first, kind = group.cases[0], importlib.import_module(f"scratchlm.bench.{name}").RESULT
    for record in read_group(name, group, world_size=first.world_size, backend=first.backend):
        if "next" in record:
            starting(record["next"])
        else:
            yield kind.model_validate(record)


def title(case: ParallelCase) -> str:
    """Return what all rows of a table have in common."""
    numbers = accounting.num_parameters(case.settings)
    count = f"{numbers / 1e9:.1f} B" if numbers >= 1e9 else f"{numbers / 1e6:.3g} M"
    return (
        f"{case.model} ({count}), {case.batch} x {case.settings.context_length:,} for each of "
        f"{case.world_size} processes, {case.precision}, {case.backend}"
    )


def check(group: ParallelGroup) -> None:
    """Ask whether this machine can run a group.

    Raises:
        ValueError: There are too few GPUs, or the models do not fit into a CPU's memory together.
    """
    case = group.cases[0]
    if case.backend == "nccl":
        if torch.cuda.device_count() < case.world_size:
            raise ValueError(
                f"nccl: {case.world_size} processes need as many GPUs, {torch.cuda.device_count()} found; "
                "take fewer --processes or --backend gloo."
            )
        return
    step = StepCase(model=case.model, settings=case.settings, batch=case.batch, precision=case.precision)
    models = 4 * FLOAT32 * accounting.num_parameters(case.settings)  # weights, gradients, two states
    needed = case.world_size * (estimated_bytes(step) + (len(group.cases) - 1) * models)
    there = free_memory(torch.device("cpu"))
    if needed > there:
        raise ValueError(
            f"{len(group.cases)} models of {case.model} in {case.world_size} processes need about "
            f"{size(needed)}, {size(there)} are free; take a smaller --model or fewer --ways."
        )


def device_of(processes: Processes) -> torch.device:
    """Return this process's GPU, or the CPU where it sees none."""
    return torch.device("cuda", processes.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def make_objective(case: ParallelCase, device: torch.device) -> Objective:
    """Return the case's model and loss; the same numbers on every process that calls it."""
    torch.manual_seed(0)
    settings = case.settings
    with torch.device(device):
        model = MODELS.get(settings.name)(settings).to(device)
    tokens = case.batch * settings.context_length
    return Objective(
        model,
        TrainConfig(steps=1, batch_tokens=tokens),
        device=device,
        precision=case.precision,
        micro_tokens=tokens,
        compiled=False,
        end_of_text_id=0,
    )


def random_batch(case: ParallelCase, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, random ids; another seed for each process."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = case.batch, case.settings.context_length + 1
    ids = torch.randint(case.settings.vocab_size, shape, generator=generator, device=device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def slowest_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long the slowest process takes for one call from a common start; on all processes."""
    distributed.barrier()
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=device)
    distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    return seconds.item()
