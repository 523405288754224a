"""The course's model functions, on worked examples and against torch's own layers."""

import math

import pytest
import torch
from torch.nn import functional

from scratchlm.cs336 import basics

BATCH, TIME, D_MODEL, NUM_HEADS, D_FF, VOCAB = 2, 17, 24, 3, 40, 31
D_HEAD = D_MODEL // NUM_HEADS
THETA = 10000.0


@pytest.fixture
def x():
    return torch.randn(BATCH, TIME, D_MODEL)


def attention_weights():
    return [torch.randn(D_MODEL, D_MODEL) / math.sqrt(D_MODEL) for _ in range(4)]


def block_weights(prefix=""):
    shapes = {f"attn.{name}_proj.weight": (D_MODEL, D_MODEL) for name in ("q", "k", "v", "output")}
    shapes |= {"ln1.weight": (D_MODEL,), "ln2.weight": (D_MODEL,)}
    shapes |= {
        "ffn.w1.weight": (D_FF, D_MODEL),
        "ffn.w2.weight": (D_MODEL, D_FF),
        "ffn.w3.weight": (D_FF, D_MODEL),
    }
    return {prefix + key: torch.randn(shape) / math.sqrt(D_MODEL) for key, shape in shapes.items()}


def rope_by_complex_numbers(x, positions, theta=THETA):
    """The paper's own picture: each adjacent pair is a complex number, multiplied by exp(i * angle)."""
    frequencies = theta ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    turns = torch.polar(torch.ones(()).double(), positions.unsqueeze(-1).double() * frequencies)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).float()


def attention_by_torch(x, weights, positions=None):
    q, k, v = (
        (x @ w.T).unflatten(-1, (NUM_HEADS, D_HEAD)).transpose(-3, -2) for w in (w for w in weights[:3])
    )
    if positions is not None:
        q, k = (rope_by_complex_numbers(part, positions) for part in (q, k))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(-3, -2).flatten(-2) @ weights[3].T


