"""Doctor names the implementation of every operation, with the reason."""

import pytest
import torch

from scratchlm import runtime
from scratchlm.kernels import KERNELS
from scratchlm.kernels.gpu import support


def line(text, what):
    return next(row for row in text.splitlines() if row.strip().startswith(what))


def test_without_a_gpu_every_operation_is_plain_and_nothing_is_amiss(cli):
    found = cli("doctor").out
    assert "no NVIDIA GPU that torch can use" in line(found, "our GPU kernels")
    for op in KERNELS:
        assert op in found
        assert "triton" not in line(found, op).split(op)[1].split()[0]
    assert line(found, "attention").split()[1] == "blocks"
    assert "plain tensor operations that skip the future" in line(found, "attention")


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU everybody believes in."""
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_on_a_gpu_our_kernels_run(gpu, monkeypatch):
    pytest.importorskip("triton")
    from scratchlm.cli.doctor import operations

    monkeypatch.setattr(support, "obstacle", lambda device: None)
    found = {finding.what: finding for finding in operations()}
    assert found["our GPU kernels"].found == "yes"
    for op, names in KERNELS.items():
        if "triton" in names:
            assert found[op].found == "triton"
            assert found[op].meaning.startswith("our Triton kernel, on a GPU that runs it")
            assert found[op].good


def test_on_an_old_gpu_the_reason_is_told(gpu, monkeypatch):
    from scratchlm.cli.doctor import operations

    monkeypatch.setattr(support, "obstacle", lambda device: "its compute capability is 7.5.")
    found = {finding.what: finding for finding in operations()}
    assert found["our GPU kernels"].meaning == "its compute capability is 7.5."
    assert not found["our GPU kernels"].good
    assert found["rms_norm"].found == "plain"
    assert not found["rms_norm"].good
