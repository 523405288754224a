"""Real processes that train: a command line goes in, an exit code and a run folder come out.

A process is forked from one that has imported the library and done nothing else (multiprocessing's
forkserver), which saves 4 of its 5 seconds of processor time; `fresh=True` starts `python -m scratchlm`
instead, and writes the report too. Each runs on one core, so that it computes with one thread.

The runs' model is the plug-in observed_model.py: it writes down what it reads and does harm at a chosen
forward pass.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scratchlm
from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.train.metrics import JsonLines

PLUGIN = Path(__file__).with_name("observed_model.py")

RECIPE = """
name = "tiny"
seed = 3
[corpus]
name = "stories"
num_train = 2
num_valid = 2
seed = 1
[tokenizer]
name = "chars"
[model]
name = "observed"
context_length = 32
d_model = 16
num_layers = 1
num_heads = 2
dropout = 0.1
[batches]
name = "documents"
[optimizer]
name = "adamw"
lr = 5e-3
[train]
steps = 12
batch_tokens = 256
micro_batch_tokens = 64
eval_every = 5
eval_tokens = 256
sample_every = 1000
save_every = 4
keep_checkpoints = 100
log_every = 1
compile = false
precision = "float32"
device = "cpu"
[sampling]
max_new_tokens = 2
"""
ROWS = 8
"""Rows of a step (256 / 32), in FORWARDS micro-batches."""
FORWARDS = 4

SECONDS = 120
"""A process that takes longer hangs; on an idle machine each takes about two."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "torch._dynamo",  # what every optimizer of torch imports
        "scratchlm.train.run",
        "scratchlm.cli.run",
        "scratchlm.study.report",
        *(
            f"scratchlm.{family}.{path.stem}"  # else found at the first look for a part by its name
            for family in ("data", "tokenizer", "model", "optim")
            for path in sorted(Path(scratchlm.__file__).with_name(family).glob("[a-z]*.py"))
        ),
    ]
)


@dataclass
class Ended:
    """A process that is over."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 2, self
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


class Child:
    """A process that runs."""

    def __init__(self, process: Any, streams: Path) -> None:
        self.process, self.streams = process, streams

    def send(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.process.pid, number)

    def wait_for(self, path: Path) -> None:
        """Wait until a file exists."""
        deadline = time.monotonic() + SECONDS
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not come"
            assert self.alive(), self.end()
            time.sleep(0.01)

    def alive(self) -> bool:
        """Whether the process has not ended."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll() is None
        return self.process.is_alive()

    def end(self) -> Ended:
        """Wait for the end."""
        if isinstance(self.process, subprocess.Popen):
            code = self.process.wait(SECONDS)
        else:
            self.process.join(SECONDS)
            code = self.process.exitcode
        assert code is not None, f"the process hangs: {self._read('out')} {self._read('err')}"
        return Ended(code, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        return self.streams.joinpath(name).read_text(encoding="utf-8", errors="replace")


class Place:
    """A folder for the runs of a test; ends what it started."""

    def __init__(self, path: Path) -> None:
        self.path, self.children = path, []
        path.joinpath("tiny.toml").write_text(RECIPE, encoding="utf-8")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(
        self,
        name: str,
        *settings: str,
        harm: str = "",
        limit: int = 0,
        plain_user: bool = False,
        fresh: bool = False,
        all_cores: bool = False,
        processes: int = 1,
    ) -> Child:
        """Begin to train in the folder `name`; settings are key=value words and options.

        Args:
            name: The run folder; what each of its commands observed lies beside it in NAME.observed/NUMBER/.
            *settings: Words after the recipe, such as "--resume".
            harm: What the model shall do and when; see observed_model.py.
            limit: The most bytes a file may have (RLIMIT_FSIZE); 0 for no limit.
            plain_user: Root obeys the rights of files too; only a forked one can.
            fresh: Start Python anew instead of forking.
            all_cores: Use all cores; only a fresh one can.
            processes: How many, under torchrun; more than one are always fresh.
        """
        folder = self.path / name
        observed = self.path / f"{name}.observed"
        observed = observed / str(len(list(observed.glob("*"))))
        observed.mkdir(parents=True)
        streams = self.path / f"{name}.{len(self.children)}"
        streams.mkdir()
        words = ["train", str(self.path / "tiny.toml"), *settings, "-o", str(folder), "--plugin", str(PLUGIN)]
        variables = {"OBSERVED": str(observed), "HARM": harm, "NO_COLOR": "1", "COLUMNS": "1000"}
        if processes > 1 or fresh:
            process: Any = _popen(words, variables, streams, processes, all_cores=all_cores)
        else:
            process = _forks.Process(
                target=_command, args=(words, variables, str(streams), limit, plain_user)
            )
            process.start()
        self.children.append(Child(process, streams))
        return self.children[-1]

    def train(self, name: str, *settings: str, **how: Any) -> Ended:
        """Train to the end."""
        return self.start(name, *settings, **how).end()

    def done(self, name: str, *settings: str, **how: Any) -> Path:
        """Train to the end, which is a good one, and return the run folder."""
        ended = self.train(name, *settings, **how)
        assert ended.code == 0, ended
        return self.path / name

    def observed(self, name: str, command: int = 0) -> Path:
        """Where the model of the run's first, second, ... command writes what it sees."""
        return self.path / f"{name}.observed" / str(command)

    def close(self) -> None:
        """Kill what still runs."""
        for child in self.children:
            if child.alive():
                child.send(signal.SIGKILL)
            child.end()


def _command(words: list[str], variables: dict[str, str], streams: str, limit: int, plain_user: bool) -> None:
    """What a forked process does."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.update(variables)
    _use_one_core()
    if limit:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if plain_user and os.getuid() == 0:
        _give_up_capabilities()
    from scratchlm.cli import main
    from scratchlm.study import report

    report.write_report = lambda folder: folder  # drawing takes longer than these runs
    sys.exit(main(words))


def _give_up_capabilities() -> None:
    """Let root, who may write into folders that nobody may write into, be an owner like any other."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)  # version 3 of the call, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _popen(
    words: list[str], variables: dict[str, str], streams: Path, processes: int, *, all_cores: bool
) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if processes > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command += [
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--master-port",
            str(port),
            "-m",
        ]
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with streams.joinpath("out").open("w") as out, streams.joinpath("err").open("w") as err:
        return subprocess.Popen(
            [*command, "scratchlm", *words],
            env=own | variables | ({} if all_cores else {"OMP_NUM_THREADS": "1"}),
            stdout=out,
            stderr=err,
            preexec_fn=None if all_cores or processes > 1 else _use_one_core,
        )


