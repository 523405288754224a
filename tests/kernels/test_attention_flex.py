"""torch's flex_attention under our signature: the reference's results; its limits are said clearly."""

import itertools

import pytest
import torch

from scratchlm.kernels import choose

REFERENCE = choose("attention", "reference").function
FLEX = choose("attention", "flex").function


def inputs(*, kv_heads=2, queries=30, keys=40, d_value=16, device="cpu"):
    shapes = (4, queries, 16), (kv_heads, keys, 16), (kv_heads, keys, d_value)
    return [torch.randn(2, *shape, device=device) for shape in shapes]


def settings(window, softcap, biased, documents, device="cpu"):
    numbers = torch.tensor([[0] * 3 + [1] * 20 + [2] * 17, [5] * 39 + [6]], device=device)
    return {
        "window": window,
        "softcap": softcap,
        "slopes_H": torch.rand(4, device=device) if biased else None,
        "documents_BS": numbers if documents else None,
    }


@pytest.mark.compile  # torch runs its attention through its compiler's front end, which the hook breaks
@pytest.mark.parametrize(
    ("window", "softcap", "biased", "documents"),
    [*itertools.product([None, 7], [None, 1.5], [False, True], [False]), (None, None, False, True)],
)
def test_equals_the_reference_under_every_mask(window, softcap, biased, documents):
    torch._dynamo.reset()
    tensors, chosen = inputs(), settings(window, softcap, biased, documents)
    torch.testing.assert_close(FLEX(*tensors, **chosen), REFERENCE(*tensors, **chosen))


@pytest.mark.compile
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_reference_for_any_number_of_key_heads(kv_heads, causal):
    torch._dynamo.reset()
    tensors = inputs(kv_heads=kv_heads)
    torch.testing.assert_close(FLEX(*tensors, causal=causal), REFERENCE(*tensors, causal=causal))


@pytest.mark.compile
def test_all_masks_together_and_not_causal_documents():
    torch._dynamo.reset()
    tensors, chosen = inputs(d_value=8), settings(7, 1.5, True, True)
    torch.testing.assert_close(FLEX(*tensors, **chosen), REFERENCE(*tensors, **chosen))
    chosen = {"causal": False, "documents_BS": chosen["documents_BS"]}
    torch.testing.assert_close(FLEX(*tensors, **chosen), REFERENCE(*tensors, **chosen))


def test_empty_inputs_have_empty_results():
    q, k, v = inputs()
    assert FLEX(q[:0], k[:0], v[:0]).shape == (0, 4, 30, 16)
    assert FLEX(q[:, :, :0], k, v).shape == (2, 4, 0, 16)


def test_a_gradient_on_a_cpu_is_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="no gradient on a CPU; take attention=auto or tiled"):
        FLEX(q.requires_grad_(), k, v)


@pytest.mark.compile
def test_without_a_gradient_parameters_are_no_obstacle():
    torch._dynamo.reset()
    q, k, v = inputs()
    with torch.no_grad():
        torch.testing.assert_close(FLEX(q.requires_grad_(), k, v), REFERENCE(q, k, v))


@pytest.mark.gpu
@pytest.mark.compile
@pytest.mark.parametrize(
    ("window", "softcap", "biased", "documents"), [(None, None, False, False), (7, 1.5, True, True)]
)
def test_compiled_on_a_gpu_it_equals_the_reference_with_its_gradients(window, softcap, biased, documents):
    tensors = [tensor.requires_grad_() for tensor in inputs(device="cuda")]
    chosen = settings(window, softcap, biased, documents, "cuda")
    outs = FLEX(*tensors, **chosen), REFERENCE(*tensors, **chosen)
    torch.testing.assert_close(*outs, atol=1e-3, rtol=1e-3)  # its products are tf32
    for mine, expected in zip(
        *(torch.autograd.grad(out.square().sum(), tensors) for out in outs), strict=True
    ):
        torch.testing.assert_close(mine, expected, atol=1e-2, rtol=1e-2)
