"""The transformer: its keys, its causality and its cache, for every combination of parts."""

import itertools

import pytest
import torch

from scratchlm.model import MODELS, ModelConfig
from scratchlm.model.block import dropout
from scratchlm.model.feedforward import FEEDFORWARDS
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.norm import NORMS
from scratchlm.model.position import POSITIONS
from scratchlm.model.transformer import TransformerLM

TINY = {"vocab_size": 29, "context_length": 24, "d_model": 32, "num_layers": 2, "num_heads": 4}

VARIANTS = [
    *({"norm": norm, "placement": placement} for norm in NORMS.names() for placement in ("pre", "post")),
    {"placement": "none"},
    *({"feedforward": name, "bias": bias} for name in FEEDFORWARDS.names() for bias in (False, True)),
    *(
        {"position": position, "num_kv_heads": kv_heads, "window": window}
        for position, kv_heads, window in itertools.product(POSITIONS.names(), (None, 2, 1), (None, 5))
    ),
    {"qk_norm": True, "num_kv_heads": 2},
    {"softcap": 5.0, "logit_softcap": 3.0},
    {"tied": True, "zero_init_projections": True},
    {"attention": "reference"},
    {"attention": "sdpa", "position": "alibi"},
]


def name_of(settings):
    return "-".join(f"{key}={value}" for key, value in settings.items())


def build(**settings):
    torch.manual_seed(0)
    return MODELS.build("transformer", ModelConfig(**{**TINY, **settings}))


