"""What attention's kernels take: strides, odd places in memory, empty and wrong inputs; torch.compile."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.attention_reference import attention as reference

pytestmark = pytest.mark.interpret

HALF = torch.float16


def attend(*tensors, **masks):
    return choose("attention", "triton").function(*tensors, **masks)


def inputs(queries=40, keys=40, heads=2, width=16, dtype=torch.float32):
    shapes = ((1, heads, queries, width), (1, heads, keys, width), (1, heads, keys, width))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def gradients(function, tensors, upstream, **masks):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, **masks)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def assert_same(tensors, upstream, **masks):
    """Strides, not the values, are what is tested: the reference gets contiguous copies in float64."""
    ours = gradients(attend, tensors, upstream, **masks)
    copies = [tensor.double().contiguous() for tensor in tensors]
    expected = gradients(reference, copies, upstream.double(), **masks)
    tolerance = 1e-5 if tensors[0].dtype == torch.float32 else 4e-3
    for mine, true in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_slices_of_a_packed_projection_are_read_in_place(dtype, monkeypatch):
    packed_BTNK = torch.randn(2, 70, 4, 16, dtype=dtype)
    q, k, v = packed_BTNK.transpose(1, 2).split([2, 1, 1], dim=1)

    def refuse(*_, **__):
        raise AssertionError("an input was copied")

    upstream_BTHK = torch.randn(2, 70, 2, 16, dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", refuse)
        gradients(attend, (q, k, v), upstream_BTHK.transpose(1, 2))
    assert_same((q, k, v), upstream_BTHK.transpose(1, 2))


def test_the_output_and_the_gradients_lie_as_projections_want_them():
    q, k, v = (tensor.requires_grad_() for tensor in inputs())
    out = attend(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_a_strided_last_dimension_is_right(dtype):
    q, k, v = (torch.randn(1, 2, 16, 40, dtype=dtype).transpose(2, 3) for _ in range(3))
    assert_same((q, k, v), torch.randn(1, 2, 16, 40, dtype=dtype).transpose(2, 3))


def test_a_gradient_that_is_one_number_repeated_is_right():
    tensors = inputs()
    assert_same(tensors, torch.ones(()).expand(tensors[0].shape))


@pytest.mark.parametrize(("width", "offset"), [(16, 1), (20, 0)], ids=["address", "rows"])
def test_misaligned_tensors_are_right(width, offset):
    """Descriptors need 16 bytes: memory that begins 2 bytes later, or rows of 40 bytes, takes pointers."""
    from scratchlm.kernels.gpu.attention_memory import can_describe

    tensors = []
    for _ in range(3):
        memory = torch.randn(2 * 40 * width + offset, dtype=HALF)
        tensors.append(memory[offset:].view(1, 2, 40, width))
    assert not can_describe(*tensors)
    assert_same(tensors, torch.randn(1, 2, 40, width, dtype=HALF))


def test_one_batch_row_repeated_is_right():
    """A stride of 0 is no stride that the copy engine is known to take."""
    from scratchlm.kernels.gpu.attention_memory import can_describe

    q, k, v = inputs(dtype=HALF)
    q, k, v = (tensor.expand(3, -1, -1, -1) for tensor in (q, k, v))
    assert not can_describe(q)
    torch.testing.assert_close(attend(q, k, v)[2], attend(q[:1], k[:1], v[:1])[0])


def test_values_in_unused_memory_reach_no_result():
    """What lies behind the last row, in the columns beside and in other heads is NaN here."""
    tensors = []
    for _ in range(3):
        memory = torch.full((1, 3, 50, 32), torch.nan, dtype=HALF)
        memory[:, :2, :40, :24] = torch.randn(1, 2, 40, 24).to(HALF)
        tensors.append(memory[:, :2, :40, :24])
    assert_same(tensors, torch.randn(1, 2, 40, 24, dtype=HALF))
    assert_same(tensors, torch.randn(1, 2, 40, 24, dtype=HALF), causal=False)


def test_nan_goes_where_the_reference_has_it():
    q, k, v = inputs(queries=70, keys=70)
    q[0, 0, 5] = torch.nan
    k[0, 1, 64] = torch.nan
    out, expected = attend(q, k, v), reference(q, k, v)
    assert torch.equal(out.isnan(), expected.isnan())
    assert out.isnan().any()


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 5), (2, 0, 5), (2, 0, 0), (2, 5, 0)], ids=str)
def test_empty_inputs_give_what_the_reference_gives(batch, queries, keys):
    q, k = torch.randn(batch, 2, queries, 16), torch.randn(batch, 2, keys, 16)
    torch.testing.assert_close(attend(q, k, k, causal=False), reference(q, k, k, causal=False))


def test_wrong_inputs_are_refused_by_name():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="all must be bfloat16, or float16, or float32"):
        attend(q, k.half(), v)
    with pytest.raises(ValueError, match="all must be bfloat16"):
        attend(q, k, v.double())
    with pytest.raises(ValueError, match="heads of width 264; the kernels take up to 256"):
        attend(*inputs(width=264))
    with pytest.raises(ValueError, match=r"k \(1, 2, 40, 16\)"):
        attend(q[..., :8], k, v)
    with pytest.raises(ValueError, match="at least as many keys"):
        attend(q, k[:, :, :20], v[:, :, :20])
    with pytest.raises(ValueError, match=r"softcap=0\.0; it must be above 0"):
        attend(q, k, v, softcap=0.0)
    with pytest.raises(ValueError, match="slopes get no gradient"):
        attend(q, k, v, slopes_H=torch.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match=r"whole numbers of shape \(batch, keys\) = \(1, 40\)"):
        attend(q, k, v, documents_BS=torch.zeros(1, 39, dtype=torch.int64))
    with pytest.raises(ValueError, match="the queries are the last"):
        attend(
            q, k[:, :, :20], v[:, :, :20], causal=False, documents_BS=torch.zeros(1, 20, dtype=torch.int64)
        )


@pytest.mark.parametrize(
    "masks",
    [{}, {"causal": False}, {"window": 7, "softcap": 2.0, "slopes_H": torch.tensor([0.5, 0.1]).double()}],
    ids=lambda masks: "+".join(masks) or "causal",
)
def test_float64_is_computed_in_float64(masks):
    tensors = inputs(dtype=torch.float64)
    upstream = torch.randn(tensors[0].shape, dtype=torch.float64)
    ours = gradients(attend, tensors, upstream, **masks)
    for mine, true in zip(ours, gradients(reference, tensors, upstream, **masks), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)


def test_a_tensor_elsewhere_is_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="on several devices"):
        attend(q, k.to("meta"), v)


def test_slopes_of_any_float_and_stride():
    q, k, v = inputs()
    slopes = torch.tensor([0.5, 9.0, 0.25, 9.0], dtype=torch.float64)[::2]
    torch.testing.assert_close(
        attend(q, k, v, slopes_H=slopes), reference(q, k, v, slopes_H=slopes.float()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("queries", [1, 3])
def test_one_query_takes_the_decoding_kernel_and_agrees(queries, monkeypatch):
    from scratchlm.kernels.gpu import attention as module

    calls = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *args, **named: calls.append(1) or decode(*args, **named))
    q, k, v = inputs(queries=queries, keys=50)
    torch.testing.assert_close(attend(q, k, v, window=20), reference(q, k, v, window=20))
    assert bool(calls) == (queries == 1)


def test_autocast_decides_the_dtype():
    q, k, v = inputs()
    with torch.autocast("cpu", torch.float16):
        assert attend(q, k.half(), v).dtype == HALF


def test_torch_knows_the_operations():
    """opcheck: schemas, fake results with the real strides, autograd."""
    from scratchlm.kernels.gpu.attention import attention_backward, attention_forward

    q, k, v = (tensor.requires_grad_() for tensor in inputs(queries=20, keys=20))
    torch.library.opcheck(attention_forward, (q, k, v, True, 7, 2.0, torch.ones(2), None, "two_pass"))
    out, lse = attention_forward(q, k, v, True, None, None, None, None, "two_pass")
    saved = [tensor.detach() for tensor in (q, k, v, out, lse, out)]
    torch.library.opcheck(attention_backward, (*saved, True, None, None, None, None, "one_pass"))


def test_nothing_but_inputs_output_and_a_number_per_query_is_kept():
    sizes = []
    q, k, v = (tensor.requires_grad_() for tensor in inputs(queries=100, keys=100))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        attend(q, k, v)
    assert sorted(sizes) == sorted([q.numel()] * 4 + [q.shape[1] * 100])
