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
same calls in the same order, even where one of them did not use a parameter. A gradient is taken from its
parameter when it is sent, and when the mean is there its part of the message is the gradient: one copy, and
memory for both only while a bucket is made.

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
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter

from scratchlm.registry import Family

DATA_PARALLEL: Family["DataParallel"] = Family("data_parallel", package="scratchlm.distributed")
"""Ways to average gradients: built from a module, on every process of a group."""

BUCKET_MB = 25.0
"""As torch has it; the source measures 10 to 25 MB as best on most machines."""

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
            GradientMessage([parameter]).receive()


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

    def __init__(self, module: Module, *, bucket_mb: float | None = BUCKET_MB) -> None:
        """Fill the buckets.

        Args:
            module: As `DataParallel`.
            bucket_mb: Largest size of a bucket in megabytes (10^6 bytes); a larger parameter has one for
                itself. 0: one for each parameter. None: no limit.

        Raises:
            ValueError: As `DataParallel`, or the size is negative.
        """
        super().__init__(module)
        if bucket_mb is not None and not bucket_mb >= 0:
            raise ValueError(f"bucket_mb={bucket_mb}: must be at least 0, or None for no limit.")
        self.buckets = self._fill(bucket_mb)
        """Parameters of each bucket, in the order in which they are sent."""
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._travelling: deque[GradientMessage] = deque()
        self._begin()
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(
                    lambda p, number=number: self._is_ready(p, number)
                )

    def _fill(self, bucket_mb: float | None) -> list[list[Parameter]]:
        return fill_buckets(self._trained, bucket_mb)

    def _begin(self) -> None:
        self._waits_for = [set(bucket) for bucket in self.buckets]
        self._num_sent, self._has_gradients = 0, False
        self._travelling.clear()

    def start_batch(self) -> None:
        """Forget gradients on their way; on every process, after a backward pass that no step follows."""
        if self._has_gradients:  # another process may have sent more buckets: all make the same calls
            for bucket in self.buckets[self._num_sent :]:
                self._travelling.append(self._message(bucket))
        for message in self._travelling:
            message.work.wait()
        self._begin()

    def finish_gradient_synchronization(self) -> None:
        """Send what backward did not, wait for all, and write the means into the gradients."""
        for bucket in self.buckets[self._num_sent :]:
            self._send(bucket)
        while self._travelling:
            self._travelling.popleft().receive()
        self._begin()

    def _message(self, bucket: list[Parameter]) -> "GradientMessage":
        return GradientMessage(bucket)

    def _send(self, bucket: list[Parameter]) -> None:
        while len(self._travelling) >= self.in_flight:
            self._travelling.popleft().receive()
        self._travelling.append(self._message(bucket))
        self._num_sent += 1

    def _is_ready(self, parameter: Parameter, number: int) -> None:
        if number < self._num_sent:
            raise ValueError(
                f"{self._names[parameter]}: a gradient came after this batch's was sent. Of several backward "
                "passes for one step put all but the last into `with model.no_synchronization():`; when a "
                "step is skipped after backward, call model.start_batch() on every process."
            )
        if not self._synchronizes:
            return
        self._has_gradients = True
        self._waits_for[number].discard(parameter)
        # strictly in order: a full bucket waits for those before it
        while self._num_sent < len(self.buckets) and not self._waits_for[self._num_sent]:
            self._send(self.buckets[self._num_sent])


@DATA_PARALLEL.register("overlapped")
class Overlapped(Bucketed):
    """One all-reduce for each parameter, begun by backward as soon as its gradient is there."""

    def __init__(self, module: Module) -> None:
        """Give each parameter a bucket of its own; arguments and errors as `DataParallel`."""
        super().__init__(module, bucket_mb=0.0)


class GradientMessage:
    """Gradients on their way: one behind the other, and a 1 for each that this process has."""

    @torch.no_grad()
    def __init__(self, parameters: Sequence[Parameter], owner: int | None = None) -> None:
        """Take and send them, to all processes or to the one that owns these parameters; return at once."""
        self.parameters, self.arrives = parameters, owner in (None, distributed.get_rank())
        self.had = [parameter.grad is not None for parameter in parameters]
        grads = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        # made where the gradients are: copied from a list, they would let the CPU wait for the device
        yes, no = grads[0].new_ones(1), grads[0].new_zeros(1)
        self.flat = torch.cat([*grads, *(yes if had else no for had in self.had)])
        self.flat[: -len(self.had)].div_(distributed.get_world_size())
        for parameter in parameters:
            parameter.grad = None  # its memory serves the gradients that backward computes meanwhile
        if owner is None:
            self.work = distributed.all_reduce(self.flat, async_op=True)
        else:
            self.work = distributed.reduce(self.flat, owner, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait; where they arrive, the parts of the message become the gradients."""
        self.work.wait()
        if not self.arrives:
            return
        sizes = [parameter.numel() for parameter in self.parameters]
        *means, present = self.flat.split([*sizes, len(sizes)])
        # looking at numbers waits for the device: only where a gradient was missing
        somewhere = self.had if all(self.had) else present.tolist()
        for parameter, mean, exists in zip(self.parameters, means, somewhere, strict=True):
            if exists:
                parameter.grad = mean.view_as(parameter)


def average_gradients(parameters: Sequence[Parameter]) -> None:
    """Replace gradients by their means over the processes, with one call for each number format."""
    for message in [GradientMessage(bucket) for bucket in fill_buckets(parameters, None)]:
        message.receive()


@torch.no_grad()
def take_from_first(tensor: Tensor) -> None:
    """Give a tensor the numbers that it has on process 0."""
    numbers = tensor.contiguous()  # itself, unless it is transposed or the like
    distributed.broadcast(numbers, 0)
    if numbers is not tensor and distributed.get_rank() != 0:
        tensor.copy_(numbers)


def dtype_and_device(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    """What tensors must share to stand in one buffer."""
    return tensor.dtype, tensor.device


def fill_buckets(
    parameters: Sequence[Parameter],
    bucket_mb: float | None,
    kind: Callable[[Parameter], Hashable] = dtype_and_device,
) -> list[list[Parameter]]:
    """Deal the reversed parameters out to buckets of at most `bucket_mb` megabytes and of one kind each.

    Buckets come in the order in which they are complete. Example: float32 parameters of 1, 2 and 3 million
    numbers, 20 MB -> [[third, second], [first]].

    Args:
        parameters: In the model's order.
        bucket_mb: Largest size; a larger parameter has a bucket of its own. None: no limit.
        kind: Parameters of different kinds are never in one bucket.
    """
    limit = float("inf") if bucket_mb is None else bucket_mb * 1e6
    full: list[list[Parameter]] = []
    being_filled: dict[Hashable, tuple[list[Parameter], int]] = {}
    for parameter in reversed(parameters):
        # taken out and put back: the dictionary's order becomes that of the newest members
        bucket, size = being_filled.pop(kind(parameter), ([], 0))
        if bucket and size + parameter.nbytes > limit:
            full.append(bucket)
            bucket, size = [], 0
        bucket.append(parameter)
        being_filled[kind(parameter)] = bucket, size + parameter.nbytes
    return full + [bucket for bucket, _ in being_filled.values()]


@torch.no_grad()
def _sum_of_squares(parameters: Iterable[Tensor], device: torch.device) -> Tensor:
    """Of their gradients; float64, so that the order in which processes add theirs does not show."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for parameter in parameters:
        if parameter.grad is not None:
            wide = torch.promote_types(parameter.grad.dtype, torch.float32)
            total += torch.linalg.vector_norm(parameter.grad, dtype=wide).to(device, torch.float64).square()
    return total
