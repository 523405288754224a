"""64 clients for a while, one in eight of which leaves in the middle: no answer is wrong or lost."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_serve.py"


@pytest.mark.slow
def test_no_answer_to_64_clients_is_wrong_or_lost():
    words = [sys.executable, str(BENCHMARK), "--clients", "64", "--seconds", "15", "--dry"]
    found = subprocess.run(words, text=True, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    figures = dict(line.split()[:2] for line in found.stdout.splitlines() if len(line.split()) == 2)
    assert (figures["wrong"], figures["lost"]) == ("0", "0")
    assert int(figures["answers"]) >= 64
    assert int(figures["left"]) >= 1
    under_way = found.stdout.rpartition("still under way afterwards:")[2].split(",")
    assert {float(number) for number in under_way} == {0.0}, found.stdout
