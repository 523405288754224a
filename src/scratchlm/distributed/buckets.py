"""Buckets: parameters come in; which gradients travel together, and the message that carries them, go out.

    parameters  p0 p1 p2 p3 p4 p5        in the model's order
    buckets     [p5 p4] [p3 p2] [p1 p0]  in the order of backward, each of one number format
    message     | g5 / N | g4 / N | 1 1 |    a 1 for each gradient that this process has

A message is one piece of memory: gradients are copied into it, divided by the number of processes, it is
summed over them, and its parts are the mean gradients. The ones at its end say how many processes had each:
a parameter that nobody used keeps no gradient, one that somebody used counts as zero elsewhere.

How large? With s bytes in all, w bytes a second and o seconds a call, the last bucket and all calls together
cost least with buckets of sqrt(s w o) bytes (bench/overhead.py has the formula and fits w and o).

Source: Li et al. 2020, https://arxiv.org/abs/2006.15704, sections 3.2.1 and 3.2.3; the ones are ours.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

BUCKET_MB = 25.0
"""Largest usual bucket, as torch has it; the source measures 10 to 25 MB as best on most machines."""
FIRST_MB = 1.0
"""The first usual bucket, as torch has it: something travels early in backward."""
OVERHEAD_MB = 0.6
"""Bytes that could travel while a call is paid for, w o: 1.3 GB/s and 0.45 ms over gloo on one machine."""

BucketSize = float | Literal["auto"] | None
"""Largest bucket in megabytes; auto: by the size of all gradients; None: no limit."""


class GradientMessage:
    """Gradients on their way: one behind the other, and a 1 for each that this process has."""

    def __init__(
        self, parameters: Sequence[Parameter], *, owner: int | None = None, room: Tensor | None = None
    ) -> None:
        """Make room for them.

        Args:
            parameters: Of one number format, on one device.
            owner: The process that the sum goes to; None: to all.
            room: The `flat` of an earlier message of these parameters, to be used again.
        """
        self.parameters, self._owner = parameters, owner
        sizes = [parameter.numel() for parameter in parameters]
        numbers, like = sum(sizes) + len(sizes), parameters[0]
        # also here: memory that is new in every step has to be cleared by the system each time
        self.flat = torch.empty(numbers, dtype=like.dtype, device=like.device) if room is None else room
        *parts, self._present = self.flat.split([*sizes, len(sizes)])
        self._places = {p: part.view(p.shape) for p, part in zip(parameters, parts, strict=True)}
        self.taken: set[Parameter] = set()
        """Whose gradients are in it."""

    @property
    def full(self) -> bool:
        """Whether all gradients are in it."""
        return len(self.taken) == len(self.parameters)

    @torch.no_grad()
    def take(self, parameter: Parameter) -> None:
        """Copy a parameter's gradient, divided by the number of processes."""
        torch.div(parameter.grad, distributed.get_world_size(), out=self._places[parameter])
        parameter.grad = None  # its memory serves the gradients that backward computes meanwhile
        self.taken.add(parameter)

    @torch.no_grad()
    def send(self) -> None:
        """Take what is missing and send all; return at once."""
        for parameter in self.parameters:
            if parameter not in self.taken and parameter.grad is not None:
                self.take(parameter)
        self._present.fill_(1)
        for number, parameter in enumerate(self.parameters):
            if parameter not in self.taken:
                self._places[parameter].zero_()
                self._present[number].zero_()
        if self._owner is None:
            self.work = distributed.all_reduce(self.flat, async_op=True)
        else:
            self.work = distributed.reduce(self.flat, self._owner, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait; where they arrive, the parts of the message become the gradients."""
        self.work.wait()
        if self._owner not in (None, distributed.get_rank()):
            return
        # looking at numbers waits for the device: only where a gradient was missing
        somewhere = [True] * len(self.parameters) if self.full else self._present.tolist()
        for parameter, exists in zip(self.parameters, somewhere, strict=True):
            if exists:
                parameter.grad = self._places[parameter]


def average_gradients(parameters: Sequence[Parameter]) -> None:
    """Replace gradients by their means over the processes, with one call for each number format."""
    messages = [GradientMessage(bucket) for bucket in fill_buckets(parameters, None)]
    for message in messages:
        message.send()
    for message in messages:
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


def usual_bucket_mb(parameters: Iterable[Tensor]) -> float:
    """Return sqrt(s w o) megabytes for s megabytes of parameters, at most 25. Example: 22 MB -> 3.6 MB.

    The size at which the last bucket's time and the price of all calls are least together
    (bench/overhead.py). Small models get small buckets: one for all of them would wait for the end of
    backward.
    """
    megabytes = sum(parameter.nbytes for parameter in parameters) / 1e6
    return min(BUCKET_MB, math.sqrt(OVERHEAD_MB * megabytes))


def fill_buckets(
    parameters: Sequence[Parameter],
    bucket_mb: BucketSize,
    kind: Callable[[Parameter], Hashable] = dtype_and_device,
) -> list[list[Parameter]]:
    """Deal the reversed parameters out to buckets of at most `bucket_mb` megabytes and of one kind each.

    Buckets come in the order in which they are complete. Example: float32 parameters of 1, 2 and 3 million
    numbers, 20 MB -> [[third, second], [first]].

    Args:
        parameters: In the model's order.
        bucket_mb: Largest size; a larger parameter has a bucket of its own. None: no limit. auto: as
            `usual_bucket_mb`, and FIRST_MB for the first bucket.
        kind: Parameters of different kinds are never in one bucket.
    """
    limit = first = math.inf if bucket_mb is None else bucket_mb
    if bucket_mb == "auto":
        limit = usual_bucket_mb(parameters)
        first = min(FIRST_MB, limit)
    full: list[list[Parameter]] = []
    being_filled: dict[Hashable, tuple[list[Parameter], int]] = {}
    for parameter in reversed(parameters):
        # taken out and put back: the dictionary's order becomes that of the newest members
        bucket, size = being_filled.pop(kind(parameter), ([], 0))
        if bucket and size + parameter.nbytes > 1e6 * (limit if full else first):
            full.append(bucket)
            bucket, size = [], 0
        bucket.append(parameter)
        being_filled[kind(parameter)] = bucket, size + parameter.nbytes
    return full + [bucket for bucket, _ in being_filled.values()]
