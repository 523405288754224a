"""The engine ddp: every process holds everything; gradients are averaged while backward still computes.

    forward      | blocks 0 1 2 3 |
    backward                      | block 3 | block 2 | block 1 | block 0 |
    network                                 | bucket  | bucket  | bucket  | bucket |

torch's DistributedDataParallel, or one of the four ways written out in ddp.py (`how`). Buckets of gradients
travel as soon as they are full, in all but the last micro-batch of a step nothing travels, and a parameter
that did not take part in the loss needs `find_unused=true` with torch's.

Source: Li et al. 2020, "PyTorch Distributed", https://arxiv.org/abs/2006.15704.
"""

import contextlib
import inspect
from contextlib import AbstractContextManager
from typing import Any, Literal

from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from scratchlm.distributed.ddp import DATA_PARALLEL, DataParallel
from scratchlm.distributed.engine import ENGINES, Engine, Work
from scratchlm.distributed.process import Processes

How = Literal["torch", "per_parameter", "flat", "overlapped", "bucketed"]
"""Who averages: torch, or one of ddp.py's ways."""


@ENGINES.register("ddp")
class DDP(Engine):
    """Data parallelism: the whole model everywhere, the mean of all gradients."""

    def __init__(
        self, *, how: How = "torch", bucket_mb: float | Literal["auto"] = "auto", find_unused: bool = False
    ) -> None:
        """Keep the settings.

        Args:
            how: torch's DistributedDataParallel, or a way written out in distributed/ddp.py.
            bucket_mb: Gradients that travel together, in megabytes; for torch and bucketed. auto: torch's
                own 25 after a first one of 1, and for bucketed by the size of the model.
            find_unused: Look in every step for parameters that the loss does not use; for torch, the others
                need not be told.
        """
        super().__init__()
        if bucket_mb != "auto" and not bucket_mb > 0:
            raise ValueError(f"distributed.bucket_mb={bucket_mb}: must be above 0, such as 25; or auto.")
        self.how, self.bucket_mb, self.find_unused = how, bucket_mb, find_unused

    def wrap(self, work: Work, processes: Processes) -> None:
        """Let backward average gradients; parameters and buffers become those of process 0."""
        self._take(work, processes)
        assert isinstance(self.loss, Module), work.objective
        self.averaging = self._averaging(self.loss)
        self.loss = self.averaging

    def begin(self) -> None:
        """Forget what an interrupted step left."""
        if isinstance(self.averaging, DataParallel):
            self.averaging.start_batch()

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Send nothing but in the last micro-batch."""
        if last:
            return contextlib.nullcontext()
        if isinstance(self.averaging, DataParallel):
            return self.averaging.no_synchronization()
        return self.averaging.no_sync()

    def finish(self) -> None:
        """Wait for the gradients' means; torch's backward has waited already."""
        if isinstance(self.averaging, DataParallel):
            self.averaging.finish_gradient_synchronization()

    def _averaging(self, objective: Module) -> DistributedDataParallel | DataParallel:
        if self.how != "torch":
            settings = {"bucket_mb": self.bucket_mb} if self.how == "bucketed" else {}
            return DATA_PARALLEL.build(self.how, objective, **settings)
        return torch_averaging(
            objective,
            bucket_cap_mb=None if self.bucket_mb == "auto" else self.bucket_mb,
            find_unused_parameters=self.find_unused,
            gradient_as_bucket_view=True,
        )


def torch_averaging(module: Module, **settings: Any) -> DistributedDataParallel:
    """Return torch's DistributedDataParallel without its broadcast of buffers before each forward pass.

    Ours are constants: it would be traffic for nothing.

    Args:
        module: What is trained.
        settings: torch's other ones.
    """
    # torch 2.13 has a new name for it and warns of the old one, which older versions know alone
    known = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(module, **{sync_buffers: False}, **settings)
