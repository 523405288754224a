"""The summary of a run names what computed it."""

import pytest
import torch

from scratchlm.kernels import KERNELS
from scratchlm.kernels.gpu import support
from scratchlm.train.summary import kernels_used


def test_the_kernels_of_a_run_on_a_cpu():
    used = kernels_used("auto", torch.device("cpu"))
    assert set(used) == set(KERNELS)
    assert used["attention"] == "blocks"
    assert used["rms_norm"] == used["project_heads"] == "plain"


def test_attention_is_named_as_configured():
    assert kernels_used("sdpa", torch.device("cpu"))["attention"] == "sdpa"


def test_the_kernels_of_a_run_on_a_gpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(support, "obstacle", lambda device: None)
    used = kernels_used("auto", torch.device("cuda"))
    assert used["attention"] == used["rms_norm"] == used["project_heads"] == "triton"
