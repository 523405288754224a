"""Real processes that save together, go on in other numbers, and are killed: what `latest` names is whole."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("saving_processes.py")
MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run_modes(tmp_path_factory):
    """Runs modes of the script at the same time, in memory where there is some."""
    made = []

    def run(*modes):
        words = []
        for mode in modes:
            place = MEMORY if MEMORY.is_dir() else tmp_path_factory.getbasetemp()
            made.append(tempfile.mkdtemp(prefix="scratchlm-test-", dir=place))
            words.append(f"{mode}={made[-1]}")
        done = subprocess.run(
            [sys.executable, SCRIPT, *words],
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {found.pop("mode"): found for found in map(json.loads, done.stdout.splitlines())}

    yield run
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(run_modes):
    return run_modes("another-number", "kill-one", "kill-at-any-line")


def test_four_processes_go_on_as_two_one_and_three_with_equal_weights(found):
    assert found["another-number"]["files"] == [4, 2, 1, 3]


def test_a_killed_process_is_named_by_all_others_in_bounded_time(found):
    assert found["kill-one"]["named"] == [[True, True]] * 4
    assert found["kill-one"]["waited"] < 1.5 + 10, "patience, and a busy machine"


def test_kills_while_others_save_cost_no_finished_checkpoint(found):
    assert found["kill-one"]["saved"] > 3
    assert found["kill-one"]["in_the_middle"] >= 2, "the kills missed the saves: nothing was tested"
    assert [name for name in found["kill-one"]["names"] if not re.fullmatch(r"step-\d{7}", name)] == []


def test_a_kill_at_any_line_of_any_process_leaves_the_old_or_the_new_one(found):
    for victim in ("0", "1"):
        seen = found["kill-at-any-line"][victim]
        assert seen["lines"] > 300
        assert seen["after_kill"] == seen["after_opening"] == [2, 3]


@pytest.mark.slow
def test_a_kill_at_many_lines_of_any_process(run_modes):
    found = run_modes("kill-at-many-lines")["kill-at-many-lines"]
    for victim in ("0", "1"):
        seen = found[victim]
        assert seen["after_kill"] == seen["after_opening"] == [2, 3]
