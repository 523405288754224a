"""Attention's kernels, interpreted: outputs and gradients against the reference in float64."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.attention_reference import attention as reference

pytestmark = pytest.mark.interpret

TWO_PASS, ONE_PASS = "triton", "triton_one_pass"
SLOPES = torch.tensor([0.5, 0.125])
PACKED = torch.arange(90).div(37, rounding_mode="floor").repeat(2, 1)
MIXED = torch.tensor([3, -1, 3, 7, 7]).repeat(18).repeat(2, 1)


def inputs(batch=1, heads=2, kv_heads=2, queries=70, keys=None, width=16, width_v=None, dtype=torch.float32):
    keys = queries if keys is None else keys
    return (
        torch.randn(batch, heads, queries, width, dtype=dtype),
        torch.randn(batch, kv_heads, keys, width, dtype=dtype),
        torch.randn(batch, kv_heads, keys, width_v or width, dtype=dtype),
    )


def results(function, tensors, dtype, masks):
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    masks = {name: value.to(dtype) if name == "slopes_H" else value for name, value in masks.items()}
    out = function(*leaves, **masks)
    upstream = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(dtype)
    return [part.detach().double() for part in (out, *torch.autograd.grad(out, leaves, upstream))]


def assert_as_good_as_plain(name, tensors, **masks):
    """Output at most 2 times, gradients 3 times as far from float64 as plain PyTorch in the same dtype.

    Plain PyTorch's gradient is exact where one key is seen (p (dp - p dp) = 0); the kernels' delta comes from
    the output instead: a rounding error of the size of all gradients is allowed everywhere.
    """
    dtype = tensors[0].dtype
    truth = results(reference, tensors, torch.float64, masks)
    plain = results(reference, tensors, dtype, masks)
    ours = results(choose("attention", name).function, tensors, dtype, masks)
    rounding = torch.finfo(dtype).eps * sum(true.norm() for true in truth)
    for what, mine, theirs, true in zip(("out", "dq", "dk", "dv"), ours, plain, truth, strict=True):
        allowed = (2 if what == "out" else 3) * (theirs - true).norm() + rounding
        assert (mine - true).norm() <= allowed, (what, (mine - true).norm(), allowed)


@pytest.mark.parametrize("name", [TWO_PASS, ONE_PASS])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"causal": False},
        {"window": 1},
        {"window": 40},
        {"softcap": 2.0},
        {"softcap": 50.0},  # as Gemma 2 has it: nearly all scores are far below
        {"slopes_H": SLOPES},
    ],
    ids=lambda masks: "+".join(masks) or "causal",
)
def test_every_mask_equals_the_reference(name, masks):
    assert_as_good_as_plain(name, inputs(), **masks)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", [PACKED, MIXED], ids=["packed", "mixed"])
def test_documents_equal_the_reference_in_any_order(causal, documents):
    assert_as_good_as_plain(TWO_PASS, inputs(2, 1, 1, 80, 90), causal=causal, documents_BS=documents)


@pytest.mark.parametrize("name", [TWO_PASS, ONE_PASS])
def test_all_masks_together_equal_the_reference(name):
    tensors = inputs(batch=2, kv_heads=1, keys=90)
    assert_as_good_as_plain(
        name, tensors, window=33, softcap=1.5, slopes_H=SLOPES, documents_BS=PACKED.to(torch.int32)
    )


@pytest.mark.parametrize("name", [TWO_PASS, ONE_PASS])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_with_a_past_equal_the_reference(name, kv_heads):
    assert_as_good_as_plain(name, inputs(heads=4, kv_heads=kv_heads, queries=33, keys=70))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 65), (31, 31), (64, 64), (65, 130)])
def test_any_length_equals_the_reference(queries, keys):
    assert_as_good_as_plain(TWO_PASS, inputs(queries=queries, keys=keys))


def test_more_queries_than_keys_without_a_causal_mask():
    assert_as_good_as_plain(TWO_PASS, inputs(queries=100, keys=40), causal=False)


@pytest.mark.parametrize(("width", "width_v"), [(1, 1), (24, 24), (40, 72), (128, 64), (256, 256)])
def test_any_width_up_to_256_equals_the_reference(width, width_v):
    assert_as_good_as_plain(TWO_PASS, inputs(heads=1, kv_heads=1, queries=20, width=width, width_v=width_v))


@pytest.mark.parametrize("name", [TWO_PASS, ONE_PASS])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_half_precision_by_descriptors_equals_the_reference(name, width):
    """float16 takes Hopper's tiles: descriptors, 128 queries at a time."""
    tensors = inputs(kv_heads=1, queries=290, keys=300, width=width, dtype=torch.float16)
    assert_as_good_as_plain(name, tensors, window=200)


def test_half_precision_without_a_mask_ends_inside_a_block():
    assert_as_good_as_plain(
        TWO_PASS, inputs(queries=150, keys=170, width=64, dtype=torch.float16), causal=False
    )


def test_half_precision_with_every_mask():
    documents = torch.arange(170).div(60, rounding_mode="floor")[None]
    masks = {"window": 90, "softcap": 3.0, "slopes_H": SLOPES, "documents_BS": documents}
    assert_as_good_as_plain(TWO_PASS, inputs(queries=150, keys=170, width=32, dtype=torch.float16), **masks)


@pytest.mark.parametrize("name", [TWO_PASS, ONE_PASS])
def test_keys_that_do_not_exist_add_nothing_where_all_scores_are_very_low(name):
    """All scores are near -1,000; the score 0 of a key past the last one would have an infinite weight."""
    q, k, v = inputs(queries=20)
    tensors = (q + 16, k - 16, v)
    ours = results(choose("attention", name).function, tensors, torch.float32, {"causal": False})
    for mine, true in zip(ours, results(reference, tensors, torch.float64, {"causal": False}), strict=True):
        assert (mine - true).norm() <= 1e-3 * true.norm() + 1e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_do_not_overflow(sign):
    """Scores of some 10,000: float32 leaves three digits of their differences."""
    q, k, v = inputs(queries=50)
    tensors = (q * 60, k * 60 * sign, v)
    ours = results(choose("attention", TWO_PASS).function, tensors, torch.float32, {})
    for mine, true in zip(ours, results(reference, tensors, torch.float64, {}), strict=True):
        assert (mine - true).norm() <= 1e-3 * true.norm() + 1e-3
