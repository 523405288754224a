"""Projection, QK-norm and rotation as kernels, interpreted: equal to the plain steps in float64."""

import itertools

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.project_heads import Angles, Gains
from scratchlm.kernels.rms_norm import rms_norm_reference
from scratchlm.kernels.rotate import rotate_reference

pytestmark = pytest.mark.interpret

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.float64: 1e-14}
EPS = 1e-3


def ours(*arguments, **settings):
    return choose("project_heads", "triton", "cpu").function(*arguments, **settings)


def reference(x, weight, bias, q_gain, k_gain, cos, sin, *, num_heads, num_kv_heads):
    """The definition, step by step; autograd finds the gradients."""
    product = x @ weight.T if bias is None else x @ weight.T + bias
    heads = product.unflatten(-1, (num_heads + 2 * num_kv_heads, -1)).transpose(1, 2)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_gain is not None:
        q, k = rms_norm_reference(q, q_gain, eps=EPS), rms_norm_reference(k, k_gain, eps=EPS)
    if cos is not None:
        q, k = rotate_reference(q, cos, sin), rotate_reference(k, cos, sin)
    return q, k, v


def made(
    batch,
    time,
    d_model,
    d_head,
    num_heads,
    num_kv_heads,
    *,
    bias=True,
    norm=False,
    turn=True,
    dtype=torch.float32,
):
    """Inputs in the order of `reference`, None where there is none."""
    width = (num_heads + 2 * num_kv_heads) * d_head
    angle = torch.randn(time, d_head // 2)
    return [
        torch.randn(batch, time, d_model).to(dtype).requires_grad_(),
        (torch.randn(width, d_model) * d_model**-0.5).to(dtype).requires_grad_(),
        torch.randn(width).to(dtype).requires_grad_() if bias else None,
        *(torch.randn(d_head, requires_grad=True) if norm else None for _ in range(2)),
        *((angle.cos(), angle.sin()) if turn else (None, None)),
    ]


def call(function, inputs, num_heads, num_kv_heads):
    x, weight, bias, q_gain, k_gain, cos, sin = inputs
    return function(
        x,
        weight,
        bias,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        gains=None if q_gain is None else Gains(q_gain, k_gain, EPS),
        angles=None if cos is None else Angles(cos, sin),
    )


def assert_close(mine, truth, dtype):
    assert mine.shape == truth.shape
    assert (mine.double() - truth).norm() / truth.norm().clamp(min=1e-30) < TOLERANCE[dtype]


def compare(inputs, num_heads, num_kv_heads):
    dtype = inputs[0].dtype
    doubles = [
        None if each is None else each.detach().double().requires_grad_(each.requires_grad) for each in inputs
    ]
    heads = call(ours, inputs, num_heads, num_kv_heads)
    truth = reference(*doubles, num_heads=num_heads, num_kv_heads=num_kv_heads)
    upstream = [torch.randn(each.shape).to(dtype) for each in heads]
    for mine, exact in zip(heads, truth, strict=True):
        assert_close(mine, exact, dtype)
        assert mine.dtype == dtype
    wanted, exact_wanted = (
        [each for each in side if each is not None and each.requires_grad] for side in (inputs, doubles)
    )
    gradients = torch.autograd.grad(heads, wanted, upstream)
    expected = torch.autograd.grad(truth, exact_wanted, [each.double() for each in upstream])
    for mine, exact in zip(gradients, expected, strict=True):
        assert_close(mine, exact, dtype)


@pytest.mark.parametrize(("bias", "norm", "turn"), list(itertools.product([False, True], repeat=3)))
def test_equals_the_steps_with_and_without_each(bias, norm, turn):
    compare(made(2, 7, 12, 16, 4, 2, bias=bias, norm=norm, turn=turn), 4, 2)


@pytest.mark.parametrize(("norm", "turn"), [(False, True), (True, True), (True, False)])
def test_float16_goes_in_and_out(norm, turn):
    compare(made(2, 7, 12, 16, 4, 2, norm=norm, turn=turn, dtype=torch.float16), 4, 2)


@pytest.mark.parametrize(("norm", "turn"), [(False, True), (True, True), (True, False)])
def test_float64_is_computed_in_float64(norm, turn):
    inputs = made(2, 7, 12, 16, 4, 2, norm=norm, turn=turn)
    doubles = [
        None if each is None else each.detach().double().requires_grad_(each.requires_grad) for each in inputs
    ]
    compare(doubles, 4, 2)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (6, 2), (5, 5), (9, 1)])
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_steps_for_any_number_of_heads(num_heads, num_kv_heads, norm):
    compare(made(1, 5, 8, 8, num_heads, num_kv_heads, norm=norm), num_heads, num_kv_heads)


@pytest.mark.parametrize("d_head", [2, 24, 80, 128])
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_steps_for_any_head(d_head, norm):
    compare(made(2, 3, 8, d_head, 2, 1, norm=norm), 2, 1)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 1), (2, 65)])
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_steps_for_any_number_of_tokens(batch, time, norm):
    compare(made(batch, time, 8, 8, 2, 2, norm=norm), 2, 2)


def test_queries_keys_and_values_are_one_block_of_memory():
    q, k, v = call(ours, made(2, 5, 8, 16, 4, 2), 4, 2)
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.stride() == k.stride() == v.stride() == (5 * 8 * 16, 16, 8 * 16, 1)


