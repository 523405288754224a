"""Processes: torchrun's environment comes in, one object comes out through which they agree on numbers.

    torchrun --nproc-per-node 2 -m scratchlm train demo      RANK=0 and 1, WORLD_SIZE=2

    process 0: rows 0 1 2 3 of a step --+
                                        +-- any, sum, from_first, first_alone --> the same answer on both
    process 1: rows 4 5 6 7           --+

Every process computes an equal share of each step's rows: a slice of them, so that their order does not
depend on the number of processes. How gradients become everyone's mean is the business of an engine
(engine.py); here is what else has to be agreed on, and errors that say who is missing. Without torchrun there
is one process, and nothing here costs anything.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
https://arxiv.org/abs/2006.15704, section 3.2; rows as slices are ours.
"""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scratchlm.distributed.meeting import STORE_SECONDS, FailedError, Meeting, MissingError
from scratchlm.distributed.store import StoreError, within

if TYPE_CHECKING:
    import torch

TIMEOUT_SECONDS = 600.0
"""A process that waits longer for another gives up: a validation or a save takes minutes, not ten of them."""
ROLL_CALL_SECONDS = 2.0
"""How long a failed process waits for the others to say that they live; they notice within milliseconds."""
MOST_CHARACTERS = 600
"""Of another process's words in a message: some eight settings."""
MOST_NUMBERS = 12
"""Of processes in a message: those nearest to the number that does not work."""
OF_THE_NETWORK = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Timed out waiting")
"""In errors of the libraries that send; all of them are plain RuntimeErrors on some path."""


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
        self.store_lost = False  # becomes true when the common store, in the first launcher, is silent
        self._meeting: Meeting | None = None
        self._turns = 0
        if world_size > 1:
            with self.naming("joining"):
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
        numbers = (*names, "MASTER_PORT")
        wrong = [f"{name}={found[name]}" for name in numbers if name in found and not found[name].isdigit()]
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

    @property
    def store(self) -> Any:
        """The key-value store of this start (torch.distributed.Store); None where there is one process.

        Its calls have no limit: use it in threads of your own (`scratchlm.distributed.store.within`).
        """
        return self._meeting.store.raw if self._meeting is not None else None

    def rows(self, rows_per_step: int) -> range:
        """The rows of each step that this process computes. Example: rank 1 of 2, 8 rows -> range(4, 8).

        Raises:
            ValueError: The rows cannot be shared out evenly.
        """
        check_rows(rows_per_step, self.world_size)
        share = rows_per_step // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

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
            ProcessError: Process 0 ended or hangs.
        """
        if self._meeting is None:
            return value
        turn = self._turn("choice")
        with self.naming("waiting for process 0's choice"):
            if self.first:
                self._meeting.say(turn, json.dumps(value))
            return json.loads(self._meeting.hear(turn))

    def agree(self, what: str, found: Mapping[str, Any]) -> None:
        """See that all processes have the same; otherwise all of them refuse, and say who has what.

        Args:
            what: What it is ("configuration"), for the message.
            found: Name -> what JSON can carry, as this process has it.

        Raises:
            ValueError: A process has something else than process 0.
            ProcessError: Another process ended or hangs.
        """
        if self._meeting is None:
            return
        turn = self._turn("agree")
        with self.naming(f"comparing the {what}"):
            if self.first:
                self._meeting.say(turn, json.dumps(found))
            first = json.loads(self._meeting.hear(turn))
            self._meeting.say(f"{turn}/differs", differences(first, json.loads(json.dumps(found))))
            verdict = ""
            if self.first:
                said = {rank: self._meeting.hear(f"{turn}/differs", rank) for rank in range(self.world_size)}
                verdict = _verdict(what, {rank: text for rank, text in said.items() if text})
                self._meeting.say(f"{turn}/verdict", verdict)
            verdict = self._meeting.hear(f"{turn}/verdict")
            if verdict:
                self._meeting.say(f"{turn}/heard", "yes")
                if self.first:  # it may be the keeper of the store, which ends with it
                    self._meeting.silent(f"{turn}/heard", seconds=ROLL_CALL_SECONDS)
        if verdict:
            raise ValueError(verdict)

    def telling(self, *, quiet: type[Exception]) -> contextlib.ExitStack:
        """A context that lets the others know at once why this process failed in it, if it does.

        Args:
            quiet: An exception that is no failure.
        """

        def tell(
            kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
        ) -> None:
            # another one's failure is told by that one, and a wish to stop is none
            ours = not isinstance(error, ProcessError | KeyboardInterrupt | SystemExit | quiet)
            if error is not None and ours and self._meeting is not None:
                with contextlib.suppress(RuntimeError):  # the store may be gone too
                    self._meeting.fail(" ".join(str(error).split()) or type(error).__name__)

        stack = contextlib.ExitStack()
        stack.push(tell)
        return stack

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
        turn = self._turn("turn")
        if not self.first and self._meeting is not None:
            with self.naming("waiting for process 0"):
                self._meeting.hear(turn, seconds=math.inf)
        yield
        if self.first and self._meeting is not None:
            with self.naming("letting the others go on"):
                self._meeting.say(turn, "done")

    def close(self) -> None:
        """Leave the others; what comes after is this process's own business."""
        if self._meeting is not None:
            from torch import distributed

            self._meeting = None
            distributed.destroy_process_group()

    def _join(self) -> None:
        import torch
        from torch import distributed

        if self.local_world_size == self.world_size:
            # all on this machine: nothing has to be reachable from outside, or found by its host name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        backend = "gloo"
        if torch.cuda.is_available() and torch.cuda.device_count() >= self.local_world_size:
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        meeting = Meeting(self.rank, self.world_size, timeout_seconds=self.timeout_seconds)

        def join() -> None:
            if "nccl" in backend:
                torch.cuda.set_device(self.local_rank)  # each thread has a device of its own
            distributed.init_process_group(
                backend,
                store=distributed.PrefixStore("group", meeting.store.raw),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=self.timeout_seconds),
            )

        try:
            # the library's own limits come first: it connects, then waits for all
            within(2 * self.timeout_seconds + STORE_SECONDS[1], join)
        except TimeoutError as error:
            raise StoreError(f"torch's process group was not made: {error}") from None
        self._meeting = meeting

    def _turn(self, name: str) -> str:
        """A name that was not used before; all processes count alike."""
        self._turns += 1
        return f"{name}/{self._turns}"

    def _reduce(self, tensor: "torch.Tensor", operation: str, doing: str) -> None:
        from torch import distributed

        with self.naming(doing):
            distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))

    @contextlib.contextmanager
    def naming(self, doing: str, *, among_others: bool = False) -> Iterator[None]:
        """Say who failed, at what, and who is missing, where the library says "connection closed by peer".

        Args:
            doing: What is done inside.
            among_others: Whether errors of another kind may come out of it, which stay as they are.
        """
        started = time.monotonic()
        try:
            yield
        except ProcessError:
            raise
        except (RuntimeError, MissingError) as error:
            if among_others and not OF_THE_NETWORK.search(str(error)):
                raise
            seconds = time.monotonic() - started
            if isinstance(error, FailedError):
                found = str(error)[:MOST_CHARACTERS]
            elif isinstance(error, MissingError):
                found = f"{error} (wait_seconds is the limit of waiting)"
            else:
                text = re.sub(r"^\[[^]]*\] *", "", " ".join(str(error).split()))  # a place in gloo's sources
                found = f"{text[:160]}; {self._missing()}"
            raise ProcessError(
                f"process {self.rank} of {self.world_size} failed at {doing} after {seconds:.1f} s: {found}. "
                f"Waiting is limited to {self.timeout_seconds:g} s. The first message of another "
                "process says more; go on with --resume, from the last checkpoint if there is one."
            ) from None

    def _missing(self) -> str:
        """Call the roll: who failed as well and lives says so; who says nothing is missing."""
        if self._meeting is None:
            return "not all processes came"
        try:
            if self._meeting.failure():
                return self._meeting.failure()[:MOST_CHARACTERS]
            self._meeting.say("lives", "yes")
            missing = self._meeting.silent("lives", seconds=ROLL_CALL_SECONDS)
            return str(MissingError(missing)) if missing else "all processes answer"
        except RuntimeError:
            self.store_lost = True
            return "process 0 or its launcher is gone, or cannot be reached"


