"""Claims about maximal update parametrisation: the same model at its base, and steps alike at any width."""

import math

import pytest
import torch

from scratchlm.loss import cross_entropy
from scratchlm.model import MODELS, ModelConfig
from scratchlm.model.linear import glorot_std
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.groups import parameter_groups
from scratchlm.optim.width import with_rates_of_width

IDS = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))


def model(d_model, **settings):
    torch.manual_seed(3)
    known = {
        "vocab_size": 50,
        "context_length": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention": "reference",
    }
    return MODELS.get("transformer")(ModelConfig(**{**known, "d_model": d_model, **settings}))


@pytest.mark.parametrize(
    "settings", [{}, {"tied": True}, {"qk_norm": True, "bias": True}, {"init_std": 0.02}], ids=str
)
def test_at_the_base_width_nothing_changes(settings):
    usual, at_base = model(32, **settings), model(32, mup_width=32, **settings)
    for (name, one), other in zip(usual.state_dict().items(), at_base.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(usual(IDS[:, :-1]), at_base(IDS[:, :-1]))


def test_scores_are_divided_by_the_width_of_a_head():
    """Multiplied queries, or gains where queries are normalised: as if those weights were so much smaller."""
    for settings in ({"bias": True}, {"qk_norm": True}):
        wide, twin = model(64, mup_width=16, **settings), model(64, **settings)
        assert wide.layers[0].attn.score_factor == math.sqrt(8 / 32)
        for layer, other in zip(wide.layers, twin.layers, strict=True):
            layer.load_state_dict(other.state_dict())
            scaled = (
                [other.attn.q_norm.weight]
                if "qk_norm" in settings
                else [other.attn.q_proj.weight, other.attn.q_proj.bias]
            )
            with torch.no_grad():
                for parameter in scaled:
                    parameter.normal_()
                layer.load_state_dict(other.state_dict())
                for parameter in scaled:
                    parameter.mul_(0.5)
        x = torch.randn(2, 5, 64)
        found, expected = (one.layers[0].attn(x, one.position_embeddings) for one in (wide, twin))
        torch.testing.assert_close(found, expected)


def test_more_heads_of_one_width_leave_the_scores_alone():
    assert model(64, num_heads=8, mup_width=16, mup_heads=2).layers[0].attn.score_factor == 1


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_divided_by_the_ratio_of_widths(tied):
    wide = model(64, mup_width=16, tied=tied)
    weight = wide.token_embeddings.weight if tied else wide.lm_head.weight
    x = torch.randn(3, 64)
    torch.testing.assert_close(wide.head(x), x @ weight.T / 4)


def test_initial_values_are_those_of_the_base_where_they_do_not_shrink_by_themselves():
    def std(weight):
        return float(weight.detach().std())

    wide, many = model(64, mup_width=16, vocab_size=2000), {"rel": 0.02}
    assert std(wide.lm_head.weight) == pytest.approx(0.9866 * glorot_std(16, 2000), **many)
    assert std(wide.token_embeddings.weight) == pytest.approx(0.9866, **many)
    assert std(model(64, mup_width=16, tied=True, vocab_size=2000).token_embeddings.weight) == pytest.approx(
        0.9866 / 4, **many
    )
    narrow, large = model(16, init_std=0.02), model(64, mup_width=16, init_std=0.02)
    ratio = std(large.layers[0].ffn.w1.weight) / std(narrow.layers[0].ffn.w1.weight)
    assert ratio == pytest.approx(0.5, rel=0.05)


def moved(d_model, steps=6, **settings):
    """How far AdamW's first steps move the logits: root mean square."""
    one, adamw = model(d_model, **settings), {"lr": 1e-2, "weight_decay": 0.0}
    groups = parameter_groups(one.named_parameters())
    groups = with_rates_of_width(groups, one.config.width_ratio, "adamw", adamw)
    optimizer = OPTIMIZERS.build("adamw", groups, **adamw)
    with torch.no_grad():
        before = one(IDS[:, :-1])
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(one(IDS[:, :-1]), IDS[:, 1:]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((one(IDS[:, :-1]) - before).square().mean().sqrt())


def test_steps_move_the_logits_alike_at_any_width():
    widths = (16, 128)
    usual = [moved(width) for width in widths]
    fitted = [moved(width, mup_width=16) for width in widths]
    assert usual[0] == fitted[0]
    assert usual[1] > 2 * usual[0], "eight times as wide: much farther"
    assert 0.5 < fitted[1] / fitted[0] < 1.5, (
        "a part that shrinks with the width is there, too: the head at the start"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mup_heads": 2}, "mup_heads are the heads at mup_width, which is not given"),
        ({"mup_width": 15}, "mup_width=15 is not divisible by its 2 heads; .* one of 1, 3, 5, 15"),
        ({"name": "bigram", "mup_width": 16}, "mup_width is for transformers; bigram has no width"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"vocab_size": 50, "d_model": 32, "num_heads": 2, **settings})
