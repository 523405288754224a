"""The training loop's step: built parts come in (model, optimizer, batches, loss), a better model goes out.

One step, for a batch of R rows in which N targets count, computed by W processes in micro-batches:

    loss = sum over micro-batches of  (n / N) * mean loss of its n targets      the same for any split
    g    = gradient of loss, summed over the processes
    guard: a loss or |g| that is not usable, or not usual, leaves the step out before anything is touched
    g    = g * min(1, grad_clip / |g|)
    lr   = initial_lr * schedule(step)
    p    = optimizer(p, g, lr)

Dropout is seeded anew for each micro-batch from (seed, step, first row): a step that was abandoned half-way
(somebody pressed Ctrl-C) left no trace and is computed again in full. The loop knows no configuration, no
files and no terminal.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchlm.data.loader import Batches
from scratchlm.data.permutation import mix
from scratchlm.data.prefetch import Prefetcher, Request
from scratchlm.distributed.engine import Engine
from scratchlm.distributed.process import Processes
from scratchlm.loss import IGNORE
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.schedule import set_learning_rate
from scratchlm.runtime import log
from scratchlm.train.guard import Guard, Judgement


class StepResult(NamedTuple):
    """What one optimizer step did."""

    step: int
    """Steps that are done now."""
    data_step: int
    """The step, from 0, whose batch it read."""
    loss: float
    """Mean over the batch before the update, in nats per token (with z-loss and smoothing, if on)."""
    lr: float
    grad_norm: float
    """Before clipping."""
    seconds: float
    judgement: Judgement
    """Whether the update was made, and if not, why."""


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is done: device, number format, compilation, rows at once."""

    device: torch.device
    precision: str
    compile: bool
    micro_rows: int


class StepAbandonedError(Exception):
    """Somebody asked to stop in the middle of a step; the step left no trace."""


class StepImpossibleError(ValueError):
    """A step's batch cannot be made, before anything was computed with it; the step left no trace."""


def never() -> bool:
    """Go on."""
    return False


