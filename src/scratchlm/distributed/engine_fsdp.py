"""The engine fsdp2: each process keeps 1/N of parameters, gradients and state; blocks become whole in turn.

    forward    gather 0 | block 0 | free     gather 1 meanwhile | block 1 | free ...
    backward   gather 1 | block 1 | free     reduce-scatter its gradients while block 0 computes ...
    step       each process moves its own rows with its own rows of the state

torch's fully_shard does this: a group for each block and one, the root, for what is left (embeddings, last
norm, head), which is gathered once a micro-batch and stays whole from its forward to its backward pass. Rows
of every tensor are dealt out in order: process r of N keeps rows ceil(rows / N) * r and the following. The
optimizer gets these rows as plain tensors that share memory with torch's DTensors; what works coordinate by
coordinate does not notice, and Muon gets a way to whole matrices (engine_matrices.py).

With bfloat16 or float16 blocks are gathered in that format, which halves the traffic, and compute as autocast
does, but for their gains, which are rounded too; gradients are added up in float32. `shard_processes` deals
out among so many neighbours only and averages between such groups (hybrid sharding): traffic of parameters
stays within a machine. Compiled are the blocks, one after the other, each with its hooks around it; the loss
is not.

No process ever has more than 1/N of the blocks and the root. When the model is built each process draws all
weights from the seed, in the order in which one process would, and of every block keeps its rows before the
next one is made. A step of several micro-batches adds up rows of gradients, which travel each time; with
`whole_gradients` their whole sum travels once, for 4 bytes a parameter.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277, sections 3.2 and 3.2.3.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Module, ModuleList, Parameter
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import Optimizer

from scratchlm.distributed.buckets import take_from_first
from scratchlm.distributed.engine import ENGINES, Engine, Groups, Place, Work
from scratchlm.distributed.engine_matrices import ShardedMatrices
from scratchlm.distributed.process import Processes
from scratchlm.runtime import COMPILING, autocast

if TYPE_CHECKING:  # half a second, and every command that reads a run's settings knows this engine
    from torch.distributed.fsdp import MixedPrecisionPolicy


class Root(Module):
    """The outermost module: its hooks make embeddings, last norm and head whole."""

    def __init__(self, objective: Module) -> None:
        """Wrap what computes the loss."""
        super().__init__()
        self.objective = objective

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss; everything inside finds whole parameters."""
        return self.objective(inputs, targets)

    def gather(self) -> None:
        """Nothing by itself: the hooks around it make parameters whole until they are dealt out again."""