def _use_one_core() -> None:
    """One of the cores that this process may use: another one for each of pytest's workers."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """The rows of metrics.jsonl that a run's settings decide, without what its clock decides."""
    kept = ("kind", "step", "tokens", "loss", "lr", "grad_norm", "bits_per_byte")
    rows = JsonLines(folder / "metrics.jsonl").rows()
    return [tuple(row.get(key) for key in kept) for row in rows if row["kind"] in ("train", "valid")]


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of one kind."""
    return [row for row in JsonLines(folder / "metrics.jsonl").rows() if row["kind"] == kind]


def losses(folder: Path) -> list[float]:
    """The training loss of every step."""
    return [row["loss"] for row in rows_of(folder, "train")]


def checkpoint(folder: Path, step: int | None = None) -> Any:
    """The checkpoint of a step, or the newest."""
    path = latest(folder / "checkpoints") if step is None else folder / "checkpoints" / f"step-{step:07d}"
    assert path is not None, f"{folder} holds no checkpoint"
    return load_checkpoint(path)


def assert_equal_bits(left: Any, right: Any) -> None:
    """Two checkpoints hold the same step, parameters, moments and step counts."""
    assert left.step == right.step
    for group in ("model", "optimizer"):
        assert left.tensors[group].keys() == right.tensors[group].keys()
        for name, tensor in left.tensors[group].items():
            assert torch.equal(tensor, right.tensors[group][name]), f"{group}: {name}"
    assert left.state["optimizer"] == right.state["optimizer"]
    assert left.state["best_loss"] == right.state["best_loss"]


def sample_order(place: Place, name: str, starts: tuple[int, ...] = (0,)) -> list[list[str]]:
    """The rows of each step in order, one hash a row; what an abandoned step had read is left out.

    Args:
        place: Where the run is.
        name: The run.
        starts: The step at which each of its commands began: (0, 6) was stopped and resumed once. A step that
            was computed twice counts as the second time.
    """
    order: list[list[str]] = []
    for command, start in enumerate(starts):
        files = sorted(place.observed(name, command).glob("rank-*.jsonl"))
        if not files:
            continue  # stopped before its first step
        share = ROWS // len(files)
        parts = [[row for seen in JsonLines(file).rows() for row in seen["rows"]] for file in files]
        for index in range(min(len(rows) for rows in parts) // share):
            step = [row for rows in parts for row in rows[index * share : (index + 1) * share]]
            order[start + index :] = [step]
    return order


def assert_same_run(place: Place, name: str, reference: Place, *, starts: tuple[int, ...]) -> None:
    """A run equals the run "whole" of another place: weights, optimizer, loss rows, sample order."""
    assert_equal_bits(checkpoint(place / name), checkpoint(reference / "whole"))
    assert figures(place / name) == figures(reference / "whole")
    assert sample_order(place, name, starts) == sample_order(reference, "whole")
