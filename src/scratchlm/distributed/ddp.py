r"""Data parallelism, four ways: a model comes in, the same comes out; its gradients are everyone's mean.

    process 0: rows 0 1 -> backward -> g0 --+
                                            +-- all-reduce: (g0 + g1) / 2 on both --> the same step on both
    process 1: rows 2 3 -> backward -> g1 --+

                   calls         when                    waiting, with s seconds of traffic and o for a call
    per_parameter  n, one each   after backward          s + n o
    flat           1             after backward          s + o, and a copy of all gradients
    overlapped     n, one each   as a gradient is ready  what backward does not hide of s + n o
    bucketed       b, a bucket   as a bucket is full     s / b + b o, if backward hides the rest

The last line is the compromise that everybody uses: few calls, and all but the last bucket travels while
backward computes the layers before it. Buckets are filled in the reverse order of the parameters, which is
about the order in which backward finishes them, and sent strictly in that order: then every process makes the
same calls in the same order, even where one of them did not use a parameter. A gradient is copied into its
bucket, divided, as soon as backward has it, while the numbers are in the cache; its own memory serves the
next one. When the mean is there, that part of the bucket is the gradient: one copy, and no second memory.

Gradients are divided by the number of processes and summed: some versions of gloo return the sum when they
are asked for the mean, and a sum of float16 gradients could exceed 65,504. Dividing is exact where the number
of processes is a power of two; then equal gradients on all processes stay what they are, bit for bit.
Parameters and buffers begin as process 0 has them.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
https://arxiv.org/abs/2006.15704, sections 3.2.1 to 3.2.3; names as in Stanford's CS336, assignment 2.
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter

from scratchlm.distributed.buckets import (
    BucketSize,
    GradientMessage,
    average_gradients,
    fill_buckets,
    take_from_first,
)
from scratchlm.registry import Family

DATA_PARALLEL: Family["DataParallel"] = Family("data_parallel", package="scratchlm.distributed")
"""Ways to average gradients: built from a module, on every process of a group."""

EPSILON = 1e-6
"""Keeps 0 / 0 away when clipping; the same value as torch's and CS336's, so that results agree."""


class DataParallel(Module):
    """A module on every process; `finish_gradient_synchronization` gives all the mean of their gradients."""

    def __init__(self, module: Module) -> None:
        """Give every process the parameters and buffers of process 0.

        Args:
            module: The same architecture on every process. It stays reachable as `.module`.

        Raises:
            ValueError: There is no process group, or the processes hold different models.
        """
        super().__init__()
        if not distributed.is_initialized():
            raise ValueError(
                "data parallelism needs a process group: start several processes with torchrun and call "
                "Processes.from_environment() or torch.distributed.init_process_group() first."
            )
        self.world_size = distributed.get_world_size()
        self.module = module
        self._check_alike()
        for tensor in [*module.parameters(), *module.buffers()]:
            take_from_first(tensor)
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._synchronizes = True

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """Return what the module returns."""
        return self.module(*arguments, **settings)

    @contextlib.contextmanager
    def no_synchronization(self) -> Iterator[None]:
        """Let gradients of the backward passes inside add up here; the next one outside sends their sum."""
        self._synchronizes = False
        try:
            yield
        finally:
            self._synchronizes = True

    def start_batch(self) -> None:
        """Forget gradients on their way; on every process, after a backward pass that no step follows.

        `finish_gradient_synchronization` does it, too. Gradients that were not sent are left to zero_grad.
        """

    def finish_gradient_synchronization(self) -> None:
        """Replace every gradient by its mean over the processes; call it after backward, before the step.

        A parameter with a gradient on some processes only counts as zero on the others; one without any
        gradient keeps none.
        """
        raise NotImplementedError

    def gradient_norm(self) -> Tensor:
        """Return the length of all mean gradients as one vector, the same number on every process.

        Every process must call it, after `finish_gradient_synchronization`.
        """
        return _sum_of_squares(self._trained, self._device()).sqrt()

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their common length is at most `max_norm`; return it as it was.

        Every process must call it, after `finish_gradient_synchronization`. torch's clip_grad_norm_ does the
        same only where every process has all gradients.

        Args:
            max_norm: Longest length, above 0.

        Raises:
            ValueError: `max_norm` is not above 0.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be above 0; gradient_norm() measures only.")
        norm = self.gradient_norm()
        factor = (max_norm / (norm + EPSILON)).clamp(max=1.0)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad))
        return norm

    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _norm_of_shares(self, whole: Iterable[Tensor], shares: Iterable[Tensor]) -> Tensor:
        """Where every process has all gradients of some parameters and its share of those of others."""
        square = _sum_of_squares(shares, self._device())
        distributed.all_reduce(square)
        return (square + _sum_of_squares(whole, self._device())).sqrt()

    def _check_alike(self) -> None:
        mine = [
            f"parameter {name} {tuple(p.shape)} {p.dtype} requires_grad={p.requires_grad}"
            for name, p in self.module.named_parameters()
        ]
        mine += [f"buffer {name} {tuple(b.shape)} {b.dtype}" for name, b in self.module.named_buffers()]
        theirs: list[Any] = [None] * self.world_size
        distributed.all_gather_object(theirs, mine)
        for rank, other in enumerate(theirs):
            for first, here in itertools.zip_longest(theirs[0], other, fillvalue="nothing"):
                if first != here:
                    raise ValueError(
                        f"process {rank} has another model than process 0: {here} where process 0 has "
                        f"{first}; build the same model, with the same settings, on every process."
                    )


@DATA_PARALLEL.register("per_parameter")
class PerParameter(DataParallel):
    """One all-reduce for each parameter after backward: the formula, and the slowest."""

    def finish_gradient_synchronization(self) -> None:
        """Average one gradient after the other."""
        for parameter in self._trained:
            message = GradientMessage([parameter])
            message.send()
            message.receive()


@DATA_PARALLEL.register("flat")
class Flat(DataParallel):
    """One all-reduce after backward for all parameters of a number format, copied behind each other."""

    def finish_gradient_synchronization(self) -> None:
        """Average all gradients together."""
        average_gradients(self._trained)


@DATA_PARALLEL.register("bucketed")
class Bucketed(DataParallel):
    """One all-reduce for each bucket of parameters, begun by backward as soon as the bucket is full.

    A gradient that changes after it was sent is an error: of several backward passes for one step, all but
    the last stand in `no_synchronization`.
    """

    in_flight = math.inf
    """Buckets on their way at once; backward waits for the oldest when there would be more."""

    def __init__(self, module: Module, *, bucket_mb: BucketSize = "auto") -> None:
        """Fill the buckets.

        Args:
            module: As `DataParallel`.
            bucket_mb: Largest size of a bucket in megabytes (10^6 bytes); a larger parameter has one for
                itself. 0: one for each parameter. None: no limit. auto: as `usual_bucket_mb`, the first one
                of 1 MB.

        Raises:
            ValueError: As `DataParallel`, or the size is negative.
        """
        super().__init__(module)
        if not (bucket_mb in ("auto", None) or bucket_mb >= 0):
            raise ValueError(f"bucket_mb={bucket_mb}: must be at least 0, auto, or None for no limit.")
        self.buckets = self._fill(bucket_mb)
        """Parameters of each bucket, in the order in which they are sent."""
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._rooms: dict[int, Tensor] = {}
        self._travelling: deque[GradientMessage] = deque()
        self._begin()
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(
                    lambda p, number=number: self._is_ready(p, number)
                )

    def _fill(self, bucket_mb: BucketSize) -> list[list[Parameter]]:
        return fill_buckets(self._trained, bucket_mb)

    def _begin(self) -> None:
        self._filling: dict[int, GradientMessage] = {}
        self._num_sent, self._has_gradients = 0, False
        self._travelling.clear()

    def start_batch(self) -> None:
        """Forget gradients on their way; on every process, after a backward pass that no step follows."""
        if self._has_gradients:  # another process may have sent more buckets: all make the same calls
            while self._num_sent < len(self.buckets):
                self._send()
        for message in self._travelling:
            message.work.wait()
        self._begin()

    def finish_gradient_synchronization(self) -> None:
        """Send what backward did not, wait for all; their means are the gradients."""
        while self._num_sent < len(self.buckets):
            self._send()
        while self._travelling:
            self._travelling.popleft().receive()
        self._begin()

    def _message(self, number: int) -> "GradientMessage":
        """A bucket's message of this step, always in the same memory: the gradients are parts of it."""
        message = GradientMessage(self.buckets[number], room=self._rooms.get(number))
        self._rooms[number] = message.flat
        return message

    def _send(self) -> None:
        """Send the next bucket, full or not."""
        while len(self._travelling) >= self.in_flight:
            self._travelling.popleft().receive()
        message = self._filling.pop(self._num_sent, None) or self._message(self._num_sent)
        message.send()
        self._travelling.append(message)
        self._num_sent += 1

    def _is_ready(self, parameter: Parameter, number: int) -> None:
        message = self._filling.get(number)
        if number < self._num_sent or (message is not None and parameter in message.taken):
            raise ValueError(
                f"{self._names[parameter]}: a gradient came after this batch's was sent. Of several backward "
                "passes for one step put all but the last into `with model.no_synchronization():`; when a "
                "step is skipped after backward, call model.start_batch() on every process."
            )
        if not self._synchronizes:
            return
        self._has_gradients = True
        if message is None:
            message = self._filling[number] = self._message(number)
        message.take(parameter)
        # strictly in order: a full bucket waits for those before it
        while (message := self._filling.get(self._num_sent)) is not None and message.full:
            self._send()


@DATA_PARALLEL.register("overlapped")
class Overlapped(Bucketed):
    """One all-reduce for each parameter, begun by backward as soon as its gradient is there."""

    def __init__(self, module: Module) -> None:
        """Give each parameter a bucket of its own; arguments and errors as `DataParallel`."""
        super().__init__(module, bucket_mb=0.0)


@torch.no_grad()
def _sum_of_squares(parameters: Iterable[Tensor], device: torch.device) -> Tensor:
    """Of their gradients; float64, so that the order in which processes add theirs does not show."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for parameter in parameters:
        if parameter.grad is not None:
            wide = torch.promote_types(parameter.grad.dtype, torch.float32)
            total += torch.linalg.vector_norm(parameter.grad, dtype=wide).to(device, torch.float64).square()
    return total
