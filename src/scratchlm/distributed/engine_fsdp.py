"""The engine fsdp2: each process keeps 1/N of parameters, gradients and state; blocks become whole in turn.

    forward    gather 0 | block 0 | free     gather 1 meanwhile | block 1 | free ...
    backward   gather 1 | block 1 | free     reduce-scatter its gradients while block 0 computes ...
    step       each process moves its own rows with its own rows of the state

torch's fully_shard does this: a group for each block and one, the root, for what is left (embeddings, last
norm, head), which stays whole from its forward to its backward pass. Rows of every tensor are dealt out in
order: process r of N keeps rows ceil(rows / N) * r and the following. The optimizer gets these rows as plain
tensors that share memory with torch's DTensors; what works coordinate by coordinate does not notice, and Muon
gets a way to whole matrices (engine_matrices.py).

With bfloat16 or float16 blocks are gathered in that format, which halves the traffic, and compute as autocast
does, but for their gains, which are rounded too; gradients are added up in float32. `shard_processes` deals
out among so many neighbours only and averages between such groups (hybrid sharding): traffic of parameters
stays within a machine. Compiled are the blocks, one after the other, each with its hooks around it; the loss
is not.

Two moments need more than 1/N. A step of several micro-batches adds whole gradients up (4 bytes a parameter)
before it deals out their sum, so that they travel once; and at the start each process has all weights, which
it has drawn from the seed, until its rows are cut out of them.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277, sections 3.2 and 3.2.3.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn import Module, ModuleList, Parameter
from torch.optim import Optimizer

from scratchlm.distributed.buckets import take_from_first
from scratchlm.distributed.engine import ENGINES, Engine, Groups, Place, Work
from scratchlm.distributed.engine_matrices import ShardedMatrices
from scratchlm.distributed.process import Processes
from scratchlm.runtime import autocast

METHODS = ("hidden", "head")
"""A model's methods that are called from outside beside `forward`."""


