"""Attention's kernels on a GPU: bfloat16 against float64, and what only a device shows."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.attention_reference import attention as reference

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def results(function, tensors, dtype, masks):
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    out = function(*leaves, **masks)
    upstream = torch.sin(torch.arange(out.numel(), device=out.device)).reshape(out.shape).to(dtype)
    return [part.detach().double() for part in (out, *torch.autograd.grad(out, leaves, upstream))]


def packed(device, time, heads, kv_heads, width):
    packed_BTNK = torch.randn(2, time, heads + 2 * kv_heads, width, dtype=BF16, device=device)
    return packed_BTNK.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)


@pytest.mark.parametrize("name", ["triton", "triton_one_pass"])
@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("masks", [{}, {"causal": False}, {"window": 300}, {"softcap": 5.0}], ids=str)
def test_bfloat16_is_as_good_as_plain_pytorch(device, name, width, masks):
    tensors = packed(device, 1000, 4, 2, width)
    truth = results(reference, tensors, torch.float64, masks)
    plain = results(reference, tensors, BF16, masks)
    ours = results(choose("attention", name, device).function, tensors, BF16, masks)
    for what, mine, theirs, true in zip(("out", "dq", "dk", "dv"), ours, plain, truth, strict=True):
        assert (mine - true).norm() <= (2 if what == "out" else 3) * (theirs - true).norm(), what


def test_two_passes_give_the_same_bits_again(device):
    tensors = packed(device, 2000, 4, 4, 64)
    first, second = (results(choose("attention", "triton").function, tensors, BF16, {}) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_memory_grows_with_the_time_not_with_its_square(device):
    peaks = []
    for time in (8192, 16384):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        leaves = [tensor.detach().requires_grad_() for tensor in packed(device, time, 2, 2, 64)]
        choose("attention", "triton").function(*leaves).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del leaves
    assert peaks[1] <= 2.1 * peaks[0]
