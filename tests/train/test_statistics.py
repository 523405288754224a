"""Sizes of a model's parts: right numbers, and nothing that the run could notice."""

import math

import pytest
import torch

from scratchlm.loss import cross_entropy
from scratchlm.model import MODELS, ModelSettings
from scratchlm.train.statistics import Statistics, rms

TINY = {"context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1}


def build(**settings):
    torch.manual_seed(0)
    return MODELS.get("transformer")(ModelSettings(**{**TINY, **settings}).with_vocabulary(19))


def step(model, optimizer, compute=None):
    ids = torch.randint(0, 19, (2, 17))
    optimizer.zero_grad()
    loss = (compute or loss_of(model))(ids[:, :-1], ids[:, 1:])
    loss.backward()
    optimizer.step()
    return loss.detach()


def loss_of(model):
    return lambda inputs, targets: cross_entropy(model(inputs), targets)


def mean_square(tensors):
    numbers = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    return float(numbers.square().mean())


def test_rms_of_a_worked_example():
    assert rms([torch.tensor([3.0, 4.0]), torch.tensor([[5.0]])]).item() == pytest.approx(math.sqrt(50 / 3))


def test_every_part_has_its_own_sizes():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = Statistics(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    statistics.before_step()
    step(model, optimizer)
    found = statistics.collect(torch.randint(0, 19, (1, 16)))
    branches = [f"layers.{i}{branch}" for i in range(2) for branch in ("", ".attn", ".ffn")]
    assert list(found) == ["token_embeddings", *branches, "ln_final", "lm_head", "logits"]
    assert list(found.pop("logits")) == ["activation"]
    for part, sizes in found.items():
        assert list(sizes) == ["weight", "gradient", "update"] + ["activation"] * (part != "lm_head")
        named = [(name, p) for name, p in model.named_parameters() if name.startswith(f"{part}.")]
        assert sizes["weight"] == pytest.approx(math.sqrt(mean_square([p for _, p in named])))
        assert sizes["gradient"] == pytest.approx(math.sqrt(mean_square([p.grad for _, p in named])))
        moved = mean_square([p - before[name] for name, p in named]) / mean_square(
            [before[name] for name, _ in named]
        )
        assert sizes["update"] == pytest.approx(math.sqrt(moved), rel=1e-3)


def test_activations_are_those_of_the_forward_pass():
    model = build(dropout=0.0)
    ids = torch.randint(0, 19, (1, 16))
    found = Statistics(model).collect(ids)
    x = model.token_embeddings(ids)
    for number, layer in enumerate(model.layers):
        attended = layer.attn(layer.ln1(x), model.position_embeddings)
        assert found[f"layers.{number}.attn"]["activation"] == pytest.approx(
            math.sqrt(mean_square([attended]))
        )
        x = layer(x, model.position_embeddings)
        assert found[f"layers.{number}"]["activation"] == pytest.approx(math.sqrt(mean_square([x])))
    for part, tensor in {"ln_final": model.ln_final(x), "logits": model(ids)}.items():
        assert found[part]["activation"] == pytest.approx(math.sqrt(mean_square([tensor])))


def test_what_is_not_known_is_left_out():
    model = build()
    found = Statistics(model).collect()
    assert {tuple(sizes) for sizes in found.values()} == {("weight",)}
    bigram = MODELS.get("bigram")(ModelSettings(name="bigram", context_length=8).with_vocabulary(5))
    sizes = Statistics(bigram).collect(torch.zeros(1, 8, dtype=torch.long))
    assert sizes == {"token_embeddings": {"weight": 0.0, "activation": 0.0}, "logits": {"activation": 0.0}}


def test_an_old_copy_of_the_weights_is_used_once():
    model = build()
    statistics = Statistics(model)
    statistics.before_step()
    assert statistics.collect()["lm_head"]["update"] == 0.0
    assert "update" not in statistics.collect()["lm_head"]


def test_a_run_with_statistics_is_the_same_in_every_bit():
    runs = []
    for watched in (False, True):
        model = build()
        optimizer, statistics = torch.optim.AdamW(model.parameters()), Statistics(model)
        losses = []
        for _ in range(3):
            if watched:
                statistics.before_step()
            losses.append(step(model, optimizer))
            if watched:
                statistics.collect(torch.zeros(1, 16, dtype=torch.long))
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())
        runs.append([*losses, *model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(plain, watched) for plain, watched in zip(*runs, strict=True))


def test_a_forward_pass_that_fails_leaves_no_hooks():
    model = build()
    with pytest.raises(ValueError, match="17 tokens are more than context_length=16"):
        Statistics(model).collect(torch.zeros(1, 17, dtype=torch.long))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_lower_precision_is_measured_in_float32():
    model, ids = build(dropout=0.0), torch.randint(0, 19, (1, 16))
    low = Statistics(model).collect(ids, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    high = Statistics(model).collect(ids)
    assert low["logits"] != high["logits"]
    for part, sizes in high.items():
        if "activation" in sizes:
            assert low[part]["activation"] == pytest.approx(sizes["activation"], rel=0.02)


@pytest.mark.compile
def test_a_compiled_step_is_not_compiled_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    model = build()
    optimizer, statistics = torch.optim.AdamW(model.parameters()), Statistics(model)
    step(model, optimizer)  # einops remembers what it has seen, and dynamo would see that it does
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compute = torch.compile(loss_of(model), dynamic=False, fullgraph=True, backend=counter)
    for _ in range(3):
        step(model, optimizer, compute)
        found = statistics.collect(torch.zeros(1, 16, dtype=torch.long))
        assert "activation" in found["layers.1.ffn"]
    assert counter.frame_count == 1
