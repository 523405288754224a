"""Processes: torchrun's environment comes in, one object comes out through which they agree on numbers.

    torchrun --nproc-per-node 2 -m scratchlm train demo      RANK=0 and 1, WORLD_SIZE=2

    process 0: rows 0 1 2 3 -> gradient g0 --+
                                             +-- (g0 + g1) / 2 --> the same step on both
    process 1: rows 4 5 6 7 -> gradient g1 --+

Every process holds the whole model and computes an equal share of each step's rows; the mean of their
gradients is the gradient of all rows. It is computed once and handed to all, so the copies never drift apart.
A number that is not finite on one process is not finite on any after the mean, so all of them see it. Without
torchrun there is one process, and nothing here costs anything.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
https://arxiv.org/abs/2006.15704, section 3.2. As there but for two points: one all-reduce over one flat
buffer instead of buckets during the backward pass, and the rows of a process are a slice of the step's rows,
so that their order does not depend on the number of processes.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TIMEOUT_SECONDS = 600.0
"""A process that waits longer for another gives up: a validation or a save takes minutes, not ten of them."""
ROLL_CALL_SECONDS = 2.0
"""How long a failed process waits for the others to say that they live; they notice within milliseconds."""

POLL_SECONDS = 0.02
"""Between two looks at the common store; each takes less than a millisecond of processor time."""


class ProcessError(ConnectionError):
    """Another process ended or hangs; the message names both."""


class Processes:
    """This process among all that train one model; every method is called by all of them, in one order."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        local_rank: int = 0,
        local_world_size: int = 1,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Join the others; one process joins nobody.

        Args:
            rank: This process's number, 0 .. world_size - 1; number 0 writes files and prints.
            world_size: Number of processes on all machines.
            local_rank: This process's number on its machine: which GPU is its own.
            local_world_size: Processes on this machine: they share its cores.
            timeout_seconds: How long one waits for another before it gives up.

        Raises:
            ProcessError: The others did not come in time.
        """
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self.timeout_seconds = timeout_seconds
        self._store: Any = None
        self._turns = 0
        if world_size > 1:
            with self._naming("joining"):
                self._join()

    @staticmethod
    def from_environment(timeout_seconds: float = TIMEOUT_SECONDS) -> "Processes":
        """Read what torchrun sets; without it this is the only process.

        Raises:
            ValueError: The environment names several processes but not which of them this is.
            ProcessError: The others did not come in time.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return Processes()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = os.environ
        missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in found]
        wrong = [f"{name}={found[name]}" for name in names if name in found and not found[name].isdigit()]
        if missing or wrong:
            raise ValueError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment asks for several processes, but "
                f"{', '.join([*wrong, *(f'{name} is missing' for name in missing)])}; start them with "
                "torchrun --nproc-per-node N -m scratchlm ..., or unset WORLD_SIZE."
            )
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
        return Processes(
            rank,
            world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            timeout_seconds=timeout_seconds,
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def rows(self, rows_per_step: int) -> range:
        """The rows of each step that this process computes. Example: rank 1 of 2, 8 rows -> range(4, 8).

        Raises:
            ValueError: The rows cannot be shared out evenly.
        """
        if rows_per_step % self.world_size:
            raise ValueError(
                f"train.batch_tokens: a step of {rows_per_step} rows cannot be shared evenly by "
                f"{self.world_size} processes; choose a batch of a multiple of {self.world_size} rows, or a "
                f"number of processes that divides {rows_per_step}."
            )
        share = rows_per_step // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    def average_gradients_(self, parameters: "Iterable[torch.Tensor]") -> None:
        """Replace every gradient by its mean over the processes, with one all-reduce over all of them.

        Args:
            parameters: The same on all processes, in the same order. One that has a gradient on some
                processes only counts as zero on the others; one without any keeps none.

        Raises:
            ProcessError: Another process ended or hangs.
        """
        if self.world_size == 1:
            return
        import torch

        places = list(parameters)
        with torch.no_grad():
            grads = [torch.zeros_like(place) if place.grad is None else place.grad for place in places]
            present = torch.tensor([float(place.grad is not None) for place in places])
            flat = torch.cat([*(grad.reshape(-1) for grad in grads), present.to(grads[0].device)])
            self._reduce(flat, "SUM", "averaging gradients")
            size = flat.numel() - len(places)
            means = flat[:size].div_(self.world_size).split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [mean.view_as(grad) for mean, grad in zip(means, grads, strict=True)])
            missing = [index for index, place in enumerate(places) if place.grad is None]
            for index in missing:  # seldom: looking at a number makes the CPU wait for a GPU
                if flat[size + index] > 0:
                    places[index].grad = grads[index]

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return the sum of `tensor` over the processes; `tensor` itself stays as it is.

        Raises:
            ProcessError: Another process ended or hangs.
        """
        total = tensor.detach().clone()
        if self.world_size > 1:
            self._reduce(total, "SUM", "adding up")
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on at least one process: so all stop, or skip a step, together.

        Raises:
            ProcessError: Another process ended or hangs.
        """
        if self.world_size == 1:
            return flag
        import torch

        found = torch.tensor([flag], dtype=torch.uint8)
        self._reduce(found, "MAX", "agreeing")
        return bool(found)

    def from_first(self, value: Any) -> Any:
        """Return process 0's `value` on all processes, as JSON carries it: its choices are everyone's.

        Raises:
            ProcessError: Another process ended or hangs.
        """
        if self.world_size == 1:
            return value
        import torch
        from torch import distributed

        text = json.dumps(value).encode() if self.first else b""
        size = self.sum(torch.tensor([len(text)]))
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        with self._naming("handing on process 0's choice"):
            distributed.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            ProcessError: Another process ended or hangs.
        """
        self.any(False)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let process 0 do what is inside, then all others, who find it done.

        They wait for hours if need be, such as for the tokenizer and the shards of a large corpus: only the
        end of process 0 ends their waiting.

        Raises:
            ProcessError: Process 0 ended without having done it.
        """
        self._turns += 1
        turn = f"turn/{self._turns}"
        if not self.first:
            with self._naming("waiting for process 0"):
                while not self._store.check([turn]):
                    time.sleep(POLL_SECONDS)
        yield
        if self.first and self._store is not None:
            self._store.set(turn, "done")

    def close(self) -> None:
        """Leave the others; what comes after is this process's own business."""
        if self._store is not None:
            from torch import distributed

            self._store = None
            distributed.destroy_process_group()

    def _join(self) -> None:
        import torch
        from torch import distributed

        if self.local_world_size == self.world_size:
            # all on this machine: nothing has to be reachable from outside, or found by its host name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        limit = timedelta(seconds=self.timeout_seconds)
        store, _, _ = next(distributed.rendezvous("env://", self.rank, self.world_size, timeout=limit))
        distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.world_size, timeout=limit
        )
        self._store = distributed.PrefixStore("scratchlm", store)

    def _reduce(self, tensor: "torch.Tensor", operation: str, doing: str) -> None:
        from torch import distributed

        with self._naming(doing):
            distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))

    @contextlib.contextmanager
    def _naming(self, doing: str) -> Iterator[None]:
        """Say who failed, at what, and who is missing, where the library says "connection closed by peer"."""
        started = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            seconds = time.monotonic() - started
            raise ProcessError(
                f"process {self.rank} of {self.world_size} failed at {doing} after {seconds:.1f} s "
                f"({' '.join(str(error).split())[:160]}); {self._missing()}. Waiting is limited to "
                f"{self.timeout_seconds:g} s. The first message of another process says more; go on from "
                "the last checkpoint with --resume."
            ) from None

    def _missing(self) -> str:
        """Call the roll: who failed as well and lives says so; who says nothing is missing."""
        if self._store is None:
            return "not all processes came"
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        try:
            self._store.set(f"lives/{self.rank}", "yes")
            while others and time.monotonic() < deadline:
                others = [rank for rank in others if not self._store.check([f"lives/{rank}"])]
                time.sleep(POLL_SECONDS)
        except RuntimeError:
            return "process 0 or torchrun is gone"
        return f"no answer from process {', '.join(map(str, others))}" if others else "all processes answer"


def _loopback() -> str:
    """The name of this machine's loopback interface: lo on Linux, lo0 on macOS."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == "127.0.0.1" for entry in addresses):
            return name
    return "lo"