def block_by_torch(x, w):
    attn = [w[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]
    h = functional.rms_norm(x, (D_MODEL,), w["ln1.weight"], 1e-5)
    x = x + attention_by_torch(h, attn, torch.arange(x.shape[-2]))
    h = functional.rms_norm(x, (D_MODEL,), w["ln2.weight"], 1e-5)
    gate = functional.silu(h @ w["ffn.w1.weight"].T) * (h @ w["ffn.w3.weight"].T)
    return x + gate @ w["ffn.w2.weight"].T


def test_linear_equals_torch(x):
    weights = torch.randn(5, D_MODEL)
    torch.testing.assert_close(
        basics.run_linear(D_MODEL, 5, weights, x), torch.nn.functional.linear(x, weights)
    )


def test_embedding_takes_rows_for_ids_of_any_shape():
    weights = torch.randn(VOCAB, D_MODEL)
    ids = torch.randint(VOCAB, (2, 3, 4))
    assert torch.equal(basics.run_embedding(VOCAB, D_MODEL, weights, ids), weights[ids])


def test_silu_equals_torch():
    z = torch.linspace(-50, 50, 101)
    torch.testing.assert_close(basics.run_silu(z), functional.silu(z))


def test_swiglu_gates_with_w1(x):
    w1, w2, w3 = torch.randn(D_FF, D_MODEL), torch.randn(D_MODEL, D_FF), torch.randn(D_FF, D_MODEL)
    expected = (functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    torch.testing.assert_close(basics.run_swiglu(D_MODEL, D_FF, w1, w2, w3, x), expected)


def test_rmsnorm_equals_torch(x):
    gain = torch.randn(D_MODEL)
    expected = functional.rms_norm(x, (D_MODEL,), gain, 1e-5)
    torch.testing.assert_close(basics.run_rmsnorm(D_MODEL, 1e-5, gain, x), expected)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch_for_any_leading_dimensions(leading, masked):
    q, k, v = torch.randn(*leading, 5, 8), torch.randn(*leading, 7, 8), torch.randn(*leading, 7, 6)
    mask = (torch.rand(*leading, 5, 7) > 0.4) | torch.eye(5, 7, dtype=torch.bool) if masked else None
    expected = functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(basics.run_scaled_dot_product_attention(q, k, v, mask), expected)


def test_one_mask_serves_all_heads():
    q = torch.randn(2, 3, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    torch.testing.assert_close(basics.run_scaled_dot_product_attention(q, q, q, mask), expected)


def test_true_in_the_mask_means_may_attend():
    q, k = torch.zeros(1, 1, 2), torch.zeros(1, 2, 2)
    v = torch.tensor([[[1.0], [9.0]]])
    mask = torch.tensor([[[True, False]]])
    assert float(basics.run_scaled_dot_product_attention(q, k, v, mask)) == 1.0


@pytest.mark.parametrize("leading", [(BATCH,), (), (2, 2)])
def test_multihead_attention_equals_torch(leading):
    x, weights = torch.randn(*leading, TIME, D_MODEL), attention_weights()
    ours = basics.run_multihead_self_attention(D_MODEL, NUM_HEADS, *weights, x)
    torch.testing.assert_close(ours, attention_by_torch(x, weights))


@pytest.mark.parametrize("positions", [None, torch.arange(TIME), torch.arange(TIME)[None] + 5])
def test_multihead_attention_with_rope_equals_complex_rotation(x, positions):
    weights = attention_weights()
    ours = basics.run_multihead_self_attention_with_rope(
        D_MODEL, NUM_HEADS, 32, THETA, *weights, x, positions
    )
    expected = attention_by_torch(x, weights, torch.arange(TIME) if positions is None else positions[None])
    torch.testing.assert_close(ours, expected)


def test_rows_may_stand_at_different_positions(x):
    weights = attention_weights()
    positions = torch.stack([torch.arange(TIME), torch.randperm(40)[:TIME]])
    both = basics.run_multihead_self_attention_with_rope(
        D_MODEL, NUM_HEADS, 40, THETA, *weights, x, positions
    )
    for row in range(BATCH):
        alone = basics.run_multihead_self_attention_with_rope(
            D_MODEL, NUM_HEADS, 40, THETA, *weights, x[row], positions[row]
        )
        torch.testing.assert_close(both[row], alone)


@pytest.mark.parametrize("shape", [(TIME, 8), (BATCH, TIME, 8), (BATCH, 3, TIME, 8)])
def test_rope_turns_adjacent_pairs(shape):
    x, positions = torch.randn(shape), torch.arange(TIME) + 3
    expected = rope_by_complex_numbers(x, positions)
    torch.testing.assert_close(basics.run_rope(8, THETA, 32, x, positions), expected)


def test_rope_worked_example():
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    y = basics.run_rope(4, 100.0, 8, x, torch.tensor([2]))  # angles 2 * 100^0 = 2 and 2 * 100^(-1/2) = 0.2
    expected = torch.tensor([[math.cos(2), math.sin(2), math.cos(0.2), math.sin(0.2)]])
    torch.testing.assert_close(y, expected)


def test_block_equals_the_one_written_with_torch(x):
    weights = block_weights()
    ours = basics.run_transformer_block(D_MODEL, NUM_HEADS, D_FF, 32, THETA, weights, x)
    torch.testing.assert_close(ours, block_by_torch(x, weights))


@pytest.mark.parametrize("num_tokens", [TIME, 5])
def test_language_model_equals_the_one_written_with_torch(num_tokens):
    weights = {"token_embeddings.weight": torch.randn(VOCAB, D_MODEL), "ln_final.weight": torch.rand(D_MODEL)}
    weights |= block_weights("layers.0.") | block_weights("layers.1.")
    weights |= {"lm_head.weight": torch.randn(VOCAB, D_MODEL) / math.sqrt(D_MODEL)}
    ids = torch.randint(VOCAB, (BATCH, num_tokens))
    ours = basics.run_transformer_lm(VOCAB, TIME, D_MODEL, 2, NUM_HEADS, D_FF, THETA, weights, ids)
    x = weights["token_embeddings.weight"][ids]
    for layer in range(2):
        prefix = f"layers.{layer}."
        own = {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}
        x = block_by_torch(x, own)
    x = functional.rms_norm(x, (D_MODEL,), weights["ln_final.weight"], 1e-5)
    torch.testing.assert_close(ours, x @ weights["lm_head.weight"].T)


def test_a_missing_weight_is_an_error(x):
    weights = block_weights()
    del weights["ln2.weight"]
    with pytest.raises(RuntimeError, match=r"ln2\.weight"):
        basics.run_transformer_block(D_MODEL, NUM_HEADS, D_FF, 32, THETA, weights, x)


def test_given_weights_are_neither_changed_nor_kept(x):
    gain = torch.full((D_MODEL,), 2.0)
    basics.run_rmsnorm(D_MODEL, 1e-5, gain, x).sum().backward()
    assert torch.equal(gain, torch.full((D_MODEL,), 2.0))
    assert gain.grad is None
