"""The rotation's kernel, interpreted: equal to the reference in float64, in place and not, for any layout."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.rotate import rotate_reference

pytestmark = pytest.mark.interpret

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


def ours(*arguments):
    return choose("rotate", "triton", "cpu").function(*arguments)


def table(time, d_head):
    angle = torch.randn(time, d_head // 2)
    return angle.cos(), angle.sin()


def assert_close(mine, truth):
    assert mine.shape == truth.shape
    error = (mine.double() - truth).norm() / truth.norm().clamp(min=1e-30)
    assert error < TOLERANCE[mine.dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("d_head", [2, 16, 24, 64, 96, 128, 256])
def test_equals_the_reference_for_any_head(d_head, dtype):
    x = torch.randn(2, 3, 5, d_head).to(dtype).requires_grad_()
    angles, upstream = table(5, d_head), torch.randn(2, 3, 5, d_head).to(dtype)
    truth_x = x.detach().double().requires_grad_()
    truth = rotate_reference(truth_x, *(each.double() for each in angles))
    turned = ours(x, *angles)
    assert_close(turned, truth)
    (mine,) = torch.autograd.grad(turned, x, upstream)
    (expected,) = torch.autograd.grad(truth, truth_x, upstream.double())
    assert_close(mine, expected)


@pytest.mark.parametrize(("batch", "heads", "time"), [(1, 1, 1), (3, 5, 1), (1, 9, 17), (2, 4, 33)])
def test_equals_the_reference_for_any_number_of_heads_and_tokens(batch, heads, time):
    x, angles = torch.randn(batch, heads, time, 8), table(time, 8)
    assert_close(ours(x, *angles), rotate_reference(x.double(), *(each.double() for each in angles)))


def test_heads_of_a_packed_product_are_read_where_they_are():
    packed, angles = torch.randn(2, 7, 6 * 16), table(7, 16)
    x = packed.view(2, 7, 6, 16).transpose(1, 2)[:, 1:4]
    assert_close(ours(x, *angles), rotate_reference(x.double(), *(each.double() for each in angles)))


def test_strided_expanded_and_misaligned_vectors_are_turned():
    angles = table(5, 8)
    for x in (
        torch.randn(2, 3, 5, 16)[..., ::2],
        torch.randn(2, 3, 8, 5).transpose(2, 3),
        torch.randn(2, 1, 5, 8).expand(2, 3, 5, 8),
        torch.randn(2 * 3 * 5 * 8 + 1)[1:].view(2, 3, 5, 8),
    ):
        assert_close(ours(x, *angles), rotate_reference(x.double(), *(each.double() for each in angles)))


def test_rows_of_a_longer_table_of_angles_are_taken():
    cos, sin = table(20, 8)
    x = torch.randn(1, 2, 5, 8)
    expected = rotate_reference(x.double(), cos[9:14].double(), sin[9:14].double())
    assert_close(ours(x, cos[9:14], sin[9:14]), expected)


def test_in_place_the_first_heads_are_turned_and_the_others_left():
    from scratchlm.kernels.gpu.rotate import rotate_

    packed, angles = torch.randn(2, 5, 6, 8), table(5, 8)
    before = packed.clone()
    rotate_(packed, *angles, 4)
    expected = rotate_reference(before[:, :, :4].transpose(1, 2).double(), *(e.double() for e in angles))
    assert_close(packed[:, :, :4].transpose(1, 2), expected)
    assert torch.equal(packed[:, :, 4:], before[:, :, 4:])


def test_float64_is_computed_in_float64():
    x, angles = torch.randn(1, 2, 3, 8).double().requires_grad_(), table(3, 8)
    assert torch.autograd.gradcheck(lambda x: ours(x, *angles), x)
    assert torch.equal(ours(x, *angles), rotate_reference(x, *angles))


def test_a_nan_stays_in_its_pair():
    x = torch.randn(1, 2, 3, 8)
    x[0, 1, 2, 5] = torch.nan
    spoiled = ours(x, *table(3, 8)).isnan()
    assert spoiled[0, 1, 2].tolist() == [False, True, False, False, False, True, False, False]
    assert spoiled.sum() == 2


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 2, 0, 8), (2, 0, 3, 8)])
def test_nothing_comes_out_of_nothing(shape):
    x = torch.randn(shape, requires_grad=True)
    turned = ours(x, *table(shape[2], 8))
    turned.sum().backward()
    assert turned.shape == x.grad.shape == x.shape


def test_the_operations_keep_torchs_rules():
    x, angles = torch.randn(2, 3, 5, 8, requires_grad=True), table(5, 8)
    ours(x, *angles)  # registers the operations
    torch.library.opcheck(torch.ops.scratchlm.rotate.default, (x, *angles, False))
    torch.library.opcheck(torch.ops.scratchlm.rotate_.default, (torch.randn(2, 5, 6, 8), *angles, 4))
    gains, product = torch.randn(2, 8), torch.randn(2, 5, 6, 8)
    for given in (angles, (None, None)):
        normed = torch.ops.scratchlm.norm_and_rotate.default
        torch.library.opcheck(normed, (product, gains, *given, 2, 2, 1e-5))


def test_angles_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"cos \(4, 4\), sin \(4, 4\) for 5 tokens, d_head=8; d_head"):
        ours(torch.randn(1, 1, 5, 8), *table(4, 8))
    with pytest.raises(ValueError, match="d_head=7; d_head must be even"):
        ours(torch.randn(1, 1, 5, 7), *table(5, 6))
    with pytest.raises(ValueError, match=r"x is torch.int64; give floating-point numbers"):
        ours(torch.ones(1, 1, 5, 8, dtype=torch.int64), *table(5, 8))
    with pytest.raises(ValueError, match="several devices"):
        ours(torch.randn(1, 1, 5, 8), *(each.to("meta") for each in table(5, 8)))