def make_lively(model):
    """Move every parameter, so that a test cannot pass because a part starts silent."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("settings", VARIANTS, ids=name_of)
def test_the_future_does_not_change_the_past(settings):
    model = make_lively(build(**settings))
    ids = torch.randint(0, 29, (2, 24))
    changed = ids.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 29
    before, after = model(ids), model(changed)
    assert before.shape == (2, 24, 29)
    torch.testing.assert_close(before[:, :13], after[:, :13])
    assert not torch.allclose(before[:, 13:], after[:, 13:])


@pytest.mark.parametrize("settings", VARIANTS, ids=name_of)
def test_the_cache_changes_nothing(settings):
    model = make_lively(build(**settings)).eval()
    ids = torch.randint(0, 29, (2, 24))
    cache, parts = model.make_cache(), []
    for first, last in [(0, 7), (7, 8), (8, 9), (9, 20), (20, 24)]:
        parts.append(model(ids[:, first:last], cache=cache))
    assert cache.length == 24
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS, ids=name_of)
def test_documents_in_one_row_do_not_see_each_other(settings):
    model = make_lively(build(**settings)).eval()
    ids, documents = torch.randint(0, 29, (2, 24)), torch.tensor([[0] * 9 + [1] * 15, [3] * 14 + [7] * 10])
    together = model(ids, documents=documents)
    for row, border in enumerate((9, 14)):
        for change in (slice(0, border), slice(border, 24)):
            others = ids[row : row + 1].clone()
            others[:, change] = (others[:, change] + 1) % 29
            kept = slice(border, 24) if change.start == 0 else slice(0, border)
            after = model(others, documents=documents[row : row + 1])[0]
            torch.testing.assert_close(together[row, kept], after[kept])
            assert not torch.allclose(together[row, change], after[change])
    assert not torch.allclose(model(ids)[0, 9:], together[0, 9:])


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_a_document_in_a_packed_row_equals_the_document_alone(position):
    model = make_lively(build(position=position))
    first, second = torch.randint(0, 29, (1, 9)), torch.randint(0, 29, (1, 15))
    packed = model(torch.cat([first, second], dim=1), documents=torch.tensor([[1] * 9 + [2] * 15]))
    torch.testing.assert_close(packed[:, :9], model(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed[:, 9:], model(second), atol=1e-5, rtol=1e-4)


def test_one_document_is_as_no_documents():
    model, ids = build(), torch.randint(0, 29, (2, 24))
    assert torch.equal(model(ids, documents=torch.full((2, 24), 4)), model(ids))


def gradients(model, ids, **arguments):
    """Gradients of a step whose dropout is always the same."""
    torch.manual_seed(5)
    model.zero_grad()
    model(ids, **arguments).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [*VARIANTS[:4], {"dropout": 0.3}], ids=name_of)
def test_checkpointed_blocks_give_the_same_gradients(settings, precision):
    model, ids = make_lively(build(**settings)), torch.randint(0, 29, (2, 24))
    documents = torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        plain = gradients(model, ids, documents=documents)
        state = torch.get_rng_state()
        model.gradient_checkpointing = True
        assert_same(gradients(model, ids, documents=documents), plain)
    assert torch.equal(torch.get_rng_state(), state)  # computing again draws nothing that a later step misses


def assert_same(mine, expected):
    assert mine.keys() == expected.keys()
    assert [name for name in mine if not torch.equal(mine[name], expected[name])] == []


def test_checkpointed_blocks_keep_their_inputs_only():
    model, ids = build(num_layers=8), torch.randint(0, 29, (2, 24))

    def kept():
        sizes = {}
        pack = lambda tensor: sizes.update({tensor.data_ptr(): tensor.numel()}) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(ids)
        return sum(sizes.values())

    plain = kept()
    model.gradient_checkpointing = True
    assert kept() < 0.3 * plain


def test_checkpointing_leaves_evaluation_and_caches_alone():
    model, ids = build().eval(), torch.randint(0, 29, (1, 24))
    expected = model(ids)
    model.gradient_checkpointing = True
    assert torch.equal(model(ids), expected)
    model.train()
    cache = model.make_cache()
    parts = [model(ids[:, :10], cache=cache), model(ids[:, 10:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


@pytest.mark.parametrize("settings", VARIANTS, ids=name_of)
def test_every_parameter_gets_a_gradient(settings):
    model = make_lively(build(**settings))
    model(torch.randint(0, 29, (2, 24))).square().mean().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert silent == []


def test_state_dict_keys_are_the_courses():
    model = build()
    expected = ["token_embeddings.weight", "ln_final.weight", "lm_head.weight"]
    for i in range(2):
        parts = [f"attn.{part}_proj.weight" for part in ("q", "k", "v", "output")]
        parts += ["ln1.weight", "ln2.weight", "ffn.w1.weight", "ffn.w2.weight", "ffn.w3.weight"]
        expected += [f"layers.{i}.{part}" for part in parts]
    assert set(model.state_dict()) == set(expected)
    assert model.layers[0].ffn.w2.weight.shape == (32, 64)


def test_a_tied_head_is_the_embedding_table():
    model = build(tied=True)
    assert "lm_head.weight" not in model.state_dict()
    assert model.head_weight is model.token_embeddings.weight


def test_attention_is_invariant_to_copying_key_heads():
    """Grouped-query attention equals multi-head attention whose key and value heads are repeated."""
    grouped, full = build(num_kv_heads=2), build()
    weights = grouped.state_dict()
    for i, part in itertools.product(range(2), ("k", "v")):
        key = f"layers.{i}.attn.{part}_proj.weight"
        weights[key] = weights[key].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = torch.randint(0, 29, (1, 20))
    torch.testing.assert_close(grouped(ids), full(ids))


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_relative_positions_see_distances_only(position):
    model = make_lively(build(position=position, window=4, num_layers=1))
    ids = torch.randint(0, 29, (1, 20))
    # with one layer and a window of 4 a token depends on the last four only, wherever they stand
    torch.testing.assert_close(model(ids)[:, 16:], model(ids[:, 10:])[:, 6:], atol=1e-5, rtol=1e-4)


def test_zero_projections_make_every_block_the_identity():
    model = build(zero_init_projections=True)
    x = torch.randn(1, 5, 32)
    assert torch.equal(model.layers[0](x, model.position_embeddings), x)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_near_that_of_guessing(tied):
    model = build(tied=tied, vocab_size=500, d_model=64)
    logits = model(torch.randint(0, 500, (4, 24)))
    assert logits.std() < 1.5


def test_too_many_tokens_are_refused():
    model = build()
    with pytest.raises(ValueError, match="25 tokens are more than context_length=24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    cache = model.make_cache()
    model(torch.zeros(1, 20, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="25 tokens are more"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)


def test_dropout_acts_in_training_only():
    model = build(dropout=0.5)
    ids = torch.randint(0, 29, (1, 8))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_dropout_keeps_the_mean_and_the_share():
    x = torch.ones(100_000)
    y = dropout(x, 0.25)
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout(x, 0.0) is x


def test_a_full_cache_says_so():
    cache = KVCache(1, 3)
    cache.append(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    cache.advance(2)
    with pytest.raises(ValueError, match="4 tokens do not fit into capacity=3"):
        cache.append(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    cache.clear()
    assert cache.length == 0


def test_autocast_computes_in_bfloat16_and_keeps_parameters_in_float32():
    model, ids = build(), torch.randint(0, 29, (1, 24))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(ids)
    assert low.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (low.float() - model(ids)).abs().max() < 0.1


@pytest.mark.compile
@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("inductor", {"num_layers": 1, "num_kv_heads": 2}),
        ("aot_eager", {"norm": "layernorm", "position": "alibi", "feedforward": "gelu", "bias": True}),
        (
            "aot_eager",
            {"position": "learned", "placement": "post", "window": 5, "softcap": 9.0, "qk_norm": True},
        ),
    ],
    ids=["default", "gpt", "everything"],
)
def test_compiles_whole_and_only_once(backend, settings):
    from torch._dynamo.testing import CompileCounterWithBackend

    from scratchlm.loss import cross_entropy

    model = build(context_length=160, **settings)

    def loss(ids, targets):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids)
        return cross_entropy(logits, targets)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=counter)
    for _ in range(3):
        ids, targets = torch.randint(0, 29, (2, 160)), torch.randint(0, 29, (2, 160))
        result = compiled(ids, targets)
        result.backward()
        torch.testing.assert_close(result, loss(ids, targets), atol=0.02, rtol=0.02)
    assert counter.frame_count == 1


@pytest.mark.compile
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_has_never_run_compiles_whole_and_only_once(monkeypatch, checkpointing):
    """einops remembers types of tensors: forgotten here, as in a process that has just begun."""
    from einops import _backends
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr(_backends, "_type2backend", {})
    model = build(d_model=16, dropout=0.1)
    model.gradient_checkpointing = checkpointing
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            compiled(torch.randint(0, 29, (2, 24))).float().mean().backward()
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.compile
def test_checkpointed_blocks_draw_the_same_dropout_again_when_compiled():
    model = build(dropout=0.2, num_layers=1, d_model=16)
    ids, documents = torch.randint(0, 29, (2, 24)), torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    found = {}
    for model.gradient_checkpointing in (False, True):
        found[model.gradient_checkpointing] = gradients(compiled, ids, documents=documents)
    for name, expected in found[False].items():
        torch.testing.assert_close(found[True][name], expected, atol=1e-6, rtol=1e-4, msg=name)


def test_the_class_is_what_the_name_says():
    assert MODELS.get("transformer") is TransformerLM


def test_one_standard_deviation_for_all_matrices_scales_the_same_numbers():
    usual, spread = build(num_layers=2), build(num_layers=2, init_std=0.02)
    std = {name: p.std().item() for name, p in spread.named_parameters() if p.ndim == 2}
    branch_ends = {name for name in std if "output_proj" in name or "w2" in name}
    assert len(branch_ends) == 4
    for name, value in std.items():  # each has at least 256 numbers, cut at 3: the deviation is 1.3 % lower
        assert value == pytest.approx(0.02 / (2 if name in branch_ends else 1), rel=0.15), name
    weights = dict(spread.named_parameters())
    for name, p in usual.named_parameters():
        if p.ndim == 2:
            torch.testing.assert_close(weights[name] / weights[name].norm(), p / p.norm())
