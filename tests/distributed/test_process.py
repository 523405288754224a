"""Two real processes over gloo on the loopback interface: they agree, and a lost one is named."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from together import TORCHRUN, end, environment, free_port, run, start

from scratchlm.distributed import Processes
from scratchlm.distributed.process import check_rows

EVERYTHING = """
import hashlib, json, sys, time
from pathlib import Path
import torch
from scratchlm.distributed import Processes
from scratchlm.distributed.buckets import average_gradients

processes = Processes.from_environment(timeout_seconds=60)
torch.manual_seed(processes.rank)
shapes = [(3, 5), (7,), (), (64, 129)]
parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
for parameter in parameters:
    parameter.grad = torch.randn(parameter.shape)
own = [parameter.grad.tolist() for parameter in parameters]
average_gradients(parameters)
averaged = [parameter.grad.tolist() for parameter in parameters]
digest = hashlib.sha256(b"".join(parameter.grad.numpy().tobytes() for parameter in parameters)).hexdigest()

used, unused, mine = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
used.grad = torch.full((2,), float("nan") if processes.rank == 1 else 1.0)
if processes.rank == 1:
    mine.grad = torch.full((2,), 8.0)
average_gradients([used, unused, mine])

made = Path(sys.argv[1])
with processes.first_alone():
    found = made.exists()
    if processes.first:
        time.sleep(0.3)
        made.touch()

counts = torch.tensor([1.5, processes.rank], dtype=torch.float64)
total = processes.sum(counts)

processes.agree("version", {"torch": "2"})
try:
    mine_has = {"seed": processes.rank, "steps": 4} | ({"new": 1} if processes.rank else {})
    processes.agree("configuration", mine_has)
    refused = ""
except ValueError as error:
    refused = str(error)

result = {
    "refused": refused,
    "rank": processes.rank, "world_size": processes.world_size, "first": processes.first,
    "rows": list(processes.rows(6)), "own": own, "averaged": averaged, "digest": digest,
    "nan_everywhere": bool(used.grad.isnan().all()), "unused": unused.grad is None,
    "mine": mine.grad.tolist(),
    "sum": total.tolist(), "sum_left_alone": counts.tolist(),
    "any": [processes.any(False), processes.any(processes.rank == 1), processes.any(True)],
    "chosen": processes.from_first({"micro_rows": 4, "path": "a"} if processes.first else None),
    "found": found,
    "nothing": processes.from_first(None),
}
processes.barrier()
processes.close()
print(json.dumps(result))
"""

FAILING_FIRST = """
import sys
from scratchlm.distributed import Processes
from scratchlm.distributed.process import check_rows

processes = Processes.from_environment(timeout_seconds=60)
processes.barrier()
with processes.first_alone():
    if processes.first:
        sys.exit("no such corpus")
    print("entered")
"""

DYING = """
import os, signal, sys
from scratchlm.distributed import Processes
from scratchlm.distributed.process import check_rows

processes = Processes.from_environment(timeout_seconds=60)
processes.barrier()
if processes.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    processes.any(True)
except ConnectionError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

