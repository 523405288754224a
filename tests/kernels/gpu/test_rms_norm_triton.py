"""RMSNorm's kernels, interpreted: equal to the reference in float64, for any width, layout and format."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.rms_norm import add_rms_norm_reference, rms_norm_reference

pytestmark = pytest.mark.interpret

WIDTHS = [1, 2, 63, 64, 100, 768, 1025, 8192]


def ours(*arguments, **settings):
    return choose("rms_norm", "triton", "cpu").function(*arguments, **settings)


def error(mine, truth):
    return (mine.double() - truth).norm() / truth.norm().clamp(min=1e-30)


def compare(x, weight, *, dtype=None, eps=1e-5):
    """Our result and gradients against those of the reference in float64."""
    truth_x = x.detach().double().requires_grad_()
    truth_weight = None if weight is None else weight.detach().double().requires_grad_()
    x = x.detach().requires_grad_()
    wanted = (x,) if weight is None else (x, weight.requires_grad_())
    y = ours(x, weight, eps=eps, dtype=dtype)
    truth = rms_norm_reference(truth_x, truth_weight, eps=eps)
    upstream = torch.randn(x.shape).to(y.dtype)
    gradients = torch.autograd.grad(y, wanted, upstream)
    expected = torch.autograd.grad(
        truth, (truth_x,) if weight is None else (truth_x, truth_weight), upstream.double()
    )
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    assert error(y, truth) < tolerance[y.dtype]
    assert y.dtype == (dtype or x.dtype)
    for mine, exact, tensor in zip(gradients, expected, wanted, strict=True):
        assert error(mine, exact) < 2 * tolerance[tensor.dtype]
        assert mine.shape == tensor.shape
        assert mine.dtype == tensor.dtype


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("gain", [True, False])
def test_equals_the_reference_for_any_width(width, gain):
    # eps=1: with a small one the gradient of a vector of one number is 0, and its relative error anything
    compare(3 * torch.randn(5, width), torch.randn(width) if gain else None, eps=1.0)


@pytest.mark.parametrize("gain", [True, False])
def test_rows_wider_than_a_tile_are_walked_through(gain):
    compare(torch.randn(3, 16400), torch.randn(16400) if gain else None)


@pytest.mark.parametrize("rows", [1, 2, 3, 70])
def test_equals_the_reference_for_any_number_of_rows(rows):
    compare(torch.randn(rows, 48), torch.randn(48))


def test_float16_goes_in_and_out():
    compare(torch.randn(2, 7, 96).half(), torch.randn(96))


def test_float32_can_come_out_as_float16():
    compare(torch.randn(2, 7, 96), torch.randn(96), dtype=torch.float16)


def test_squares_that_overflow_float16_are_added_in_float32():
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    torch.testing.assert_close(ours(x), torch.ones_like(x))


def test_rows_that_stand_apart_are_read_where_they_are():
    wide = torch.randn(6, 200)
    compare(wide[:, 8:104], torch.randn(96))


def test_transposed_and_strided_vectors_are_copied_first():
    compare(torch.randn(2, 3, 4, 16).transpose(1, 2), torch.randn(16))
    compare(torch.randn(16, 5).T, torch.randn(16))
    compare(torch.randn(5, 32)[:, ::2], torch.randn(16))


def test_misaligned_vectors_are_read_where_they_are():
    compare(torch.randn(5 * 16 + 1)[1:].view(5, 16), torch.randn(17)[1:])


def test_an_expanded_gradient_is_taken():
    x = torch.randn(4, 8, requires_grad=True)
    (mine,) = torch.autograd.grad(ours(x).sum(), x)
    (expected,) = torch.autograd.grad(rms_norm_reference(x).sum(), x)
    torch.testing.assert_close(mine, expected)


def test_a_vector_of_zeros_stays_zero_and_its_gradient_is_finite():
    compare(torch.zeros(3, 8), torch.randn(8))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_nothing_comes_out_of_nothing(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[-1], requires_grad=True)
    y = ours(x, weight)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight))


def test_a_nan_spoils_its_own_row_only():
    x, weight = torch.randn(4, 70), torch.randn(70)
    x[2, 5] = torch.nan
    y = ours(x, weight)
    assert y[2].isnan().all()
    assert y[[0, 1, 3]].isfinite().all()


def test_the_gradient_is_the_same_every_time():
    x, weight = torch.randn(300, 40), torch.randn(40, requires_grad=True)
    upstream = torch.randn(300, 40)
    first, second = (torch.autograd.grad(ours(x, weight), weight, upstream)[0] for _ in range(2))
    assert torch.equal(first, second)


def compare_sum(x, branch, weight, *, dtype=None, used=(True, True)):
    """Sum, norm and gradients against the reference in float64; `used`: which of the two has a gradient."""
    function = choose("add_rms_norm", "triton", "cpu").function
    inputs = [x.detach().requires_grad_(), branch.detach().requires_grad_()]
    inputs += [] if weight is None else [weight.detach().requires_grad_()]
    doubles = [each.detach().double().requires_grad_() for each in inputs]
    found, truth = (
        call(each[0], each[1], *each[2:], eps=1e-2, **more)
        for call, each, more in ((function, inputs, {"dtype": dtype}), (add_rms_norm_reference, doubles, {}))
    )
    low = torch.float16 in (x.dtype, branch.dtype, dtype)
    for mine, exact in zip(found, truth, strict=True):
        assert error(mine, exact) < (1e-3 if low else 1e-6)
    assert found.total.dtype == torch.promote_types(x.dtype, branch.dtype)
    assert found.normed.dtype == (dtype or found.total.dtype)
    outs = [(mine, exact) for mine, exact, each in zip(found, truth, used, strict=True) if each]
    upstream = [torch.randn(mine.shape).to(mine.dtype) for mine, _ in outs]
    gradients = torch.autograd.grad([mine for mine, _ in outs], inputs, upstream, allow_unused=True)
    expected = torch.autograd.grad(
        [exact for _, exact in outs], doubles, [each.double() for each in upstream], allow_unused=True
    )
    for mine, exact, tensor in zip(gradients, expected, inputs, strict=True):
        if exact is None:
            assert mine is None
            continue
        assert error(mine, exact) < (2e-3 if low else 2e-6)
        assert mine.dtype == tensor.dtype


@pytest.mark.parametrize("width", [1, 64, 100, 768, 8192, 8200])
@pytest.mark.parametrize("gain", [True, False])
def test_a_sum_and_its_norm_equal_the_reference(width, gain):
    compare_sum(torch.randn(5, width), torch.randn(5, width), torch.randn(width) if gain else None)


def test_a_branch_can_be_narrower_than_the_path():
    x, branch, weight = torch.randn(2, 3, 96), torch.randn(2, 3, 96).half(), torch.randn(96)
    compare_sum(x, branch, weight, dtype=torch.float16)
    compare_sum(branch, x, weight)
    compare_sum(branch, branch, weight)


@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_one_of_the_two_results_may_go_unused(used):
    compare_sum(torch.randn(5, 96), torch.randn(5, 96).half(), torch.randn(96), used=used)


def test_branches_that_stand_apart_are_read_where_they_are():
    compare_sum(torch.randn(6, 200)[:, :96], torch.randn(3, 2, 96).transpose(0, 1).reshape(6, 96), None)
    compare_sum(torch.randn(2, 3, 16), torch.randn(3, 2, 16).transpose(0, 1), None)


def test_nothing_is_added_to_nothing():
    compare_sum(torch.randn(0, 8), torch.randn(0, 8), torch.randn(8))


def test_the_sum_keeps_torchs_rules():
    function = choose("add_rms_norm", "triton", "cpu").function
    x, branch = (torch.randn(3, 16, requires_grad=True) for _ in range(2))
    weight = torch.randn(16, requires_grad=True)
    function(x, branch, weight)  # registers the operation
    operation = torch.ops.scratchlm.add_rms_norm.default
    torch.library.opcheck(operation, (x, branch, weight, 1e-5, None))
    torch.library.opcheck(operation, (x, branch.detach().half(), None, 1e-5, torch.float16))
    with pytest.raises(ValueError, match=r"x \(3, 16\), branch \(16,\); both need one shape"):
        function(x, branch[0])


@pytest.mark.parametrize("gain", [True, False])
def test_the_operation_keeps_torchs_rules(gain):
    x = torch.randn(3, 4, 16, requires_grad=True)
    weight = torch.randn(16, requires_grad=True) if gain else None
    ours(x, weight)  # registers the operation
    torch.library.opcheck(torch.ops.scratchlm.rms_norm.default, (x, weight, 1e-5, torch.float16))


def test_compiles_without_a_break():
    function = choose("rms_norm", "triton", "cpu").function

    def compute(x, weight):
        return function(2 * x, weight, dtype=torch.float16).square()

    x, weight = torch.randn(3, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    eager = compute(x, weight)
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(compiled, eager)
    upstream = torch.randn(3, 16).half()
    for mine, expected in zip(
        torch.autograd.grad(compiled, (x, weight), upstream),
        torch.autograd.grad(eager, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_float64_is_computed_in_float64():
    add = choose("add_rms_norm", "triton", "cpu").function
    x, branch, weight = (torch.randn(shape).double().requires_grad_() for shape in ((3, 8), (3, 8), (8,)))
    assert torch.autograd.gradcheck(ours, (x, weight))
    assert torch.autograd.gradcheck(add, (x, branch, weight))
    narrow = branch.detach().float().requires_grad_()
    assert add(x, narrow, weight).total.dtype == torch.float64
    torch.testing.assert_close(add(x, narrow, weight), add_rms_norm_reference(x, narrow, weight))


def test_wrong_gains_are_told():
    with pytest.raises(ValueError, match=r"x \(3, 8\), gain \(7,\); the gain has a number for each column"):
        ours(torch.randn(3, 8), torch.randn(7))
    with pytest.raises(ValueError, match=r"x is torch.int64; give floating-point numbers"):
        ours(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"several devices \(cpu, meta\)"):
        ours(torch.randn(3, 8), torch.randn(8, device="meta"))
