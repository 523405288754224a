"""The fused runner: the model's own logits, whatever its parts, and rows that do not see each other."""

import pytest
import torch

from scratchlm.generate.engine import Engine
from scratchlm.generate.layers_compiled import obstacle as obstacle_to_compiled_layers
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner, fastest_runner, obstacle
from scratchlm.kernels.attention_decode import DecodeSettings, attend_slots_reference
from scratchlm.model import MODELS, ModelConfig

PARTS = [
    {},
    {"num_kv_heads": 2, "bias": True, "qk_norm": True, "window": 5},
    {"position": "alibi", "softcap": 3.0, "tied": True, "logit_softcap": 5.0},
    {"position": "learned", "norm": "layernorm", "feedforward": "gelu", "placement": "post"},
    {"position": "sinusoidal", "placement": "none", "mup_width": 16, "feedforward": "relu2"},
    {"position": "none", "mup_width": 16, "qk_norm": True, "num_kv_heads": 1},
    {"norm": {"name": "rmsnorm", "gain": False}, "mup_width": 16, "feedforward": "silu", "bias": True},
    {"feedforward": "relu2", "tied": True, "num_heads": 2, "qk_norm": True},
]


def build(**settings):
    base = {"vocab_size": 97, "context_length": 40, "d_model": 32, "num_layers": 2, "num_heads": 4}
    model = MODELS.build("transformer", ModelConfig(**{**base, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)  # gains and offsets that do something
    return model


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(parts) or "default")
def test_logits_are_those_of_the_model(parts):
    model = build(**parts)
    ids = torch.randint(97, (30,)).tolist()
    runner = FusedRunner(model, 3)
    rows = [runner.logits(runner.prefill(1, ids[:7])), runner.logits(runner.prefill(1, ids[7:11]))]
    rows += [runner.decode([1], [token_id]) for token_id in ids[11:]]
    torch.testing.assert_close(torch.cat(rows), model(torch.tensor([ids]))[0].detach(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, None),
        ({"feedforward": "relu2", "bias": True, "position": "alibi"}, None),
        ({"norm": "layernorm"}, "a norm is no RMSNorm"),
        ({"placement": "post"}, "placement post"),
        ({"feedforward": "gelu"}, "feed-forward GELUFeedForward"),
    ],
)
def test_common_models_run_compiled_as_a_whole_and_the_others_tell_why_not(parts, reason):
    runner = FusedRunner(build(**parts), 1)
    assert obstacle_to_compiled_layers(runner.layers, runner._ln_final) == reason
    assert (runner.whole is None) == (reason is not None)


def test_with_many_threads_a_large_model_is_left_to_torch(monkeypatch):
    monkeypatch.setattr("scratchlm.generate.layers_compiled.LARGE", 1000)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    assert FusedRunner(build(), 1).whole is None
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    assert FusedRunner(build(), 1).whole is not None


@pytest.mark.parametrize("parts", [0, 1, 2, 7], ids=["rope", "qk_norm-window", "alibi-softcap", "relu2"])
def test_a_short_chunk_has_the_bits_of_one_token_at_a_time(parts):
    runner = FusedRunner(build(**PARTS[parts]), 3)
    ids = torch.randint(97, (25,)).tolist()
    runner.prefill(0, ids[:9])
    chunk = runner.logits(runner.prefill(0, ids[9:]))
    runner.prefill(2, ids[:9])
    assert torch.equal(chunk, torch.cat([runner.decode([2], [token_id]) for token_id in ids[9:]]))


def test_a_row_has_the_same_bits_in_every_slot_and_beside_any_neighbour():
    runner = FusedRunner(build(num_kv_heads=2), 8)
    ids = torch.randint(97, (20,)).tolist()
    for slot in range(8):
        runner.prefill(slot, ids[: 12 if slot % 3 else 5])
    ready = [slot for slot in range(8) if slot % 3]
    together = runner.decode(ready, [ids[12]] * len(ready))
    for slot in ready:
        runner.clear(slot)
        runner.prefill(slot, ids[:12])
        assert torch.equal(runner.decode([slot], [ids[12]])[0], together[0])


@pytest.mark.parametrize("parts", [0, 1, 2], ids=["rope", "qk_norm-window", "alibi-softcap"])
def test_the_compiled_attention_equals_the_one_written_out(parts):
    runner = FusedRunner(build(**PARTS[parts]), 4)
    layer, compiled = runner.layers[0], runner.compiled[0]
    generator = torch.Generator().manual_seed(1)
    heads, groups = layer.num_heads, layer.num_groups
    q, k, v = (torch.randn(4, n, 8, generator=generator) * 3 for n in (heads, groups, groups))
    keys, values = (torch.randn(4, groups, 40, 8, generator=generator) for _ in range(2))
    layer.keys.copy_(keys)
    layer.values.copy_(values)
    positions = torch.tensor([0, 39, -1, 17])
    expected = attend_slots_reference(q, k, v, keys, values, positions, layer.settings)
    torch.testing.assert_close(compiled(q, k, v, positions.numpy()), expected)
    torch.testing.assert_close(layer.keys, keys)
    torch.testing.assert_close(layer.values, values)


def test_scores_far_apart_do_not_overflow():
    settings = DecodeSettings(scale=100.0)
    q, k, v = torch.ones(1, 1, 4), torch.ones(1, 1, 4), torch.ones(1, 1, 4)
    keys, values = -torch.ones(1, 1, 8, 4), torch.full((1, 1, 8, 4), 7.0)
    out = attend_slots_reference(q, k, v, keys, values, torch.tensor([5]), settings)
    runner = FusedRunner(build(num_heads=1, position="none"), 1)
    layer, compiled = runner.layers[0], runner.compiled[0]
    assert torch.equal(out, v)
    wide = torch.full((1, 1, 32), 30.0)
    layer.keys.fill_(-30.0)
    layer.values.fill_(7.0)
    gathered = compiled(wide, wide, torch.ones(1, 1, 32), torch.tensor([5]).numpy())
    assert torch.equal(gathered[0, 0, :1], v[0, 0, :1])


def test_weights_that_change_in_place_are_seen():
    model = build()
    runner = FusedRunner(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    rows = runner.logits(runner.prefill(0, [3, 4, 5]))
    torch.testing.assert_close(rows, model(torch.tensor([[3, 4, 5]]))[0].detach(), atol=2e-5, rtol=2e-5)


def test_other_models_run_plainly():
    bigram = MODELS.build("bigram", ModelConfig(name="bigram", vocab_size=97, context_length=8))
    assert "BigramLM is no plain transformer" in obstacle(bigram)
    assert "not float32 on the CPU" in obstacle(build().double())
    heard = build()
    handle = heard.layers[0].register_forward_hook(lambda *_: None)
    assert "listens" in obstacle(heard)
    handle.remove()
    assert isinstance(fastest_runner(heard, 1), FusedRunner)
    assert isinstance(Engine(bigram, None, slots=1).runner, PlainRunner)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(fastest_runner(heard, 1), PlainRunner)
    with pytest.raises(ValueError, match=r"FusedRunner: its weights are not float32 .* take PlainRunner"):
        FusedRunner(build().double(), 1)