def test_gradients_in_any_layout_are_gathered():
    inputs = made(2, 5, 8, 8, 2, 1)
    doubles = [None if each is None else each.detach().double().requires_grad_() for each in inputs]
    q, k, v = call(ours, inputs, 2, 1)
    exact = reference(*doubles, num_heads=2, num_kv_heads=1)
    layouts = [
        torch.randn(2, 5, 2, 8).transpose(1, 2),
        torch.randn(1).expand(2, 1, 5, 8),
        torch.randn(2, 1, 8, 5).mT,
    ]
    gradients = torch.autograd.grad((q, k, v), inputs[:3], layouts)
    expected = torch.autograd.grad(exact, doubles[:3], [each.double() for each in layouts])
    for mine, truth in zip(gradients, expected, strict=True):
        assert_close(mine, truth, torch.float32)


def test_a_part_that_nobody_uses_has_no_gradient_to_give():
    inputs = made(2, 5, 8, 8, 2, 1)
    call(ours, inputs, 2, 1).q.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad[16:], torch.zeros(16, 8))


def test_gradients_handed_in_are_not_changed():
    inputs = made(2, 5, 8, 8, 2, 1)
    heads = call(ours, inputs, 2, 1)
    upstream = [torch.randn(each.shape) for each in heads]
    before = [each.clone() for each in upstream]
    torch.autograd.grad(heads, inputs[0], upstream)
    assert all(torch.equal(mine, copy) for mine, copy in zip(upstream, before, strict=True))


@pytest.mark.parametrize("norm", [False, True])
def test_autocast_lowers_the_product_and_gradients_stay_wide(norm):
    inputs = made(2, 5, 16, 8, 2, 1, bias=False, norm=norm)
    with torch.autocast("cpu", torch.float16):
        heads = call(ours, inputs, 2, 1)
        plain = call(choose("project_heads", "plain").function, inputs, 2, 1)
    for mine, expected in zip(heads, plain, strict=True):
        assert mine.dtype == torch.float16
        torch.testing.assert_close(mine, expected, rtol=2e-3, atol=2e-3)
    (mine,) = torch.autograd.grad(heads.k.sum(), inputs[1])
    assert mine.dtype == torch.float32


def test_a_nan_stays_with_its_token():
    inputs = made(1, 5, 8, 8, 2, 1, norm=True)
    with torch.no_grad():
        inputs[0][0, 3, 2] = torch.nan
    for part in call(ours, inputs, 2, 1):
        assert part[:, :, 3].isnan().all()
        assert part[:, :, [0, 1, 2, 4]].isfinite().all()


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("norm", [False, True])
def test_nothing_comes_out_of_nothing(batch, time, norm):
    inputs = made(batch, time, 8, 8, 2, 1, norm=norm)
    q, k, v = call(ours, inputs, 2, 1)
    assert q.shape == (batch, 2, time, 8)
    assert k.shape == v.shape == (batch, 1, time, 8)
    (q.sum() + k.sum() + v.sum()).backward()
    torch.testing.assert_close(inputs[1].grad, torch.zeros_like(inputs[1]))


@pytest.mark.parametrize("norm", [False, True])
def test_compiles_without_a_break(norm):
    function = choose("project_heads", "triton", "cpu").function
    inputs = made(2, 5, 8, 8, 2, 1, norm=norm)
    wanted = [each for each in inputs if each is not None and each.requires_grad]

    def compute(*inputs):
        q, k, v = call(function, inputs, 2, 1)
        return (q.square().sum() + k.sin().sum() + (v * k).sum()).float()

    expected = torch.autograd.grad(compute(*inputs), wanted)
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    for mine, truth in zip(torch.autograd.grad(compiled(*inputs), wanted), expected, strict=True):
        torch.testing.assert_close(mine, truth)


@pytest.mark.parametrize("norm", [False, True])
def test_the_operation_keeps_torchs_rules(norm):
    dq, dk, dv = (torch.randn(2, heads, 5, 8) for heads in (2, 1, 1))
    call(ours, made(2, 5, 8, 8, 2, 1), 2, 1)  # registers the operation
    product, gains = (torch.randn(2, 5, 4, 8), torch.randn(2, 8)) if norm else (None, None)
    angle = torch.randn(5, 4)
    arguments = (dq, dk, dv, product, gains, angle.cos(), angle.sin(), EPS)
    torch.library.opcheck(torch.ops.scratchlm.gather_heads.default, arguments)


def test_shapes_that_do_not_fit_are_told():
    x, weight = torch.randn(2, 5, 8), torch.randn(32, 8)
    with pytest.raises(ValueError, match=r"x \(2, 5, 8\), weight \(32, 8\) for 3 query and 1 key heads"):
        ours(x, weight, num_heads=3, num_kv_heads=1)
    with pytest.raises(ValueError, match=r"weight \(32, 9\)"):
        ours(x, torch.randn(32, 9), num_heads=2, num_kv_heads=1)
    gains = Gains(torch.randn(8), torch.randn(4), EPS)
    with pytest.raises(ValueError, match=r"a gain of shape \(4,\) for d_head=8"):
        ours(x, weight, num_heads=2, num_kv_heads=1, gains=gains)
    angles = Angles(torch.randn(4, 4), torch.randn(4, 4))
    with pytest.raises(ValueError, match="project_heads: cos"):
        ours(x, weight, num_heads=2, num_kv_heads=1, angles=angles)
