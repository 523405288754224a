r"""ZeRO: an optimizer comes in; each process keeps a share of its state and moves a share of the parameters.

    stage 1   ShardedOptimizer     optimizer state: 1/N each       gradients: all      parameters: all
    stage 2   ShardedGradients     and gradients: 1/N each

    step:     owner 0 moves p0 p1    --+
                                       +-- each broadcasts what it owns --> p0 p1 p2 p3 everywhere
              owner 1 moves p2 p3    --+

AdamW keeps two numbers for each parameter, 8 bytes beside 4 for the parameter and 4 for the gradient. With
plain data parallelism every process keeps them all and computes the same step; here a parameter has one
owner, who keeps its state, computes its step and sends the result around. Bytes a parameter, in float32:

    data parallel   4 + 4 + 8        stage 1   4 + 4 + 8 / N        stage 2   4 + 4 / N + 8 / N

Beside that come a few buckets: two on their way, and in stage 2 one for each owner that is being filled.
Parameters are dealt out whole, each to the process that has the least so far, so the shares differ by at most
the size of one parameter. Stage 1 sends as much as data parallelism (an all-reduce of the gradients) and the
parameters once more; stage 2 reduces each gradient to its owner only, which halves that part.

Which optimizers work: those that move a parameter by its own gradient, its own state and settings of its
group: SGD, AdamW, Lion, Adafactor, and, because parameters stay whole, those that look at whole matrices, as
Muon does. Settings that they change themselves, such as a counter in the group, are taken over. Those that
look at all parameters together do not work, since a process sees its share only: no norm over all of them
inside the step (clip before it: `ShardedGradients.clip_gradients`), no learning rate estimated from all of
them (Prodigy), no line search that evaluates the closure several times (LBFGS).

Source: Rajbhandari et al. 2020, "ZeRO", https://arxiv.org/abs/1910.02054, sections 3 and 5. As there, but
whole parameters instead of equal slices of one long vector.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.distributed.buckets import (
    BUCKET_MB,
    BucketSize,
    GradientMessage,
    dtype_and_device,
    fill_buckets,
)
from scratchlm.distributed.ddp import Bucketed

IN_FLIGHT = 2
"""Buckets on their way at once: one is computed while another travels."""


class ShardedOptimizer(Optimizer):
    """An optimizer, its state spread over the processes; each step ends with equal parameters everywhere."""

    def __init__(self, params: ParamsT, optimizer_class: Callable[..., Optimizer], **settings: Any) -> None:
        """Deal the parameters out; build the optimizer over this process's share.

        Args:
            params: As for the optimizer: parameters, or groups with settings; the same on every process.
            optimizer_class: Called with the share's groups and the settings; the head of this file says which
                optimizers work.
            settings: For every group that does not say otherwise.
        """
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.owners: dict[Tensor, int] = {}
        """Parameter -> the process that moves it."""
        self._loads = [0] * self.world_size
        self.inner: Optimizer | None = None
        super().__init__(params, {})
        self.inner = optimizer_class([self._share(group) for group in self.param_groups], **settings)
        self._take_settings_back()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Deal out one more group."""
        super().add_param_group(param_group)
        deal(self.param_groups[-1]["params"], self.owners, self._loads)
        if self.inner is not None:  # not while the first groups are taken in
            self.inner.add_param_group(self._share(self.param_groups[-1]))
            self._take_settings_back()

    def step(self, closure: Callable[[], Any] | None = None, **settings: Any) -> Any:
        """Move this process's share, then exchange the shares; return what `closure` returns.

        Args:
            closure: As for the optimizer; called once on every process.
            settings: For the optimizer's own step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in group.items() if key != "params"})
        self.inner.step(**settings)
        self._take_settings_back()
        self.exchange_parameters()
        return loss

    @torch.no_grad()
    def exchange_parameters(self) -> None:
        """Give every process every owner's parameters, those that are trained."""
        travelling: deque[_ParameterMessage] = deque()
        moved = [parameter for parameter in self.owners if parameter.requires_grad]
        for bucket in fill_buckets(moved, BUCKET_MB, kind=self._owner_and_format):
            if len(travelling) == IN_FLIGHT:
                travelling.popleft().receive()
            travelling.append(_ParameterMessage(bucket, self.owners[bucket[0]]))
        while travelling:
            travelling.popleft().receive()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, as the optimizer without shards has it; every process must call it.

        Tensors are in the CPU's memory, on every process. It can be loaded with any number of processes.
        """
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        places = {id(parameter): place for place, parameter in enumerate(order)}
        groups = [
            {**group, "params": [places[id(parameter)] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        mine = {
            place: {key: _described(value) for key, value in self.inner.state[parameter].items()}
            for place, parameter in enumerate(order)
            if self.owners[parameter] == self.rank and self.inner.state.get(parameter)
        }
        described: list[Any] = [None] * self.world_size
        distributed.all_gather_object(described, mine)
        state = {}
        for place, parameter in enumerate(order):
            if found := described[self.owners[parameter]].get(place):
                state[place] = self._hand_around(parameter, found)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's share of a whole state, from any number of processes.

        Raises:
            ValueError: The groups do not fit.
        """
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        needed = [len(group["params"]) for group in self.param_groups]
        if found != needed:
            raise ValueError(
                f"the saved optimizer has groups of {found} parameters, this one of {needed}; build the same "
                "model and the same groups."
            )
        shares, state, first = [], {}, 0
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            places = []
            for parameter, place in zip(group["params"], saved["params"], strict=True):
                if self.owners[parameter] == self.rank:
                    places.append(first)
                    if place in state_dict["state"]:
                        state[first] = state_dict["state"][place]
                    first += 1
            settings = {key: value for key, value in saved.items() if key != "params"}
            shares.append({**settings, "params": places})
            group.update(settings)
        self.inner.load_state_dict({"state": state, "param_groups": shares})

    def _share(self, group: dict[str, Any]) -> dict[str, Any]:
        mine = [parameter for parameter in group["params"] if self.owners[parameter] == self.rank]
        return {**group, "params": mine}

    def _owner_and_format(self, parameter: Tensor) -> tuple[Any, ...]:
        return self.owners[parameter], *dtype_and_device(parameter)

    def _take_settings_back(self) -> None:
        """What the optimizer says of a group, from its defaults or because a step changed it, holds here."""
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({key: value for key, value in inner.items() if key != "params"})

    @torch.no_grad()
    def _hand_around(self, parameter: Tensor, described: dict[str, Any]) -> dict[str, Any]:
        """One parameter's state, from its owner to all: numbers as they are, tensors one by one."""
        owner = self.owners[parameter]
        state = dict(described)
        for key, value in described.items():
            if not isinstance(value, TensorDescription):
                continue
            tensor = torch.empty(value.shape, dtype=value.dtype, device=parameter.device)
            if owner == self.rank:
                tensor.copy_(self.inner.state[parameter][key])
            distributed.broadcast(tensor, owner)
            state[key] = tensor.cpu()
        return state


