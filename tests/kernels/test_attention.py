"""Attention kernels: equal to torch's and to each other, for every mask and number of key heads."""

import itertools

import pytest
import torch
from torch.nn import functional

from scratchlm.kernels import KERNELS, choose
from scratchlm.kernels.attention_reference import (
    alibi_bias,
    causal_mask,
    masked_attention,
    same_document,
    softmax,
)

NAMES = [name for name in sorted(KERNELS["attention"]) if name != "flex" and "triton" not in name]
"""Every attention that runs on a CPU, forward and backward."""


def inputs(heads=4, kv_heads=2, queries=9, keys=9, d_head=8, dtype=torch.float32):
    return (
        torch.randn(2, heads, queries, d_head, dtype=dtype),
        torch.randn(2, kv_heads, keys, d_head, dtype=dtype),
        torch.randn(2, kv_heads, keys, d_head, dtype=dtype),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 5, 300])
def test_equals_torch_for_grouped_heads_and_a_past(name, kv_heads, queries):
    keys = queries + 4
    q, k, v = inputs(kv_heads=kv_heads, queries=queries, keys=keys)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(choose("attention", name).function(q, k, v), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_torch(name):
    q, k, v = (tensor.double().requires_grad_() for tensor in inputs(queries=150, keys=150))
    upstream = torch.randn_like(q)
    expected = torch.autograd.grad(
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), (q, k, v), upstream
    )
    ours = torch.autograd.grad(choose("attention", name).function(q, k, v), (q, k, v), upstream)
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(
    ("window", "softcap", "biased"),
    list(itertools.product([None, 1, 3, 200], [None, 2.0], [False, True])),
)
def test_blocks_equal_the_reference(window, softcap, biased):
    q, k, v = inputs(queries=270, keys=290)
    settings = {
        "window": window,
        "softcap": softcap,
        "slopes_H": torch.rand(4) if biased else None,
    }
    reference = choose("attention", "reference").function(q, k, v, **settings)
    torch.testing.assert_close(choose("attention", "blocks").function(q, k, v, **settings), reference)
    if softcap is None:
        torch.testing.assert_close(choose("attention", "sdpa").function(q, k, v, **settings), reference)


@pytest.mark.parametrize("name", NAMES)
def test_the_future_does_not_change_the_past(name):
    q, k, v = inputs(queries=200, keys=200)
    before = choose("attention", name).function(q, k, v)[:, :, :130]
    k[:, :, 130:], v[:, :, 130:] = 1e3, -1e3
    torch.testing.assert_close(choose("attention", name).function(q, k, v)[:, :, :130], before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [None, 20])
def test_documents_attend_as_if_each_were_alone(name, window):
    q, k, v = (tensor.double().requires_grad_() for tensor in inputs(queries=200, keys=200))
    ends = ((0, 37, 38, 140, 200), (0, 130, 131, 199, 200))
    documents = torch.zeros(2, 200, dtype=torch.int64)
    alone = torch.empty_like(q)
    reference = choose("attention", "reference").function
    for row, bounds in enumerate(ends):
        for number, (first, last) in enumerate(itertools.pairwise(bounds)):
            documents[row, first:last] = number
            part = (tensor[row : row + 1, :, first:last] for tensor in (q, k, v))
            alone[row : row + 1, :, first:last] = reference(*part, window=window)
    together = choose("attention", name).function(q, k, v, window=window, documents_BS=documents)
    torch.testing.assert_close(together, alone)
    upstream = torch.randn_like(q)
    for mine, expected in zip(
        torch.autograd.grad(together, (q, k, v), upstream),
        torch.autograd.grad(alone, (q, k, v), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", NAMES)
def test_documents_and_biases_and_past_keys_go_together(name):
    q, k, v = inputs(queries=140, keys=150)
    documents = (torch.arange(150) // 60).expand(2, 150)
    settings = {"slopes_H": torch.rand(4), "documents_BS": documents}
    mask = causal_mask(140, 150) & same_document(documents, 140)
    expected = masked_attention(q, k, v, mask_TS=mask, bias_HTS=alibi_bias(settings["slopes_H"], 140, 150))
    torch.testing.assert_close(choose("attention", name).function(q, k, v, **settings), expected)


def test_the_document_mask_of_a_worked_example():
    mask = same_document(torch.tensor([[0, 0, 1]]), 2)
    assert mask.tolist() == [[[[True, True, False], [False, False, True]]]]


@pytest.mark.parametrize("name", NAMES)
def test_a_window_hides_what_lies_before_it(name):
    q, k, v = inputs(queries=200, keys=200)
    before = choose("attention", name).function(q, k, v, window=16)[:, :, 180:]
    k[:, :, :165], v[:, :, :165] = 50.0, 1e3
    torch.testing.assert_close(choose("attention", name).function(q, k, v, window=16)[:, :, 180:], before)


def test_a_window_of_one_returns_the_token_itself():
    q, k, v = inputs(kv_heads=4)
    torch.testing.assert_close(choose("attention").function(q, k, v, window=1), v)


def test_softcap_bounds_the_scores():
    # scores 0 and 1000: without a cap all weight on the first key; capped at 2 the weights are e^2 : 1
    q, k = torch.tensor([[[[100.0]]]]), torch.tensor([[[[10.0], [0.0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    assert choose("attention").function(q, k, v).item() == 1.0
    share = torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 1)
    assert choose("attention").function(q, k, v, softcap=2.0).item() == pytest.approx(share.item())


def test_the_causal_mask_of_a_worked_example():
    assert causal_mask(2, 3).tolist() == [[True, True, False], [True, True, True]]
    assert causal_mask(2, 3, window=2).tolist() == [[True, True, False], [False, True, True]]


def test_masked_attention_takes_any_mask():
    q, k, v = inputs(kv_heads=4)
    mask = torch.rand(2, 4, 9, 9) < 0.5
    mask[..., 0] = True
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(masked_attention(q, k, v, mask_TS=mask), expected)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_equals_torch_and_stands_any_size(dim):
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim))
    torch.testing.assert_close(softmax(x + 1e4, dim), torch.softmax(x + 1e4, dim))
    torch.testing.assert_close(softmax(1000 * x, dim), torch.softmax(1000 * x, dim))


@pytest.mark.parametrize("name", ["reference", "blocks"])
def test_bfloat16_errs_at_most_twice_as_much_as_torch(name):
    q, k, v = inputs(queries=200, keys=200)
    truth = functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    )
    low = [tensor.bfloat16() for tensor in (q, k, v)]
    torchs = masked_sdpa_error(low, truth)
    ours = (choose("attention", name).function(*low).double() - truth).norm()
    assert ours <= 2 * torchs


def masked_sdpa_error(low, truth):
    return (
        functional.scaled_dot_product_attention(*low, is_causal=True, enable_gqa=True).double() - truth
    ).norm()


def test_auto_is_ours_and_says_why():
    choice = choose("attention")
    assert choice.name == "blocks"
    assert "future" in choice.reason
    assert choose("attention", "sdpa").reason == "as configured"


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="Did you mean 'reference'"):
        choose("attention", "referense")
    with pytest.raises(ValueError, match="unknown operation 'atention'"):
        choose("atention")


def test_sdpa_refuses_the_softcap():
    with pytest.raises(ValueError, match="sdpa cannot cap scores"):
        choose("attention", "sdpa").function(*inputs(), softcap=3.0)
