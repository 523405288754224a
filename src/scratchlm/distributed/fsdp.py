r"""Fully sharded: a module comes in; each process keeps 1/N of its big parameters, borrows the rest in time.

    forward of layer i     all-gather its shards -> whole weight -> y = layer(x) -> free the whole weight
                           (meanwhile those of layers i + 1 and i + 2 are on their way)
    backward of layer i    all-gather again -> gradient of the whole weight -> reduce-scatter -> free both

    process 0:  [ a0 ]  --all-gather-->  [ a0 a1 ]  --backward-->  [ g0 g1 ]  --reduce-scatter-->  [ mean g0 ]
    process 1:  [ a1 ]                   [ a0 a1 ]                 [ h0 h1 ]                       [ mean h1 ]

Whole weights exist for a few layers at a time, so P parameters take about (4 + 4 + 8) P / N bytes on each of
N processes with AdamW, instead of 16 P. The price is traffic: parameters travel twice and gradients once, 3/2
of what data parallelism sends, hidden behind the computation of other layers.

A sharded parameter is a vector: the whole tensor's numbers in order, cut in N equal pieces, the last one
filled up with zeros. The optimizer sees these shards, in float32; whole weights may be in another format (the
compute dtype), gradients are added up in the shards'. Autograd keeps a reference to the whole weight for the
backward pass; its memory is given back in between and filled again just in time. Parameters outside the
selected modules stay whole on every process, and their gradients are averaged as in ddp.py. Every process
must run the same modules in the same order.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277; Rajbhandari et al. 2020 (ZeRO
stage 3), https://arxiv.org/abs/1910.02054. One shard for each parameter, not one for a whole layer.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter

from scratchlm.distributed.ddp import DataParallel, fill_buckets, finish, start

PREFETCH = 2
"""Layers whose weights travel ahead of the one that computes; the course asks for two."""

Selection = tuple[type[Module], ...] | Callable[[Module], bool]
"""Which modules to shard: by type, or by a function that says so."""


class FullySharded(DataParallel):
    """A module whose big parameters are spread over the processes."""

    def __init__(
        self,
        module: Module,
        shard: Selection,
        *,
        compute_dtype: torch.dtype | None = None,
        prefetch: int = PREFETCH,
    ) -> None:
        """Replace the parameters of the selected modules by this process's shards of process 0's values.

        Build the optimizer afterwards, over `parameters()`.

        Args:
            module: The same architecture on every process.
            shard: Types of modules, or a predicate; all parameters inside such a module are cut, and are
                whole while it computes. In nested ones, the innermost selected module counts.
            compute_dtype: Number format of whole weights and of the inputs of sharded modules; None for the
                parameters' own.
            prefetch: Layers whose weights are fetched ahead, at least 0.

        Raises:
            ValueError: As `DataParallel`, nothing is selected, or prefetch is negative.
        """
        super().__init__(module)
        if prefetch < 0:
            raise ValueError(f"prefetch={prefetch}: must be at least 0; 0 fetches weights when needed.")
        self.compute_dtype, self.prefetch = compute_dtype, prefetch
        self._order: list[_Unit] = []
        """Sharded modules in the order of this forward pass."""
        self._previous: list[_Unit] = []
        """The same of the pass before: what follows which."""
        parts = [part for part in module.modules() if _is_selected(part, shard)]
        cut: dict[Parameter, _Sharded] = {}
        for part in parts:
            self._shard(part, set(parts) - {part}, cut)
        if not cut:
            raise ValueError("no parameter was selected to be sharded; name the types of the big layers.")
        self._sharded = {entry.shard: entry for entry in cut.values()}
        self._trained = [p for p in module.parameters() if p.requires_grad and p not in self._sharded]

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """Return what the module returns."""
        for entry in self._sharded.values():
            entry.free()  # what an interrupted pass left is out of date
        self._previous, self._order = self._order, []
        return self.module(*arguments, **settings)

    def finish_gradient_synchronization(self) -> None:
        """Wait for the shards' gradients; average those of the parameters that are whole everywhere."""
        for entry in self._sharded.values():
            entry.finish_gradient(self.world_size)
            entry.free()
        finish([start(bucket) for bucket in fill_buckets(self._trained, None)], self.world_size)

    @torch.no_grad()
    def full_parameters(self) -> dict[str, Tensor]:
        """Return every parameter whole, by its name in the module; every process must call it."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            entry = self._sharded.get(parameter)
            found[name] = parameter.detach().clone() if entry is None else entry.values()
        return found

    def _shard(self, part: Module, others: set[Module], cut: dict[Parameter, "_Sharded"]) -> None:
        """Cut a module's parameters; borrow them whole around its forward and before its backward."""
        unit = _Unit()
        for holder in _inside(part, others):
            for name, whole in holder._parameters.items():
                if whole is None:
                    continue
                if whole not in cut:  # a tied parameter is cut once
                    cut[whole] = _Sharded(whole, self.compute_dtype)
                unit.places.append((holder, name, cut[whole]))
        for holder, name, entry in unit.places:
            holder._parameters[name] = entry.shard
        if unit.places:
            part.register_forward_pre_hook(lambda module, inputs: self._before(unit, inputs))
            part.register_forward_hook(lambda module, inputs, output: self._after(unit, output))

    def _before(self, unit: "_Unit", inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._order.append(unit)
        unit.fetch()
        self._fetch_ahead(unit, self._previous)
        for holder, name, entry in unit.places:
            holder._parameters[name] = entry.wait()  # a plain tensor: past Module's check on purpose
        if self.compute_dtype is None:
            return inputs
        return tuple(
            x.to(self.compute_dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
        )

    def _after(self, unit: "_Unit", output: Any) -> None:
        for holder, name, entry in unit.places:
            holder._parameters[name] = entry.shard
            entry.free()
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._before_backward(unit))

    def _before_backward(self, unit: "_Unit") -> None:
        unit.fetch()
        self._fetch_ahead(unit, self._order[::-1])
        for _, _, entry in unit.places:
            entry.wait()

    def _fetch_ahead(self, unit: "_Unit", order: list["_Unit"]) -> None:
        """Begin to fetch the weights of the modules that follow."""
        if unit in order:
            place = order.index(unit) + 1
            for following in order[place : place + self.prefetch]:
                following.fetch()


class _Unit:
    """A selected module's sharded parameters, each with the module that holds it and its name there."""

    def __init__(self) -> None:
        self.places: list[tuple[Module, str, _Sharded]] = []

    def fetch(self) -> None:
        for _, _, entry in self.places:
            entry.fetch()


class _Sharded:
    """One parameter: the shard that the optimizer sees, and the whole weight while somebody needs it."""

    def __init__(self, whole: Parameter, compute_dtype: torch.dtype | None) -> None:
        size, rank = distributed.get_world_size(), distributed.get_rank()
        self.numel, self.shape = whole.numel(), whole.shape
        length = -(-self.numel // size)
        padded = torch.zeros(length * size, dtype=whole.dtype, device=whole.device)
        padded[: self.numel] = whole.detach().reshape(-1)
        piece = padded[rank * length : (rank + 1) * length].clone()
        self.shard = Parameter(piece, requires_grad=whole.requires_grad)
        self._buffer = padded.to(compute_dtype or whole.dtype)
        self._num_bytes = self._buffer.untyped_storage().nbytes()
        # .data: refilling the buffer must not look to autograd like a change of the weight that it saved
        self.whole = self._buffer[: self.numel].view(self.shape).data.requires_grad_(whole.requires_grad)
        if whole.requires_grad:
            self.whole.register_post_accumulate_grad_hook(self._send_gradient)
        self._fetching: Any = None
        self._here = True
        self._sent: list[tuple[Any, Tensor]] = []
        self.free()

    @torch.no_grad()
    def fetch(self) -> None:
        """Begin to gather the whole weight, unless it is here or on its way."""
        if self._here:
            return
        self._buffer.untyped_storage().resize_(self._num_bytes)
        self._here = True
        self._fetching = _all_gather(self._buffer, self.shard.detach().to(self._buffer.dtype))

    def wait(self) -> Tensor:
        """Return the whole weight."""
        if self._fetching is not None:
            self._fetching.wait()
            self._fetching = None
        return self.whole

    def free(self) -> None:
        """Give the whole weight's memory back; autograd may keep the tensor."""
        self.wait()
        self._buffer.untyped_storage().resize_(0)
        self._here = False

    @torch.no_grad()
    def _send_gradient(self, whole: Tensor) -> None:
        """Add the gradient up over the processes, each piece where its shard is; free weight and gradient."""
        gradient = torch.zeros(
            self.shard.numel() * distributed.get_world_size(), dtype=self.shard.dtype, device=whole.device
        )
        gradient[: self.numel] = whole.grad.reshape(-1)
        whole.grad = None
        piece = torch.empty_like(self.shard)
        self._sent.append((_reduce_scatter(piece, gradient), piece))
        self.free()

    @torch.no_grad()
    def finish_gradient(self, world_size: int) -> None:
        """Put the mean over the processes into the shard's gradient."""
        for work, piece in self._sent:
            work.wait()
            piece /= world_size
            self.shard.grad = piece if self.shard.grad is None else self.shard.grad + piece
        self._sent = []

    def values(self) -> Tensor:
        """Gather the parameter in its own format."""
        everything = self.shard.new_empty(self.shard.numel() * distributed.get_world_size())
        _all_gather(everything, self.shard.detach()).wait()
        return everything[: self.numel].view(self.shape)


def _is_selected(part: Module, shard: Selection) -> bool:
    return isinstance(part, shard) if isinstance(shard, tuple) else shard(part)


def _inside(part: Module, others: set[Module]) -> Iterator[Module]:
    """A module and those inside it, without other selected ones."""
    yield part
    for child in part.children():
        if child not in others:
            yield from _inside(child, others)


def _all_gather(everything: Tensor, piece: Tensor) -> Any:
    # torch 2.13 has a new name for it and warns of the old one, which older versions know alone
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    return gather(everything, piece, async_op=True)


def _reduce_scatter(piece: Tensor, everything: Tensor) -> Any:
    scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
    return scatter(piece, everything, async_op=True)