def check_rows(rows_per_step: int, world_size: int) -> None:
    """See that a step's rows can be shared out.

    Raises:
        ValueError: Not evenly; the message has numbers that work.
    """
    if rows_per_step % world_size == 0:
        return
    divisors = [n for n in range(1, rows_per_step + 1) if rows_per_step % n == 0]
    nearest = sorted(sorted(divisors, key=lambda n: abs(n - world_size))[:MOST_NUMBERS])
    raise ValueError(
        f"train.batch_tokens: a step of {rows_per_step} rows cannot be shared evenly by {world_size} "
        f"processes; choose a batch of a multiple of {world_size} rows, or one of "
        f"{', '.join(map(str, nearest))} processes."
    )


def differences(first: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What `own` has otherwise than `first`. Example: {"a": 1}, {"a": 2} -> "a=2 instead of a=1"."""
    return ", ".join(
        f"{key}={own[key]} instead of {first[key]}"
        if key in own and key in first
        else (f"no {key} instead of {first[key]}" if key in first else f"{key}={own[key]} instead of none")
        for key in sorted(first.keys() | own.keys())
        if (key in first) != (key in own) or first[key] != own[key]
    )


def _verdict(what: str, differs: Mapping[int, str]) -> str:
    """The message for all; empty where nobody differs."""
    if not differs:
        return ""
    rank, text = next(iter(differs.items()))
    same = [str(other) for other, said in differs.items() if said == text]
    who = f"process {rank} has" if len(same) == 1 else f"processes {', '.join(same[:8])} have"
    more = "" if len(same) == len(differs) else f"; {len(differs) - len(same)} more differ otherwise"
    return (
        f"{who} another {what} than process 0: {text[:MOST_CHARACTERS]}{more}. Start all processes with the "
        "same words, files and versions."
    )


def _loopback() -> str:
    """The name of this machine's loopback interface: lo on Linux, lo0 on macOS."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == "127.0.0.1" for entry in addresses):
            return name
    return "lo"
