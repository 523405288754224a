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
same calls in the same order, even where one of them did not use a parameter.

The gradients are summed and divided by the number of processes: some versions of gloo return the sum when
they are asked for the mean. Parameters and buffers begin as process 0 has them.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
https://arxiv.org/abs/2006.15704, sections 3.2.1 to 3.2.3; names as in Stanford's CS336, assignment 2.
"""

import contextlib
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


class DataParallel(Module):
    """A module on every process; `finish_gradient_synchronization` gives all the mean of their gradients."""

    def __init__(self, module: Module) -> None:
        """Give every process the parameters and buffers of process 0.

        Args:
            module: The same architecture on every process. It stays reachable as `.module`.

        Raises:
            ValueError: There is no process group, or the processes hold different parameters.
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
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                distributed.broadcast(tensor, 0)
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

    def finish_gradient_synchronization(self) -> None:
        """Replace every gradient by its mean over the processes; call it after backward, before the step.

        A parameter with a gradient on some processes only counts as zero on the others; one without any
        gradient keeps none.
        """
        raise NotImplementedError

    def _check_alike(self) -> None:
        mine = [(name, tuple(p.shape), str(p.dtype)) for name, p in self.module.named_parameters()]
        theirs: list[Any] = [None] * self.world_size
        distributed.all_gather_object(theirs, mine)
        for rank, other in enumerate(theirs):
            if other != theirs[0]:
                odd = sorted({entry[0] for entry in set(other) ^ set(theirs[0])})
                raise ValueError(
                    f"process {rank} has other parameters than process 0 ({', '.join(odd[:5])}); build the "
                    "same model, with the same settings, on every process."
                )


@DATA_PARALLEL.register("per_parameter")
class PerParameter(DataParallel):
    """One all-reduce for each parameter after backward: the formula, and the slowest."""

    def finish_gradient_synchronization(self) -> None:
        """Average one gradient after the other."""
        for parameter in self._trained:
            finish([start([parameter])], self.world_size)


@DATA_PARALLEL.register("flat")
class Flat(DataParallel):
    """One all-reduce after backward for all parameters of a number format, copied behind each other."""

    def finish_gradient_synchronization(self) -> None:
        """Average all gradients together."""
        finish([start(bucket) for bucket in fill_buckets(self._trained, None)], self.world_size)


@DATA_PARALLEL.register("bucketed")
class Bucketed(DataParallel):
    """One all-reduce for each bucket of parameters, begun by backward as soon as the bucket is full."""

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
        place = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._waits_for: list[set[Parameter]] = []
        self._started: list[Message] = []
        self.start_batch()
        for parameter, number in place.items():
            parameter.register_post_accumulate_grad_hook(lambda p, number=number: self._is_ready(p, number))

    def _fill(self, bucket_mb: float | None) -> list[list[Parameter]]:
        return fill_buckets(self._trained, bucket_mb)

    def start_batch(self) -> None:
        """Forget what was sent: a new batch begins. `finish_gradient_synchronization` does it, too."""
        self._waits_for = [set(bucket) for bucket in self.buckets]
        self._started = []

    def finish_gradient_synchronization(self) -> None:
        """Send what backward did not, wait for all, and write the means into the gradients."""
        for bucket in self.buckets[len(self._started) :]:
            self._started.append(self._send(bucket))
        finish(self._started, self.world_size)
        self.start_batch()

    def _send(self, bucket: list[Parameter]) -> "Message":
        return start(bucket)

    def _is_ready(self, parameter: Parameter, number: int) -> None:
        if not self._synchronizes:
            return
        self._waits_for[number].discard(parameter)
        # strictly in order: a full bucket waits for those before it
        while len(self._started) < len(self.buckets) and not self._waits_for[len(self._started)]:
            self._started.append(self._send(self.buckets[len(self._started)]))


@DATA_PARALLEL.register("overlapped")
class Overlapped(Bucketed):
    """One all-reduce for each parameter, begun by backward as soon as its gradient is there."""

    def __init__(self, module: Module) -> None:
        """Give each parameter a bucket of its own; arguments and errors as `DataParallel`."""
        super().__init__(module, bucket_mb=0.0)


class Message:
    """Gradients on their way: copied behind each other, and a 1 for each that this process has."""

    def __init__(self, parameters: Sequence[Parameter], owner: int | None = None) -> None:
        """Send them, to all processes or to the one that owns these parameters; return at once."""
        self.parameters, self.arrives = parameters, owner in (None, distributed.get_rank())
        self.had = [parameter.grad is not None for parameter in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor(self.had, dtype=grads[0].dtype, device=grads[0].device)
        self.flat = torch.cat([*(grad.reshape(-1) for grad in grads), present])
        if owner is None:
            self.work = distributed.all_reduce(self.flat, async_op=True)
        else:
            self.work = distributed.reduce(self.flat, owner, async_op=True)

    def unpack(self, world_size: int) -> None:
        """Wait; write the means into the gradients where they arrive."""
        self.work.wait()
        if not self.arrives:
            return
        sizes = [parameter.numel() for parameter in self.parameters]
        means = self.flat[: sum(sizes)].div_(world_size).split(sizes)
        for number, (parameter, mean) in enumerate(zip(self.parameters, means, strict=True)):
            if self.had[number]:
                parameter.grad.copy_(mean.view_as(parameter))
            elif self.flat[sum(sizes) + number] > 0:  # seldom: looking at a number waits for a GPU
                parameter.grad = mean.view_as(parameter).clone()


@torch.no_grad()
def start(parameters: Sequence[Parameter]) -> Message:
    """Send the gradients of some parameters of one format to all processes; return at once."""
    return Message(parameters)


@torch.no_grad()
def finish(messages: Iterable[Message], world_size: int) -> None:
    """Wait for messages in the order in which they were sent; write the means into the gradients."""
    for message in messages:
        message.unpack(world_size)


def number_format(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    """What tensors must share to stand in one buffer."""
    return tensor.dtype, tensor.device


def fill_buckets(
    parameters: Sequence[Parameter],
    bucket_mb: float | None,
    kind: Callable[[Parameter], Hashable] = number_format,
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
        if bucket and size + num_bytes(parameter) > limit:
            full.append(bucket)
            bucket, size = [], 0
        bucket.append(parameter)
        being_filled[kind(parameter)] = bucket, size + num_bytes(parameter)
    return full + [bucket for bucket, _ in being_filled.values()]


def num_bytes(tensor: Tensor) -> int:
    """Size of a tensor in memory."""
    return tensor.numel() * tensor.element_size()