HANGING = """
import sys, time
from scratchlm.distributed import Processes
from scratchlm.distributed.process import check_rows

processes = Processes.from_environment(timeout_seconds=1)
processes.barrier()
if processes.rank == 1:
    print("waiting", flush=True)
    time.sleep(60)
try:
    processes.barrier()
except ConnectionError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(EVERYTHING, str(tmp_path_factory.mktemp("two") / "made"))


@pytest.fixture
def alone(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


pytestmark = pytest.mark.distributed


def test_each_process_knows_its_place(two):
    assert [result["rank"] for result in two] == [0, 1]
    assert [result["world_size"] for result in two] == [2, 2]
    assert [result["first"] for result in two] == [True, False]


def test_the_rows_of_a_step_are_cut_into_slices_in_order(two):
    assert [result["rows"] for result in two] == [[0, 1, 2], [3, 4, 5]]


def test_the_averaged_gradient_is_the_mean_and_the_same_bits_everywhere(two):
    first, second = two
    assert first["own"] != second["own"]
    for left, right, mean in zip(first["own"], second["own"], first["averaged"], strict=True):
        expected = (torch.tensor(left) + torch.tensor(right)) / 2
        assert torch.equal(torch.tensor(mean), expected)  # halving is exact, adding two numbers has one order
    assert first["digest"] == second["digest"]


def test_a_gradient_that_is_no_number_on_one_process_is_none_on_any(two):
    assert [result["nan_everywhere"] for result in two] == [True, True]


def test_a_missing_gradient_counts_as_zero_and_one_missing_everywhere_stays_missing(two):
    assert [result["mine"] for result in two] == [[4.0, 4.0], [4.0, 4.0]]
    assert [result["unused"] for result in two] == [True, True]


def test_sums_flags_and_choices_are_the_same_everywhere(two):
    for rank, result in enumerate(two):
        assert result["sum"] == [3.0, 1.0]
        assert result["sum_left_alone"] == [1.5, rank]
        assert result["any"] == [False, True, True]
        assert result["chosen"] == {"micro_rows": 4, "path": "a"}
        assert result["nothing"] is None


def test_a_process_with_another_configuration_is_refused_everywhere_with_its_keys(two):
    expected = (
        "process 1 has another configuration than process 0: new=1 instead of none, seed=1 instead of 0. "
        "Start all processes with the same words, files and versions."
    )
    assert [result["refused"] for result in two] == [expected, expected]


def test_the_first_process_goes_alone_and_the_others_find_what_it_made(two):
    assert [result["found"] for result in two] == [False, True]


def test_the_others_do_not_go_on_when_the_first_failed_alone():
    children = start(FAILING_FIRST)
    try:
        out, message = children[1].communicate(timeout=60)
        assert "entered" not in out
        assert "process 1 of 2 failed at waiting for process 0" in message
    finally:
        end(children)


def test_a_killed_process_is_named_at_once():
    children = start(DYING)
    started = time.monotonic()
    try:
        _, message = children[0].communicate(timeout=60)
        assert time.monotonic() - started < 45, "waited for the limit instead of noticing"
        assert children[0].returncode == 1
        assert message.startswith("ProcessError: process 0 of 2 failed at agreeing after ")
        assert "no answer from process 1. Waiting is limited to 60 s." in message
        assert children[1].wait(timeout=60) == -signal.SIGKILL
    finally:
        end(children)


def test_a_process_that_hangs_is_named_after_the_limit():
    children = start(HANGING)
    try:
        _, message = children[0].communicate(timeout=60)
        assert children[0].returncode == 1
        assert message.startswith("ProcessError: process 0 of 2 failed at agreeing after 1.")
        assert "no answer from process 1. Waiting is limited to 1 s." in message
        assert children[1].poll() is None
    finally:
        end(children)


def test_without_torchrun_there_is_one_process_and_nothing_changes(alone):
    processes = Processes.from_environment()
    assert (processes.rank, processes.world_size, processes.first) == (0, 1, True)
    assert processes.rows(5) == range(5)
    tensor = torch.tensor([3.0])
    assert processes.sum(tensor) is not tensor
    assert processes.sum(tensor).tolist() == [3.0]
    assert (processes.any(False), processes.any(True), processes.from_first("a")) == (False, True, "a")
    processes.barrier()
    with processes.first_alone():
        pass
    processes.close()
    assert not torch.distributed.is_initialized()


def test_one_process_under_torchrun_joins_nobody(alone):
    for name, value in environment(0, 1, 1).items():
        alone.setenv(name, value)
    assert Processes.from_environment().world_size == 1
    assert not torch.distributed.is_initialized()


def test_asking_for_processes_costs_no_import_of_torch():
    code = (
        "import sys; from scratchlm.distributed import Processes; "
        "Processes.from_environment().barrier(); assert 'torch' not in sys.modules"
    )
    own = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    subprocess.run([sys.executable, "-c", code], check=True, env=own)


def test_half_an_environment_is_refused(alone):
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("RANK", "one")
    with pytest.raises(ValueError, match=r"RANK=one, LOCAL_RANK is missing.*torchrun --nproc-per-node N"):
        Processes.from_environment()


def test_who_does_not_come_is_named_with_the_setting_that_says_how_long(alone):
    for name, value in environment(0, 3, free_port()).items():
        alone.setenv(name, value)
    with pytest.raises(
        ConnectionError,
        match=r"^process 0 of 3 failed at joining after 0\.\d s: no answer from processes 1, 2 \(wait_",
    ):
        Processes.from_environment(timeout_seconds=0.5)
    assert not torch.distributed.is_initialized()


def test_of_many_numbers_of_processes_the_nearest_are_named():
    with pytest.raises(ValueError, match=r"one of 16, 20, 24, 30, 32, 40, 48, 60, 80, 96, 120, 160 proc"):
        check_rows(480, 100)


def test_rows_that_cannot_be_shared_evenly_are_refused():
    processes = Processes()
    processes.world_size = 3
    with pytest.raises(ValueError, match=r"8 rows cannot be shared evenly by 3 .* or one of 1, 2, 4, 8 proc"):
        processes.rows(8)