@ENGINES.register("fsdp2")
class FSDP2(Engine):
    """Fully sharded data parallelism: parameters, gradients and state in N parts."""

    whole = False
    compiles_loss = False

    def __init__(self, *, shard_processes: int | None = None, reshard_after_forward: bool = True) -> None:
        """Keep the settings.

        Args:
            shard_processes: Processes that one copy of the parameters is dealt out to; None: all of them.
            reshard_after_forward: Whether blocks are freed after forward and gathered again for backward;
                otherwise a third less traffic for the memory of all blocks.
        """
        super().__init__()
        self.shard_processes, self.reshard_after_forward = shard_processes, reshard_after_forward

    def wrap(self, work: Work, processes: Processes) -> None:
        """Deal out every block, then the rest; begin with the weights of process 0."""
        self.model, self.processes, self.loss = work.model, processes, work.objective
        model = self.model
        self._device, self._precision = next(model.parameters()).device, work.precision
        mesh = self._mesh(self._device, processes)
        self._group, self._part = mesh.get_group("shard"), mesh.get_local_rank("shard")
        self._parts = mesh["shard"].size()
        self._replica = mesh.get_local_rank("replicate") if mesh.ndim == 2 else 0
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for tensor in [*model.parameters(), *model.buffers()]:
            take_from_first(tensor)
        for block in blocks_of(model):
            if work.compiled:
                block.compile(dynamic=False)
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=self.reshard_after_forward,
                mp_policy=policy(work.precision),
            )
        fully_shard(model, mesh=mesh)
        for method in METHODS:
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)
        self._sharded = dict(model.named_parameters())
        self._rows = {name: self._rows_of(p) for name, p in self._sharded.items()}

    def named_parameters(self) -> dict[str, Tensor]:
        """This process's rows of every parameter, by name."""
        return dict(self._rows)

    def make_optimizer(self, build: Callable[[Groups], Optimizer], groups: Groups) -> Optimizer:
        """Build the optimizer over rows; one that looks at matrices learns how to see them whole.

        Raises:
            ValueError: It needs whole matrices and cannot be told.
        """
        self.keeper = build(groups)
        if getattr(self.keeper, "needs_whole_matrices", False):
            raise ValueError(
                f"distributed=fsdp2: {type(self.keeper).__name__} needs whole matrices, and a process has "
                "rows of them; use optimizer.name=muon, or distributed=zero1."
            )
        if hasattr(self.keeper, "matrices"):
            shapes = {self._rows[name]: shape for name, shape in self._shapes.items()}
            self.keeper.matrices = ShardedMatrices(shapes, self._group, self._part, self._parts)
        return self.keeper

    def place(self, name: str) -> Place | None:
        """Which rows of parameter `name` this process keeps."""
        rows = self._shapes[name][0]
        return Place(first_row(rows, self._part, self._parts), rows)

    @property
    def saves(self) -> bool:
        """Of several groups with the same shards the first one saves."""
        return self._replica == 0

    def begin(self) -> None:
        """Forget the gradients of the sharded parameters; the optimizer's own are gone."""
        for parameter in self._sharded.values():
            parameter.grad = None

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Add whole gradients up, in float32, until the last micro-batch, which deals out their sum."""
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    @torch.no_grad()
    def finish(self) -> None:
        """Hand the gradients' rows to what the optimizer sees."""
        for name, parameter in self._sharded.items():
            found = parameter.grad
            self._rows[name].grad = None if found is None else found.to_local()

    def common_norm(self, norm: Tensor) -> Tensor:
        """Add the squares of all shards; in float64, so that rounding does not depend on their number."""
        square = norm.to(torch.float64).square()
        return self.sum_over_shards(square).sqrt().to(norm.dtype)

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """The sum over the processes that one copy of the parameters is dealt out to."""
        total = tensor.detach().clone()
        with self.processes.naming("adding up over shards"):
            distributed.all_reduce(total, group=self._group)
        return total

    @contextlib.contextmanager
    def examining(self) -> Iterator[None]:
        """Forward passes without backward would leave whole parameters behind: free them.

        Blocks are not compiled meanwhile, as the model is not with the other engines: a text that grows, and
        hooks that measure, would compile each of them anew. Only blocks: a kernel may need its compiler.
        """
        blocks = blocks_of(self.model)
        compiled = [block._compiled_call_impl for block in blocks]
        for block in blocks:
            block._compiled_call_impl = None
        try:
            with autocast(self._device, self._precision):
                yield
        finally:
            for block, call in zip(blocks, compiled, strict=True):
                block._compiled_call_impl = call
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def _mesh(self, device: torch.device, processes: Processes) -> DeviceMesh:
        parts, world = self.shard_processes or processes.world_size, processes.world_size
        if parts < 2 or world % parts:
            allowed = ", ".join(str(n) for n in range(2, world + 1) if world % n == 0)
            raise ValueError(
                f"distributed.shard_processes={parts}: {world} processes cannot be grouped so; choose from "
                f"{allowed}, or distributed=ddp for no shards."
            )
        if parts == world:
            return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
        return init_device_mesh(device.type, (world // parts, parts), mesh_dim_names=("replicate", "shard"))

    def _rows_of(self, parameter: Tensor) -> Parameter:
        """A plain parameter in the same memory as this process's rows."""
        rows = Parameter(parameter.detach().to_local(), requires_grad=parameter.requires_grad)
        whole = parameter.shape[0]
        first, end = (first_row(whole, part, self._parts) for part in (self._part, self._part + 1))
        assert rows.shape[0] == end - first, (rows.shape, parameter.shape, self._part, self._parts)
        return rows


def policy(precision: str) -> MixedPrecisionPolicy:
    """In which format blocks are gathered, and their gradients added up.

    What enters a block stays as it is: under autocast the sums from block to block are kept in float32.
    """
    if precision == "float32":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=getattr(torch, precision), reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def blocks_of(model: Module) -> list[Module]:
    """The items of a model's lists of modules: what is gathered together."""
    lists = [child for child in model.children() if isinstance(child, ModuleList)]
    return [block for each in lists for block in each if any(True for _ in block.parameters())]


def first_row(rows: int, part: int, parts: int) -> int:
    """The first row of a part, as torch's chunks are cut. Example: (5 rows, part 1 of 3) -> 2."""
    return min(-(-rows // parts) * part, rows)
