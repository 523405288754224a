"""The training loop: built objects come in (model, optimizer, schedule, batches), a trained model goes out.

One step, for a batch of R rows computed in micro-batches of M rows:

    loss = sum over micro-batches of  (M / R) * mean cross-entropy      the same mean for any M
    g    = gradient of loss, scaled so that its global norm is at most grad_clip
    lr   = initial_lr * schedule(step)
    p    = optimizer(p, g, lr)

The loop knows no configuration, no files and no terminal: what happens between steps is the caller's
`after_step`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scratchlm import loss as losses
from scratchlm.data.loader import Batch, Loader
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.schedule import set_learning_rate
from scratchlm.runtime import autocast, log


class StepResult(NamedTuple):
    """What one optimizer step did."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is done: device, number format, compilation, rows at once."""

    device: torch.device
    precision: str
    compile: bool
    micro_rows: int


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is not a number; the parameters are those of the step before."""


class Trainer:
    """Runs optimizer steps over batches."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: Loader,
        *,
        rows_per_step: int,
        grad_clip: float,
        execution: Execution,
    ) -> None:
        """Keep the parts.

        Args:
            model: Token ids -> logits.
            optimizer: Built over the model's parameters; its groups' "lr" at this moment is the peak.
            schedule: Step -> multiplier of the peak learning rate, in [0, 1].
            loader: Gives row `row` of step `step`.
            rows_per_step: Rows in one optimizer step, however they are split.
            grad_clip: Largest global gradient norm; 0 does not clip.
            execution: Device, number format, compilation, rows at once.
        """
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.rows_per_step, self.grad_clip, self.execution = rows_per_step, grad_clip, execution
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._loss = torch.compile(self._eager_loss, dynamic=False) if execution.compile else self._eager_loss
        self.micro_rows = execution.micro_rows

    def train(self, first_step: int, total_steps: int, after_step: Callable[[StepResult], bool]) -> int:
        """Run steps `first_step` .. `total_steps` - 1; return the number of finished steps.

        Args:
            first_step: 0, or the number of steps that a checkpoint had finished.
            total_steps: Where to stop.
            after_step: Called after each step; False stops the loop.

        Raises:
            NonFiniteLossError: Before the parameters were touched.
        """
        self.model.train()
        for step in range(first_step, total_steps):
            if not after_step(self.step(step)):
                return step + 1
        return total_steps

    def step(self, step: int) -> StepResult:
        """Run optimizer step number `step` (the first is 0)."""
        started = time.perf_counter()
        lr = set_learning_rate(self.optimizer, self.schedule(step))
        loss = self._gradients(step)
        norm = clip_gradients_(self._parameters, self.grad_clip or math.inf)
        grad_norm = float(norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; the parameters are those of the "
                "step before. "
                "Lower optimizer.lr, lengthen the schedule's warm-up, or lower train.grad_clip."
            )
        self.optimizer.step()
        return StepResult(step + 1, loss, lr, grad_norm, time.perf_counter() - started)

    def _gradients(self, step: int) -> float:
        """Leave the batch's gradient in the parameters and return its loss; out of memory halves the rows."""
        while True:
            try:
                return self._accumulate(step)
            except torch.OutOfMemoryError:
                if self.micro_rows == 1:
                    raise
                self.micro_rows = largest_divisor(self.rows_per_step, self.micro_rows // 2)
                log.warning(
                    "Out of memory: micro-batches of %d rows from now on; same results.", self.micro_rows
                )
                torch.cuda.empty_cache()

    def _accumulate(self, step: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.execution.device)
        for first in range(0, self.rows_per_step, self.micro_rows):
            batch = self._to_device(self.loader.rows(step, first, self.micro_rows))
            loss = self._loss(batch.inputs, batch.targets) * (self.micro_rows / self.rows_per_step)
            loss.backward()
            total += loss.detach()
        return float(total)

    def _eager_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(self.execution.device, self.execution.precision):
            logits = self.model(inputs)
        return losses.cross_entropy(logits, targets)

    def _to_device(self, batch: Batch) -> Batch:
        device = self.execution.device
        if device.type == "cpu":
            return batch
        return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in batch))


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is no larger than `at_most`. Example: (24, 10) -> 8."""
    return next(size for size in range(max(1, min(number, at_most)), 0, -1) if number % size == 0)