class _ParameterMessage:
    """Parameters of one owner on their way to all."""

    def __init__(self, parameters: Sequence[Tensor], owner: int) -> None:
        self.parameters, self.arrives = parameters, owner != distributed.get_rank()
        if self.arrives:
            self.flat = parameters[0].new_empty(sum(parameter.numel() for parameter in parameters))
        else:
            self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.work = distributed.broadcast(self.flat, owner, async_op=True)

    def receive(self) -> None:
        self.work.wait()
        if not self.arrives:
            return
        parts = self.flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


@dataclass(frozen=True)
class TensorDescription:
    """What a process must know of a tensor to receive it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _described(value: Any) -> Any:
    """A tensor's description, and everything else as it is."""
    return TensorDescription(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


class ShardedGradients(Bucketed):
    """Data parallelism in which only a parameter's owner receives its gradient; the others drop theirs.

    torch's clip_grad_norm_ would see a share of the gradients: `clip_gradients` sees all.
    """

    in_flight = IN_FLIGHT

    def __init__(
        self, module: Module, optimizer: ShardedOptimizer, *, bucket_mb: BucketSize = "auto"
    ) -> None:
        """Fill the buckets, each with parameters of one owner.

        Args:
            module: As `Bucketed`.
            optimizer: Built over the module's parameters: it says who owns what.
            bucket_mb: As `Bucketed`.

        Raises:
            ValueError: As `Bucketed`, or the optimizer does not have all trained parameters.
        """
        self._optimizer = optimizer
        super().__init__(module, bucket_mb=bucket_mb)

    def _fill(self, bucket_mb: BucketSize) -> list[list[Parameter]]:
        owners = self._optimizer.owners
        names = [name for name, p in self.module.named_parameters() if p.requires_grad and p not in owners]
        if names:
            raise ValueError(
                f"the sharded optimizer does not have {', '.join(names[:5])}; give it every parameter that "
                "is trained, or set requires_grad=False."
            )
        return fill_buckets(self._trained, bucket_mb, kind=lambda p: (owners[p], *dtype_and_device(p)))

    def gradient_norm(self) -> Tensor:
        """Return the length of all mean gradients, each seen by its owner; as `DataParallel`."""
        return self._norm_of_shares(whole=(), shares=self._trained)

    def _message(self, number: int) -> GradientMessage:
        """In memory of its own: kept rooms would hold all gradients on every process."""
        bucket = self.buckets[number]
        return GradientMessage(bucket, owner=self._optimizer.owners[bucket[0]])


def deal(parameters: Iterable[Tensor], owners: dict[Tensor, int], loads: list[int]) -> None:
    """Give each parameter to the process that has the least so far.

    Example: sizes 5, 3, 1, 2 for two processes -> owners 0, 1, 1, 1 and loads 5, 6.

    Args:
        parameters: Frozen ones have an owner, too, and count nothing: they have neither gradient nor state.
        owners: Filled in.
        loads: Numbers that each process has; added to.
    """
    for parameter in parameters:
        owner = loads.index(min(loads))
        owners[parameter] = owner
        loads[owner] += parameter.numel() if parameter.requires_grad else 0


def shared_bytes(parameters: Sequence[Tensor], world_size: int, state_bytes: int = 8) -> dict[str, int]:
    """Return the largest process's bytes in each stage, by the formula at the head of this file.

    Args:
        parameters: All that are trained.
        world_size: Number of processes.
        state_bytes: Optimizer state for each number; 8 for AdamW in float32.
    """
    owners: dict[Tensor, int] = {}
    deal(parameters, owners, [0] * world_size)
    numbers: dict[int, int] = defaultdict(int)
    for parameter in parameters:
        numbers[owners[parameter]] += parameter.numel()
    everything, most = sum(numbers.values()), max(numbers.values(), default=0)
    return {
        "data parallel": (8 + state_bytes) * everything,
        "stage 1": 8 * everything + state_bytes * most,
        "stage 2": 4 * everything + (4 + state_bytes) * most,
    }
