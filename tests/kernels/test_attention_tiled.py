"""FlashAttention-2 in tiles: the reference's results and gradients, with one number a query kept between."""

import itertools

import pytest
import torch

from scratchlm.kernels import attention_tiled, choose
from scratchlm.kernels.attention_tiled import FlashAttention2

REFERENCE = choose("attention", "reference").function
TILED = choose("attention", "tiled").function


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 16, so that short inputs have inner, masked and cut tiles."""
    monkeypatch.setattr(attention_tiled, "TILE", 16)


def inputs(*, heads=4, kv_heads=2, queries=50, keys=50, d_head=8, d_value=8, dtype=torch.float64):
    shapes = (heads, queries, d_head), (kv_heads, keys, d_head), (kv_heads, keys, d_value)
    return [torch.randn(2, *shape, dtype=dtype).requires_grad_() for shape in shapes]


def outcome(function, tensors, **settings):
    """The result and the gradients of q, k and v for an upstream gradient that is the same at each call."""
    out = function(*tensors, **settings)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, tensors, upstream)


def assert_equals_the_reference(tensors, **settings):
    for mine, expected in zip(
        outcome(TILED, tensors, **settings), outcome(REFERENCE, tensors, **settings), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(
    ("window", "softcap", "biased", "documents"),
    list(itertools.product([None, 1, 20], [None, 1.5], [False, True], [False, True])),
)
def test_equals_the_reference_under_all_masks_together(window, softcap, biased, documents):
    assert_equals_the_reference(
        inputs(queries=37, keys=50),
        window=window,
        softcap=softcap,
        slopes_H=torch.rand(4, dtype=torch.float64) if biased else None,
        documents_BS=torch.tensor([[0] * 3 + [1] * 30 + [2] * 17, [5] * 49 + [6]]) if documents else None,
    )


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("keys", [1, 16, 40])
def test_without_a_mask_queries_and_keys_may_be_of_any_number(queries, keys):
    assert_equals_the_reference(inputs(queries=queries, keys=keys, d_value=5), causal=False)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 16, 33])
def test_grouped_heads_and_past_keys(kv_heads, queries):
    assert_equals_the_reference(inputs(kv_heads=kv_heads, queries=queries, keys=queries + 20))


def test_empty_batches_and_no_queries_and_no_keys():
    q, k, v = (tensor.detach() for tensor in inputs())
    assert TILED(q[:0], k[:0], v[:0]).shape == (0, 4, 50, 8)
    assert TILED(q[:, :, :0], k, v).shape == (2, 4, 0, 8)
    nothing = TILED(q, k[:, :, :0], v[:, :, :0], causal=False)
    torch.testing.assert_close(nothing, torch.zeros_like(q))


def test_tensors_with_any_strides():
    packed = torch.randn(2, 50, 8, 8, dtype=torch.float64)
    q, k, v = packed.transpose(1, 2).split([4, 2, 2], dim=1)
    torch.testing.assert_close(TILED(q, k, v), REFERENCE(q, k, v))
    q, k, v = (tensor.detach()[..., ::2] for tensor in inputs(d_head=16, d_value=16))
    torch.testing.assert_close(TILED(q, k, v), REFERENCE(q, k, v))


def test_scores_of_any_size_neither_overflow_nor_lose_the_small_ones():
    q, k, v = (tensor.detach() for tensor in inputs())
    torch.testing.assert_close(TILED(1e3 * q, 1e2 * k, v), REFERENCE(1e3 * q, 1e2 * k, v))
    torch.testing.assert_close(TILED(q - 300, k + 300, v), REFERENCE(q - 300, k + 300, v))


def test_nan_comes_out_where_nan_is_seen_and_nowhere_else():
    q, k, v = (tensor.detach() for tensor in inputs())
    k[:, :, 30] = torch.nan
    out = TILED(q, k, v)
    assert out[:, :, 30:].isnan().all()
    assert out[:, :, :30].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_the_reference_in_it(dtype):
    exact = inputs(
        queries=300, keys=600
    )  # up to 38 tiles: sums in half precision would lose their last terms
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    truth = outcome(REFERENCE, exact)
    for mine, plain, true in zip(outcome(TILED, low), outcome(REFERENCE, low), truth, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - true).norm() <= (plain.double() - true).norm()


def test_autocast_changes_nothing():
    tensors = inputs(dtype=torch.float32)
    expected = outcome(TILED, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        for mine, exact in zip(outcome(TILED, tensors), expected, strict=True):
            torch.testing.assert_close(mine, exact, rtol=0, atol=0)


def test_a_gradient_of_the_gradient_is_refused():
    q, k, v = inputs()
    (dq,) = torch.autograd.grad(TILED(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.compile
def test_it_compiles_into_one_graph_with_its_gradient():
    tensors = inputs(queries=16, keys=24)
    documents = (torch.arange(24) // 10).expand(2, 24)
    settings = {"window": 15, "softcap": 3.0, "slopes_H": torch.rand(4).double(), "documents_BS": documents}
    compiled = torch.compile(TILED, backend="aot_eager", fullgraph=True)
    for mine, expected in zip(
        outcome(compiled, tensors, **settings), outcome(REFERENCE, tensors, **settings), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_learned_slopes_are_refused():
    with pytest.raises(ValueError, match="no gradient for ALiBi's slopes; take attention=reference"):
        TILED(*inputs(), slopes_H=torch.rand(4, requires_grad=True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (37, 37), (20, 50)])
def test_the_function_of_one_head_equals_the_reference(is_causal, queries, keys):
    tensors = [tensor.detach()[:, 0].requires_grad_() for tensor in inputs(queries=queries, keys=keys)]

    def reference(q, k, v):
        return REFERENCE(q[:, None], k[:, None], v[:, None], causal=is_causal)[:, 0]

    def flash(q, k, v):
        return FlashAttention2.apply(q, k, v, is_causal)

    for mine, expected in zip(outcome(flash, tensors), outcome(reference, tensors), strict=True):
        torch.testing.assert_close(mine, expected)


def test_it_keeps_one_number_a_query_and_that_is_the_logsumexp():
    q, k, v = (tensor.detach()[:, 0].requires_grad_() for tensor in inputs(kv_heads=4))
    saved = FlashAttention2.apply(q, k, v, False).grad_fn.saved_tensors
    (kept,) = [tensor for tensor in saved if tensor.shape == q.shape[:2]]
    torch.testing.assert_close(kept, torch.logsumexp(q @ k.transpose(1, 2) * 8**-0.5, dim=-1).detach())
    assert sum(tensor.numel() for tensor in saved) == 4 * q.numel() + q[..., 0].numel()


def test_the_saved_memory_grows_with_the_tokens_not_with_their_square():
    kept = {}
    for time in (64, 256):
        sizes = kept[time] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            TILED(*inputs(queries=time, keys=time)).sum()
    assert sum(kept[256]) == 4 * sum(kept[64])


def test_the_function_of_one_head_wants_three_dimensions():
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"FlashAttention2: shapes .* all must be \(batch, time, d_head\)"):
        FlashAttention2.apply(q, k, v, True)
    with pytest.raises(ValueError, match="20 queries and 10 keys"):
        FlashAttention2.apply(q[:, 0, :20], k[:, 0, :10], v[:, 0, :10], True)
