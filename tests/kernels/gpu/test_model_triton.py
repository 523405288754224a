"""A whole transformer on our kernels, interpreted: the same logits and gradients as on the plain ones."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.model import MODELS, ModelSettings
from scratchlm.model.attention import CausalSelfAttention
from scratchlm.model.norm import RMSNorm
from scratchlm.model.position import RoPE

pytestmark = pytest.mark.interpret

SETTINGS = {"d_model": 32, "num_heads": 4, "num_layers": 2, "context_length": 24, "d_ff": 48}


def on_triton(model):
    """The same model, its parts on the kernels that a GPU would choose."""
    for part in model.modules():
        if isinstance(part, RMSNorm):
            part.rms_norm = choose("rms_norm", "triton", "cpu").function
            part.add_rms_norm = choose("add_rms_norm", "triton", "cpu").function
        elif isinstance(part, RoPE):
            part.turn = choose("rotate", "triton", "cpu").function
        elif isinstance(part, CausalSelfAttention):
            part.project_heads = choose("project_heads", "triton", "cpu").function
            part.attention = choose("attention", "triton", "cpu").function
    return model


def build(**more):
    torch.manual_seed(0)
    return MODELS.get("transformer")(ModelSettings(**SETTINGS | more).with_vocabulary(30))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"qk_norm": True, "num_kv_heads": 2, "bias": True},
        {"position": "alibi", "placement": "post"},
        {"position": "none", "window": 7, "softcap": 20.0},
    ],
    ids=["default", "qk_norm", "alibi", "window"],
)
def test_logits_and_gradients_equal_the_plain_kernels(more):
    ids = torch.randint(0, 30, (2, 24))
    found = []
    for model in (build(**more), on_triton(build(**more))):
        logits = model(ids)
        logits.square().mean().backward()
        found.append([logits, *(parameter.grad for parameter in model.parameters())])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_a_cache_continues_what_was_read():
    model, ids = on_triton(build(qk_norm=True)), torch.randint(0, 30, (1, 9))
    with torch.no_grad():
        whole = model(ids)
        cache = model.make_cache()
        parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 6), (6, 7), (7, 9))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_a_training_step_compiles_without_a_break():
    model, ids = on_triton(build(num_layers=1)), torch.randint(0, 30, (1, 24))

    def loss(ids):
        return model(ids).square().mean()

    parameters = list(model.parameters())
    expected = torch.autograd.grad(loss(ids), parameters)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for mine, truth in zip(torch.autograd.grad(compiled(ids), parameters), expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-6)


def test_checkpointed_blocks_have_the_same_gradients():
    found = []
    for recompute in (False, True):
        model, ids = on_triton(build()), torch.arange(24)[None]
        model.gradient_checkpointing = recompute
        model(ids).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept)
