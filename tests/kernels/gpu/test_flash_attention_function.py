"""Assignment 2's FlashAttention in Triton (cs336/systems.py), interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from scratchlm.cs336.systems import FlashAttention2, get_flashattention_autograd_function_triton

pytestmark = pytest.mark.interpret
FUNCTION = get_flashattention_autograd_function_triton()


def inputs(*, queries=70, keys=70, d_head=16, d_value=16, dtype=torch.float32):
    shapes = (queries, d_head), (keys, d_head), (keys, d_value)
    return [torch.randn(2, *shape, dtype=dtype).requires_grad_() for shape in shapes]


def outcome(function, tensors, is_causal):
    out = function.apply(*tensors, is_causal)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, tensors, upstream)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys", "d_value"), [(64, 64, 16), (70, 70, 24), (1, 33, 16)])
def test_equals_the_tiles_of_plain_tensor_code(is_causal, queries, keys, d_value):
    tensors = inputs(queries=queries, keys=keys, d_value=d_value)
    for mine, expected in zip(
        outcome(FUNCTION, tensors, is_causal), outcome(FlashAttention2, tensors, is_causal), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_it_keeps_one_logsumexp_a_query():
    q, k, v = inputs()
    saved = FUNCTION.apply(q, k, v, True).grad_fn.saved_tensors
    (kept,) = [tensor for tensor in saved if tensor.shape == (2, 70)]
    future = torch.ones(70, 70).triu(1).bool()
    scores = (q @ k.transpose(1, 2) / 4).masked_fill(future, -torch.inf)
    torch.testing.assert_close(kept, torch.logsumexp(scores, dim=-1).detach())


def test_it_compiles_into_one_graph():
    tensors = inputs()
    compiled = torch.compile(FUNCTION.apply, backend="aot_eager", fullgraph=True)
    ours = torch.autograd.grad(compiled(*tensors, True).sum(), tensors)
    expected = torch.autograd.grad(FlashAttention2.apply(*tensors, True).sum(), tensors)
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_wrong_inputs_are_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"shapes .* all must be \(batch, time, d_head\)"):
        FUNCTION.apply(q[0], k[0], v[0], True)
    with pytest.raises(ValueError, match=r"inputs of torch.float32, torch.float64; all must be"):
        FUNCTION.apply(q.double(), k, v, True)
    with pytest.raises(ValueError, match="width 300; the kernels take up to 256"):
        FUNCTION.apply(*inputs(d_head=300, d_value=300), True)
    with pytest.raises(ValueError, match="70 queries and 60 keys"):
        FUNCTION.apply(*inputs(keys=60), True)
    with pytest.raises(ValueError, match="several devices"):
        FUNCTION.apply(q, k.to("meta"), v, True)
