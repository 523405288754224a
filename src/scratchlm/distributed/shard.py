r"""A parameter comes in; a piece of it on each process goes out, and messages that make it whole for a while.

    weights      process 0:  a0 b0 --+                  +--> [a0 b0 | a1 b1] --> a0 a1, b0 b1
                                     +-- all-gather ----+
                 process 1:  a1 b1 --+                  +--> the same

    gradients    process 0:  [a0 b0 | a1 b1] --+                      +--> a0 b0 of the mean
                                               +-- reduce-scatter ----+
                 process 1:  [a0 b0 | a1 b1] --+                      +--> a1 b1 of the mean

A message has a price whatever its size, so the small parameters of a module, a and b above, travel together:
their pieces stand behind each other on the way and are dealt out on arrival. That costs a copy each way; a
large parameter travels alone, from where it is to where it is used. When weights and gradients are sent and
given back is decided in fsdp.py.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277, sections 3.2 and 4.2. As in FSDP2,
each parameter has a shard of its own and messages have the layout above; there large ones go with the rest.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter

from scratchlm.distributed.collectives import all_gather, reduce_scatter

ALONE_BYTES = 2**20
"""A parameter of this size travels alone: at 5 GB/s its two copies take as long as a message without content
does over gloo on two cores, 0.3 ms."""


class ShardedParameter:
    """One parameter: the shard that the optimizer sees, and the whole weight while somebody needs it."""

    def __init__(self, whole: Parameter, compute_dtype: torch.dtype | None) -> None:
        """Cut it; the whole weight is given back.

        Args:
            whole: The same numbers on every process.
            compute_dtype: Number format of the whole weight; None for the parameter's own.
        """
        self.world_size, rank = distributed.get_world_size(), distributed.get_rank()
        self.numel, self.shape = whole.numel(), whole.shape
        length = -(-self.numel // self.world_size)
        padded = torch.zeros(length * self.world_size, dtype=whole.dtype, device=whole.device)
        padded[: self.numel] = whole.detach().reshape(-1)
        piece = padded[rank * length : (rank + 1) * length].clone()
        self.shard = Parameter(piece, requires_grad=whole.requires_grad)
        self.places: set[tuple[Module, str]] = set()
        """The modules that hold it, and its name there."""
        self.buffer = padded.to(compute_dtype or whole.dtype)
        """The whole weight and what fills it up; without memory while nobody needs it."""
        self._num_bytes = self.buffer.untyped_storage().nbytes()
        # .data: refilling the buffer must not look to autograd like a change of the weight that it saved
        self.whole = self.buffer[: self.numel].view(self.shape).data.requires_grad_(whole.requires_grad)
        self.users = 0
        """Selected modules that run and need it whole."""
        self.calls: dict[object, int | None] = {}
        """Of frozen ones: runs that a backward pass is in."""
        self.kept: Tensor | None = None
        """The whole gradient, until it is sent."""
        self.is_ready = False
        """Whether this backward pass has added to it, and it may be sent."""
        self.is_here = True
        """Whether the whole weight is here or on its way."""
        self.message: WholeWeights | None = None
        """On which it is on its way."""
        self.free()

    def put(self, tensor: Tensor) -> None:
        """Let the modules that hold the parameter see this tensor."""
        for holder, name in self.places:
            holder._parameters[name] = tensor

    def wait(self) -> Tensor:
        """Return the whole weight."""
        if self.message is not None:
            self.message.receive()
        return self.whole

    def take_memory(self) -> Tensor:
        """Return the buffer, with memory for the whole weight."""
        self.buffer.untyped_storage().resize_(self._num_bytes)
        return self.buffer

    def free(self) -> None:
        """Give the whole weight's memory back unless it is in use; autograd may keep the tensor."""
        if self.users or self.calls:
            return
        self.wait()
        self.buffer.untyped_storage().resize_(0)
        self.is_here = False

    @torch.no_grad()
    def keep_gradient(self) -> None:
        """Take the whole weight's gradient from autograd, in the shard's number format."""
        gradient, self.whole.grad = self.whole.grad.to(self.shard.dtype), None
        self.kept = gradient if self.kept is None else self.kept.add_(gradient)

    def gather_whole(self) -> Tensor:
        """Return the whole parameter in its own number format."""
        everything = self.shard.new_empty(self.shard.numel() * self.world_size)
        all_gather(everything, self.shard.detach()).wait()
        return everything[: self.numel].view(self.shape)


