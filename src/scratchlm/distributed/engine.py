"""Engines: a model and its loss come in; what a training step asks of all processes together goes out.

                 parameters    gradients    optimizer state    how
    (one)        all           all          all                one process: nothing is asked of anybody
    ddp          all           all          all                torch's DistributedDataParallel, or ours
    zero1        all           all          1/N                ddp, and an owner for each parameter
    fsdp2        1/N           1/N          1/N                torch's fully_shard, block by block

    step:   begin -> [accumulating(last): backward] per micro-batch -> finish -> common_norm -> optimizer.step

The trainer computes the same way with every engine: each process takes its share of a step's rows, gradients
become the mean over the processes, everybody makes the same step. What differs is who keeps what, and when it
travels. An optimizer sees ordinary tensors (`named_parameters`): whole parameters, or this process's rows of
them; `place` says which rows, so that a checkpoint can put the pieces of all processes together again.

Source: Li et al. 2020, https://arxiv.org/abs/2006.15704 (ddp); Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054 (zero1); Zhao et al. 2023, https://arxiv.org/abs/2304.11277 (fsdp2).
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from scratchlm.distributed.process import Processes
from scratchlm.registry import Family
from scratchlm.runtime import COMPILING

ENGINES: Family["Engine"] = Family("distributed", package="scratchlm.distributed")
"""How several processes train one model together: called as its setting is."""

Groups = list[dict[str, Any]]
"""Parameter groups, as torch's optimizers take them."""


class Place(NamedTuple):
    """The rows of a tensor that this process keeps: first_row, first_row + 1, ..."""

    first_row: int
    rows: int
    """How many the whole tensor has."""


class Work(NamedTuple):
    """What is trained, and how it is computed."""

    model: Module
    """Ids -> logits; built inside `building`, with the same seed on every process."""
    objective: Callable[..., Tensor]
    """(inputs, targets) -> mean loss; with several processes a module that contains the model."""
    precision: str = "float32"
    """Number format of matrix products."""
    compiled: bool = False
    """Whether torch.compile is used."""


class Engine:
    """What a trainer asks of all processes; every method is called by all of them, in one order."""

    whole = True
    """Whether each process holds the whole model, so that one of them can use it alone."""

    owns_state = False
    """Whether the optimizer's state of a parameter is kept by one process only."""

    compiles_loss = True
    """Whether torch.compile, where it is used, sees the loss too, and not the model's blocks alone."""

    def __init__(self) -> None:
        """Keep settings only; `wrap` does the work."""
        self.processes = Processes()

    def check(self, world_size: int) -> None:
        """Ask whether so many processes can work in this way, before anything is prepared.

        Raises:
            ValueError: They cannot; the message has numbers that can.
        """

    @contextlib.contextmanager
    def building(self, device: torch.device, precision: str, processes: Processes) -> Iterator[None]:
        """Around the construction of the model, so that it need not be whole on each process.

        Args:
            device: Where it will be.
            precision: Number format of matrix products.
            processes: Those that share the work.
        """
        yield

    def wrap(self, work: Work, processes: Processes) -> None:
        """Take a model over; afterwards `loss` computes its loss.

        Args:
            work: What is trained.
            processes: Those that share the work.

        Raises:
            ValueError: This engine cannot train such a model, or not with so many processes.
        """
        raise NotImplementedError

    def make_optimizer(self, build: Callable[[Groups], Optimizer], groups: Groups) -> Optimizer:
        """Return the optimizer that the trainer steps.

        Args:
            build: Groups of parameters -> optimizer.
            groups: Over `named_parameters`.
        """
        self.keeper = build(groups)
        """What keeps this process's part of the optimizer's state."""
        return self.keeper

    def named_parameters(self) -> dict[str, Tensor]:
        """Name in the model -> what the optimizer moves: the parameter, or this process's rows of it."""
        return dict(self.model.named_parameters())

    def place(self, name: str) -> Place | None:
        """Which rows of parameter `name` this process keeps; None: all of them, as every process does."""
        return None

    @property
    def saves(self) -> bool:
        """Whether what this process keeps belongs into a checkpoint; not if another keeps the same."""
        return True

    def begin(self) -> None:
        """A step begins; gradients were set to None."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch's forward and backward pass; only the last one's needs the others."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Leave the mean over the processes in the gradients, after the last backward pass."""

    def common_norm(self, norm: Tensor) -> Tensor:
        """The length of all gradients, where `norm` is that of those which this process keeps."""
        return norm

    def sum_over_shards(self, tensor: Tensor) -> Tensor:
        """The sum over the processes that keep different rows; for whole tensors the tensor itself."""
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """The numbers of process 0, where all processes compute them together; otherwise the tensor itself.

        Machines of different kinds round differently, and a text that differs in one token goes on elsewhere.
        """
        return tensor

    @contextlib.contextmanager
    def examining(self) -> Iterator[None]:
        """Around forward passes between two steps, of `model` itself, on all processes equally often."""
        yield

    def merged(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state that is no tensor, of all processes, by parameter."""
        return plain

    def _take(self, work: Work, processes: Processes) -> None:
        self.model, self.processes = work.model, processes
        compiled = torch.compile(work.objective, **COMPILING) if work.compiled else work.objective
        self.loss: Callable[..., Tensor] = compiled


class OneProcess(Engine):
    """Nobody to share with: nothing is wrapped, nothing is sent."""

    def wrap(self, work: Work, processes: Processes) -> None:
        """Take a model over as it is."""
        self._take(work, processes)


def engine_for(part: str, settings: dict[str, Any], processes: Processes) -> Engine:
    """The engine called `part`; one process needs none.

    Args:
        part: Name in ENGINES.
        settings: The part's.
        processes: Those that will share the work.
    """
    return ENGINES.build(part, **settings) if processes.world_size > 1 else OneProcess()
