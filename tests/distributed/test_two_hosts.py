"""Two hosts: network namespaces joined by a cable; torchrun meets over it, and the cable is cut once."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratchlm.checkpoint.coordinator import PATIENCE_SECONDS
from scratchlm.cli.processes import GRACE_SECONDS

SETTINGS = ["corpus.num_train=40", "corpus.num_valid=5", "train.batch_tokens=256", "train.save_every=5"]
SETTINGS += ["train.eval_every=100", "train.sample_every=1000", "train.log_every=1", "train.compile=false"]
SETTINGS += ["train.precision=float32", "tokenizer.vocab_size=300", "model.context_length=64"]
SETTINGS += ["model.d_model=16", "model.num_layers=1", "model.num_heads=2", "sampling.max_new_tokens=8"]
WAIT = 6
"""Seconds that a process waits for another."""
SECONDS = 120
"""What hangs longer is ended; on an idle machine a run takes about ten."""
ADDRESSES = ("10.231.0.1", "10.231.0.2")
ROUNDING = 1e-5
"""Two processes add the same gradients in another order."""


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Hosts:
    """Two namespaces with a cable between them."""

    def __init__(self):
        self.names = [f"scratchlm-{os.getpid()}-{number}" for number in (0, 1)]
        self.ends = [f"sl{os.getpid() % 10**8}x{number}" for number in (0, 1)]
        self.children = []

    def build(self):
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", self.ends[0], "netns", first, "type", "veth", "peer", self.ends[1], "netns", second)
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")

    def cable(self, state):
        ip("-n", self.names[0], "link", "set", self.ends[0], state)

    def start(self, folder, *words, meeting):
        """Start torchrun with one process on each host."""
        for host, (name, end, address) in enumerate(zip(self.names, self.ends, ADDRESSES, strict=True)):
            torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nnodes", "2"]
            torchrun += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", meeting]
            torchrun += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--local-addr", address]
            torchrun += ["--rdzv-conf", f"is_host={1 - host}", "-m", "scratchlm", "train", "demo"]
            torchrun += [*SETTINGS, f"wait_seconds={WAIT}", *words, "--folder", str(folder), "--restartable"]
            place = folder.with_name(f"{folder.name}-{meeting}-{host}")
            with place.open("wb") as stream:
                child = subprocess.Popen(
                    ["ip", "netns", "exec", name, *torchrun],
                    env=os.environ | {"GLOO_SOCKET_IFNAME": end, "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                )
            self.children.append((child, place))
        return self.children[-2:]

    def pids(self, host):
        """Numbers of the processes on a host."""
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def end(self):
        """End what still runs on the hosts, by its number."""
        for host in (0, 1):
            for pid in self.pids(host):
                os.kill(pid, 9)
        for child, _ in self.children:
            child.kill()
            child.wait()

    def remove(self):
        self.end()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def hosts():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    made = Hosts()
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system makes no network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


def alone(folder, *words):
    """The same run on this machine, undisturbed."""
    command = [sys.executable, "-m", "scratchlm", "train", "demo", *SETTINGS, *words, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=SECONDS)
    return losses(folder)


def losses(folder):
    """Step -> training loss; of a step that was done again, the last."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["loss"] for row in rows if row.get("kind") == "train"}


def assert_close(found, expected):
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=ROUNDING)


def finish(started):
    for child, place in started:
        assert child.wait(SECONDS) == 0, place.read_text(encoding="utf-8")


@pytest.mark.distributed
def test_two_hosts_train_as_one_process(hosts, tmp_path):
    finish(hosts.start(tmp_path / "two", "train.steps=6", meeting="one"))
    assert_close(losses(tmp_path / "two"), alone(tmp_path / "alone", "train.steps=6"))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_cut_cable_ends_the_run_and_the_same_command_goes_on(hosts, tmp_path):
    folder, words = tmp_path / "two", ["train.steps=150", "train.save_every=5"]
    (near, said), (far, far_said) = hosts.start(folder, *words, meeting="one")
    deadline = time.monotonic() + SECONDS
    while not (folder / "checkpoints" / "step-0000005").is_dir():
        assert near.poll() is None, said.read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hosts.cable("down")
    cut = time.monotonic()
    assert near.wait(SECONDS) != 0
    assert time.monotonic() - cut < WAIT + 30  # the roll call, and torchrun's own leave-taking
    text = said.read_text(encoding="utf-8")
    assert "process 0 of 2 failed at" in text
    assert "no answer from process 1" in text
    assert max(losses(folder)) < 150
    # the process stops by itself; it waits for a save that has begun, too. Then it is the turn of the far
    # torchrun, whose own calls of the store have no limit
    far.wait(2 * WAIT + PATIENCE_SECONDS + 30 + WAIT + GRACE_SECONDS)
    assert "process 1 of 2 failed at" in (text := far_said.read_text(encoding="utf-8"))
    assert "process 0 or its launcher is gone, or cannot be reached" in text
    while hosts.pids(1):
        assert time.monotonic() - cut < 3 * WAIT + PATIENCE_SECONDS + 90
        time.sleep(0.1)
    hosts.cable("up")
    finish(hosts.start(folder, *words, meeting="two"))
    # to the bit: two numbers have the same sum in either order, and rounding would hide a step gone wrong
    assert losses(folder) == alone(tmp_path / "alone", *words, "nproc=2")
