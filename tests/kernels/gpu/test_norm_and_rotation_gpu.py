"""Norm, rotation and projection on a GPU in bfloat16: at most twice the error of the plain kernels."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.project_heads import Angles, Gains

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def on_gpu(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def results(function, inputs, upstream):
    """What comes out, and the gradients of all inputs, in float64."""
    found = function(*inputs)
    outs = [found] if isinstance(found, torch.Tensor) else list(found)
    gradients = torch.autograd.grad(
        outs, inputs, [each.to(out) for each, out in zip(upstream, outs, strict=True)]
    )
    return [each.double() for each in outs], [each.double() for each in gradients]


def compare(op, inputs, num_outs, **settings):
    """Errors of our kernel and of the plain one in the same format, both against float64."""
    truth_inputs = [each.detach().double().requires_grad_() for each in inputs]
    plain, ours = (choose(op, name).function for name in ("plain", "triton"))
    exact = choose(op, "reference").function
    with torch.no_grad():
        first = exact(*truth_inputs, **settings)
    upstream = [torch.randn_like(each).to(torch.bfloat16) for each in ([first] if num_outs == 1 else first)]
    truth = results(lambda *given: exact(*given, **settings), truth_inputs, upstream)
    mine = results(lambda *given: ours(*given, **settings), inputs, upstream)
    theirs = results(lambda *given: plain(*given, **settings), inputs, upstream)
    for allowed, kinds in zip((2, 3), zip(mine, theirs, truth, strict=True), strict=True):
        for our, plain_one, true in zip(*kinds, strict=True):
            floor = 1e-6 * true.norm()
            assert (our - true).norm() <= allowed * (plain_one - true).norm() + floor


@pytest.mark.parametrize("width", [64, 100, 768, 4096, 8192, 20000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rms_norm(width, dtype):
    compare("rms_norm", [on_gpu(300, width, dtype=dtype), on_gpu(width, dtype=torch.float32)], 1)


@pytest.mark.parametrize("width", [768, 4096])
def test_add_rms_norm(width):
    inputs = [on_gpu(300, width, dtype=torch.float32), on_gpu(300, width), on_gpu(width, dtype=torch.float32)]
    compare("add_rms_norm", inputs, 2)


@pytest.mark.parametrize("d_head", [16, 64, 80, 128])
def test_rotate(d_head):
    angle = torch.randn(70, d_head // 2, device="cuda", dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    compare("rotate", [on_gpu(2, 5, 70, d_head)], 1, cos=cos, sin=sin)


@pytest.mark.parametrize("norm", [False, True])
def test_project_heads_equals_the_plain_steps(norm):
    angle = torch.randn(130, 32, device="cuda")
    x, weight = on_gpu(3, 130, 256), on_gpu(20 * 64, 256)
    gains = Gains(*(torch.randn(64, device="cuda") for _ in range(2)), 1e-5) if norm else None
    settings = {
        "num_heads": 12,
        "num_kv_heads": 4,
        "gains": gains,
        "angles": Angles(angle.cos(), angle.sin()),
    }
    plain, ours = (choose("project_heads", name).function for name in ("plain", "triton"))
    upstream = [torch.randn_like(each) for each in plain(x, weight, **settings)]
    theirs = results(lambda *given: plain(*given, **settings), [x, weight], upstream)
    mine = results(lambda *given: ours(*given, **settings), [x, weight], upstream)
    for kinds in zip(mine, theirs, strict=True):
        for our, plain_one in zip(*kinds, strict=True):
            assert (our - plain_one).norm() <= 1e-2 * plain_one.norm()


def test_norms_of_more_than_two_to_the_31_numbers():
    x = torch.zeros(2**31 // 4096 + 8, 4096, device="cuda", dtype=torch.bfloat16)
    x[-1] = torch.randn(4096)
    y = choose("rms_norm", "triton").function(x)
    torch.testing.assert_close(y[-1], choose("rms_norm", "plain").function(x[-1:])[0])
