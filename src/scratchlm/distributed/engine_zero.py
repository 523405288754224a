"""The engine zero1: as ddp, but each parameter's optimizer state is kept by one process, its owner.

    gradients   averaged by the engine ddp: every process has them all
    step        owner 0 moves p0 p1, owner 1 moves p2 p3        (zero.py: ShardedOptimizer)
    parameters  each owner broadcasts what it moved             equal everywhere again

Of AdamW's 16 bytes a parameter in float32 (4 itself, 4 gradient, 8 state) N processes keep 8 + 8 / N each.
Parameters have one owner as a whole, so optimizers that look at matrices, such as Muon, work as they are, and
each matrix is turned by one process only.

Source: Rajbhandari et al. 2020, "ZeRO", https://arxiv.org/abs/1910.02054, section 5.1.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

from torch import distributed
from torch.optim import Optimizer

from scratchlm.distributed.engine import ENGINES, Engine, Groups, Work
from scratchlm.distributed.engine_ddp import DDP, How
from scratchlm.distributed.process import Processes
from scratchlm.distributed.zero import ShardedOptimizer


@ENGINES.register("zero1")
class ZeRO1(Engine):
    """ZeRO stage 1: the model and gradients everywhere, the optimizer's state at each parameter's owner."""

    owns_state = True

    def __init__(
        self, *, how: How = "torch", bucket_mb: float | Literal["auto"] = "auto", find_unused: bool = False
    ) -> None:
        """Keep the settings.

        Args:
            how: As the engine ddp: who averages the gradients.
            bucket_mb: As the engine ddp: gradients that travel together, in megabytes.
            find_unused: As the engine ddp: look for parameters that the loss does not use.
        """
        super().__init__()
        self.ddp = DDP(how=how, bucket_mb=bucket_mb, find_unused=find_unused)

    def wrap(self, work: Work, processes: Processes) -> None:
        """As the engine ddp."""
        self.ddp.wrap(work, processes)
        self.model, self.processes, self.loss = self.ddp.model, processes, self.ddp.loss

    def make_optimizer(self, build: Callable[[Groups], Optimizer], groups: Groups) -> Optimizer:
        """Deal the parameters out to owners."""
        whole = ShardedOptimizer(groups, build)
        self.keeper = whole.inner
        return whole

    def begin(self) -> None:
        """As the engine ddp."""
        self.ddp.begin()

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """As the engine ddp."""
        return self.ddp.accumulating(last=last)

    def finish(self) -> None:
        """As the engine ddp."""
        self.ddp.finish()

    def merged(self, plain: dict[str, Any]) -> dict[str, Any]:
        """What the owners know of their parameters, together."""
        found: list[Any] = [None] * self.processes.world_size
        with self.processes.naming("collecting the optimizer's state"):
            distributed.all_gather_object(found, plain)
        return {name: values for part in found for name, values in part.items()}