class Trainer:
    """Runs optimizer steps over batches."""

    def __init__(
        self,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: Batches,
        *,
        rows_per_step: int,
        grad_clip: float,
        execution: Execution,
        guard: Guard,
        seed: int = 0,
        processes: Processes | None = None,
        abandon: Callable[[], bool] = never,
    ) -> None:
        """Keep the parts.

        Args:
            engine: Has the model and its loss, and knows how processes share them.
            optimizer: Built over the engine's parameters; its groups' "lr" at this moment is the peak.
            schedule: Step -> multiplier of the peak learning rate, in [0, 1].
            loader: Gives row `row` of step `step`.
            rows_per_step: Rows in one optimizer step, over all processes and micro-batches.
            grad_clip: Largest global gradient norm; 0 does not clip.
            execution: Device, number format, compilation, rows at once.
            guard: Judges each step before the update.
            seed: Decides dropout.
            processes: Those that share the work; each takes an equal part of a step's rows.
            abandon: Asked before each micro-batch; True gives the step up.

        Raises:
            ValueError: The rows cannot be shared out equally.
        """
        self.engine, self.model, self.optimizer, self.schedule = engine, engine.model, optimizer, schedule
        self.rows_per_step, self.grad_clip, self.execution = rows_per_step, grad_clip, execution
        self.guard, self.seed, self.abandon = guard, seed, abandon
        self.processes = processes or Processes()
        self.rows_here = self.processes.rows(rows_per_step)
        """This process's rows of every step."""
        self.micro_rows = largest_divisor(len(self.rows_here), execution.micro_rows)
        self.data_offset = 0
        """Step `s` reads the batch of step s + data_offset: a rollback skips data with it."""
        self.batches = Prefetcher(loader, pin_memory=execution.device.type == "cuda")
        self._parameters = [p for p in engine.named_parameters().values() if p.requires_grad]

    def step(self, step: int) -> StepResult:
        """Run optimizer step number `step` (the first is 0).

        Raises:
            StepAbandonedError: `abandon` said so; nothing was changed.
            StepImpossibleError: There is no batch for it; nothing was changed.
        """
        started = time.perf_counter()
        self.model.train()
        lr = set_learning_rate(self.optimizer, self.schedule(step))
        loss, grad_norm = self._gradients(step)
        data_step = step + self.data_offset
        judgement = self.guard.judge(loss, grad_norm, step=step + 1, data_step=data_step)
        if judgement.action == "apply":
            with self._naming():
                self.optimizer.step()
        seconds = time.perf_counter() - started
        return StepResult(step + 1, data_step, loss, lr, grad_norm, seconds, judgement)

    def _gradients(self, step: int) -> tuple[float, float]:
        """Leave the clipped gradient in the parameters; return the loss and the norm before clipping."""
        with self._naming():
            loss = self._accumulate_within_memory(step)
            self.engine.finish()
        if self.processes.world_size > 1:
            loss = self.processes.sum(loss) / self.processes.world_size
        norm = clip_gradients_(
            self._parameters, self.grad_clip or math.inf, common_norm=self.engine.common_norm
        )
        with self._naming():  # on a GPU a lost process shows where numbers are waited for
            both = torch.stack([loss, norm.to(loss)]).tolist()  # one wait for the device, not two
        return both[0], both[1]

    def _accumulate_within_memory(self, step: int) -> Tensor:
        """As `_accumulate`; out of memory halves the rows computed at once.

        Raises:
            ValueError: Out of memory among several processes, which have to make the same calls.
        """
        while True:
            try:
                return self._accumulate(step)
            except torch.OutOfMemoryError as error:
                if self.micro_rows == 1:
                    raise
                if self.processes.world_size > 1:
                    raise ValueError(self._too_large()) from error
                self.micro_rows = largest_divisor(len(self.rows_here), self.micro_rows // 2)
                log.warning(
                    "Out of memory: micro-batches of %d rows from now on; same results.", self.micro_rows
                )
                torch.cuda.empty_cache()

    def _accumulate(self, step: int) -> Tensor:
        """Add up this process's gradient, scaled so that the mean over the processes is the batch's."""
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.begin()
        total = torch.zeros((), device=self.execution.device)
        for batch, first_row, share in self._shares(step):
            if self.abandon():
                raise StepAbandonedError
            self._seed(mix(self.seed, step, first_row))
            on_device = self._to_device(batch)
            last = first_row + self.micro_rows == self.rows_here.stop
            with self.engine.accumulating(last=last):
                loss = self.engine.loss(*on_device) * share
                loss.backward()
            total += loss.detach()
        return total

    def _seed(self, seed: int) -> None:
        if self.execution.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # for all devices it takes 0.8 ms
        else:
            torch.manual_seed(seed)

    def _naming(self) -> AbstractContextManager[None]:
        """Let errors of the network, which may come out of backward, name the process that was lost."""
        if self.processes.world_size == 1:
            return contextlib.nullcontext()
        return self.processes.naming("exchanging gradients and parameters", among_others=True)

    def _too_large(self) -> str:
        smaller = largest_divisor(len(self.rows_here), self.micro_rows // 2)
        return (
            f"process {self.processes.rank} of {self.processes.world_size} is out of memory with "
            f"micro-batches of {self.micro_rows} rows; resume with a train.micro_batch_tokens of {smaller} "
            "rows, train.gradient_checkpointing=true or distributed=fsdp2."
        )

    def _shares(self, step: int) -> Iterator[tuple[Any, int, float]]:
        """This process's micro-batches, the row each begins at, and the weight of its mean loss."""
        batches: Iterable[tuple[Request, Any]] = self._read(step)
        if not self.batches.loader.padded:
            for request, batch in batches:
                yield batch, request.first, request.count / len(self.rows_here)
            return
        batches = list(batches)  # how many targets count in the whole step has to be known first
        counts = [int((batch.targets != IGNORE).sum()) for _, batch in batches]
        mean = int(self.processes.sum(torch.tensor(sum(counts)))) / self.processes.world_size
        for (request, batch), count in zip(batches, counts, strict=True):
            if count == 0:
                # others wait for its backward pass, and a mean over nothing is NaN, even times 0
                batch.targets[:, -1] = 0
            # a whole step without targets has no loss: NaN, and the guard leaves it out
            yield batch, request.first, count / mean if mean else math.nan

    def _read(self, step: int) -> Iterator[tuple[Request, Any]]:
        """This process's micro-batches of a step; the next one is read ahead."""
        requests = self._requests(step)
        for number, request in enumerate(requests):
            following = requests[number + 1 :] or self._requests(step + 1)
            yield request, self.batches.rows(request, following[:1])

    def _requests(self, step: int) -> list[Request]:
        data_step = step + self.data_offset
        return [Request(data_step, row, self.micro_rows) for row in self.rows_here[:: self.micro_rows]]

    def _to_device(self, batch: Any) -> Any:
        device = self.execution.device
        if device.type == "cpu":
            return batch
        return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is no larger than `at_most`. Example: (24, 10) -> 8."""
    return next(size for size in range(max(1, min(number, at_most)), 0, -1) if number % size == 0)