@ENGINES.register("fsdp2")
class FSDP2(Engine):
    """Fully sharded data parallelism: parameters, gradients and state in N parts."""

    whole = False
    compiles_loss = False

    def __init__(
        self,
        *,
        shard_processes: int | None = None,
        reshard_after_forward: bool = True,
        whole_gradients: bool = False,
    ) -> None:
        """Keep the settings.

        Args:
            shard_processes: Processes that one copy of the parameters is dealt out to; None: all of them.
            reshard_after_forward: Whether blocks are freed after forward and gathered again for backward;
                otherwise a third less traffic for the memory of all blocks.
            whole_gradients: Whether a step's micro-batches add up whole gradients, which travel once, instead
                of this process's rows of them: up to a third less traffic for 4 bytes a parameter.
        """
        super().__init__()
        self.shard_processes, self.reshard_after_forward = shard_processes, reshard_after_forward
        self.whole_gradients = whole_gradients
        self._mesh: DeviceMesh | None = None

    def check(self, world_size: int) -> None:
        """See that the processes fall into groups of `shard_processes`."""
        parts = self.shard_processes or world_size
        if parts < 2 or world_size % parts:
            allowed = ", ".join(str(n) for n in range(2, world_size + 1) if world_size % n == 0)
            raise ValueError(
                f"distributed.shard_processes={parts}: {world_size} processes cannot be grouped so; choose "
                f"from {allowed}, or distributed=ddp for no shards."
            )

    @contextlib.contextmanager
    def building(self, device: torch.device, precision: str, processes: Processes) -> Iterator[None]:
        """Deal out each block as soon as it is made.

        A model whose blocks are all there before they are put into a list is whole for a moment.
        """
        self._join(device, precision, processes)

        def deal_out(parent: Module, name: str, child: Module | None) -> None:
            if isinstance(parent, ModuleList) and child is not None:
                self._shard(child)

        hook = register_module_module_registration_hook(deal_out)
        try:
            yield
        finally:
            hook.remove()

    def wrap(self, work: Work, processes: Processes) -> None:
        """Deal out what was not yet; parameters that several groups have become those of the first."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.model = model = work.model
        self._join(next(model.parameters()).device, work.precision, processes)
        for buffer in model.buffers():
            take_from_first(buffer)
        for block in blocks_of(model):
            if work.compiled:
                block.compile(**COMPILING)
            self._shard(block)
        self.loss: Root = Root(work.objective)
        fully_shard(self.loss, mesh=self._mesh)
        register_fsdp_forward_method(self.loss, "gather")
        self._sharded = dict(model.named_parameters())
        self._shapes = {name: tuple(p.shape) for name, p in self._sharded.items()}
        self._rows = {name: self._rows_of(p) for name, p in self._sharded.items()}
        if self._mesh.ndim == 2:
            self._take_from_first_copy()

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
        """Add gradients up in float32, this process's rows or whole ones; groups of shards exchange once."""
        if self.whole_gradients:
            self.loss.set_requires_gradient_sync(last)
        else:
            self.loss.set_requires_all_reduce(last)
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

    def from_first(self, tensor: Tensor) -> Tensor:
        """The numbers of process 0."""
        found = tensor.detach().clone()
        with self.processes.naming("taking process 0's numbers"):
            distributed.broadcast(found, 0)
        return found

    @contextlib.contextmanager
    def examining(self) -> Iterator[None]:
        """Gather the root once for all passes inside; blocks come and go, and at the end all are dealt out.

        Blocks are not compiled meanwhile, as the model is not with the other engines: a text that grows, and
        hooks that measure, would compile each of them anew. Only blocks: a kernel may need its compiler.
        """
        blocks = blocks_of(self.model)
        compiled = [block._compiled_call_impl for block in blocks]
        for block in blocks:
            block._compiled_call_impl = None
        try:
            self.loss.gather()
            with autocast(self._device, self._precision):
                yield
        finally:
            for block, call in zip(blocks, compiled, strict=True):
                block._compiled_call_impl = call
            for module in self.loss.modules():
                if is_sharded(module):
                    module.reshard()

    def _join(self, device: torch.device, precision: str, processes: Processes) -> None:
        """Find this process's place among the others, once."""
        if self._mesh is not None:
            return
        self.processes, self._device, self._precision = processes, device, precision
        self._mesh = mesh = self._make_mesh(device, processes.world_size)
        self._group, self._part = mesh.get_group("shard"), mesh.get_local_rank("shard")
        self._parts = mesh["shard"].size()
        self._replica = mesh.get_local_rank("replicate") if mesh.ndim == 2 else 0

    def _shard(self, block: Module) -> None:
        from torch.distributed.fsdp import fully_shard

        if is_sharded(block) or next(block.parameters(), None) is None:
            return
        fully_shard(
            block,
            mesh=self._mesh,
            reshard_after_forward=self.reshard_after_forward,
            mp_policy=policy(self._precision),
        )

    @torch.no_grad()
    def _take_from_first_copy(self) -> None:
        """Machines of different kinds may have drawn other last bits: copies of the same rows are equal."""
        copies = self._mesh.get_group("replicate")
        for rows in self._rows.values():
            distributed.broadcast(rows, group=copies, group_src=0)

    def _make_mesh(self, device: torch.device, world: int) -> DeviceMesh:
        parts = self.shard_processes or world
        self.check(world)
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


def is_sharded(module: Module) -> bool:
    """Whether torch gathers the module's parameters before it is called."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def policy(precision: str) -> "MixedPrecisionPolicy":
    """In which format blocks are gathered, and their gradients added up.

    What enters a block stays as it is: under autocast the sums from block to block are kept in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

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