def travelling_together(parameters: Iterable[ShardedParameter]) -> list[list[ShardedParameter]]:
    """Return which parameters share a message: small ones of the same number formats."""
    found: dict[Hashable, list[ShardedParameter]] = defaultdict(list)
    for parameter in parameters:
        own = parameter if parameter.shard.nbytes * parameter.world_size >= ALONE_BYTES else None
        found[parameter.shard.dtype, parameter.buffer.dtype, parameter.shard.device, own].append(parameter)
    return list(found.values())


class WholeWeights:
    """Whole weights on their way to every process."""

    @torch.no_grad()
    def __init__(self, parameters: list[ShardedParameter]) -> None:
        """Send this process's shards; return at once."""
        self.parameters = parameters
        shards, dtype = [p.shard.detach() for p in parameters], parameters[0].buffer.dtype
        if len(parameters) == 1:
            self._arriving = parameters[0].take_memory()
        mine = (shards[0] if len(shards) == 1 else torch.cat(shards)).to(dtype)
        if len(parameters) > 1:
            self._arriving = mine.new_empty(len(mine) * parameters[0].world_size)
        self._work = all_gather(self._arriving, mine)
        for parameter in parameters:
            parameter.is_here, parameter.message = True, self

    @torch.no_grad()
    def receive(self) -> None:
        """Wait; deal the weights out."""
        self._work.wait()
        if len(self.parameters) > 1:
            dealt_out = _columns(self._arriving, self.parameters)
            for parameter, pieces in zip(self.parameters, dealt_out, strict=True):
                parameter.take_memory().view_as(pieces).copy_(pieces)
        for parameter in self.parameters:
            parameter.message = None


class GradientShards:
    """Gradients on their way: each process receives its pieces of their means."""

    @torch.no_grad()
    def __init__(self, parameters: list[ShardedParameter]) -> None:
        """Send what the parameters have kept; return at once."""
        self.parameters = parameters
        first, lengths = parameters[0], [p.shard.numel() for p in parameters]
        if len(parameters) == 1 and first.numel == lengths[0] * first.world_size:
            flat = first.kept.reshape(-1)
        else:
            flat = first.shard.new_zeros(sum(lengths) * first.world_size)
            for parameter, pieces in zip(parameters, _columns(flat, parameters), strict=True):
                _write(pieces, parameter.kept.reshape(-1))
        for parameter in parameters:
            parameter.kept, parameter.is_ready = None, False
        self._pieces = flat.new_empty(sum(lengths))
        self.work: Any = reduce_scatter(self._pieces, flat.div_(first.world_size))

    @torch.no_grad()
    def receive(self) -> None:
        """Wait; add the means to the shards' gradients."""
        self.work.wait()
        pieces = self._pieces.split([parameter.shard.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            shard = parameter.shard
            shard.grad = piece if shard.grad is None else shard.grad.add_(piece)


def _columns(flat: Tensor, parameters: list[ShardedParameter]) -> tuple[Tensor, ...]:
    """Of a message [process, all pieces of a process]: each parameter's part, [process, its piece]."""
    rows = flat.view(parameters[0].world_size, -1)
    return rows.split([parameter.shard.numel() for parameter in parameters], dim=1)


def _write(pieces: Tensor, gradient: Tensor) -> None:
    """Cut a gradient into rows; the last ones may be filled in part or not at all."""
    length = pieces.shape[1]
    full = len(gradient) // length
    pieces[:full].copy_(gradient[: full * length].view(full, length))
    if rest := len(gradient) % length:
        pieces[full, :rest].copy_(gradient[-rest:])
