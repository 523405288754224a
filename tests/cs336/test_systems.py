"""Assignment 2's FlashAttention in plain PyTorch, asked for what the course asks."""

import pytest
import torch

from scratchlm.cs336 import systems

BATCH, TIME, D_HEAD = 4, 128, 64


@pytest.fixture
def inputs():
    return [torch.randn(BATCH, TIME, D_HEAD, requires_grad=True) for _ in range(3)]


def attention_and_logsumexp(q, k, v, is_causal):
    scores = q @ k.transpose(1, 2) / D_HEAD**0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones(TIME, TIME).triu(1).bool(), -torch.inf)
    return scores.softmax(dim=-1) @ v, torch.logsumexp(scores, dim=-1)


@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_keeps_the_output_and_one_logsumexp_a_query(inputs, is_causal):
    function = systems.get_flashattention_autograd_function_pytorch()
    out = function.apply(*inputs, is_causal)
    expected, logsumexp = attention_and_logsumexp(*inputs, is_causal)
    torch.testing.assert_close(out, expected)
    kept = [tensor for tensor in out.grad_fn.saved_tensors if tensor.shape == (BATCH, TIME)]
    assert len(kept) == 1
    torch.testing.assert_close(kept[0], logsumexp.detach())


@pytest.mark.parametrize("is_causal", [False, True])
def test_backward_equals_autograd(inputs, is_causal):
    function = systems.get_flashattention_autograd_function_pytorch()
    upstream = torch.randn(BATCH, TIME, D_HEAD)
    ours = torch.autograd.grad(function.apply(*inputs, is_causal), inputs, upstream)
    expected = torch.autograd.grad(attention_and_logsumexp(*inputs, is_causal)[0], inputs, upstream)
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_both_are_functions_with_a_gradient():
    for get in (
        systems.get_flashattention_autograd_function_pytorch,
        systems.get_flashattention_autograd_function_triton,
    ):
        assert issubclass(get(), torch.autograd.Function)


def test_triton_without_a_gpu_says_why_not(inputs):
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with pytest.raises(ValueError, match="attention=triton cannot run on cpu"):
        systems.get_flashattention_autograd_function_triton().apply(*inputs, True)


@pytest.mark.compile
def test_the_leaderboards_call_compiles(inputs):
    compiled = torch.compile(systems.FlashAttention2.apply, backend="aot_eager", fullgraph=True)
    ours = torch.autograd.grad(compiled(*inputs, True).sum(), inputs)
    expected = torch.autograd.grad(attention_and_logsumexp(*inputs, True)[0].sum(), inputs)
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, reference)
