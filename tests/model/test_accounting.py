"""Accounting: the formulas count what real models have and do."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scratchlm.model import MODELS, ModelConfig, accounting
from scratchlm.model.feedforward import FEEDFORWARDS
from scratchlm.model.norm import NORMS
from scratchlm.model.position import POSITIONS
from scratchlm.model.sizes import SIZES, named_size


def built(config):
    with torch.device("meta"):
        return MODELS.build(config.name, config)


def counted(config):
    """Parameters of the built model by the components of the formula."""
    found = dict.fromkeys(accounting.count_parameters(config), 0)
    for name, parameter in built(config).named_parameters():
        component = next(
            part
            for part, words in {
                "token_embeddings": ["token_embeddings"],
                "position_embeddings": ["position_embeddings"],
                "qk_norm": ["q_norm", "k_norm"],
                "attention": [".attn."],
                "feedforward": [".ffn."],
                "norms": ["ln1", "ln2", "ln_final"],
                "head": ["lm_head"],
            }.items()
            if any(word in name for word in words)
        )
        found[component] += parameter.numel()
    return found


GRID = [
    {
        "norm": norm,
        "placement": placement,
        "position": position,
        "feedforward": feedforward,
        "bias": bias,
        "tied": tied,
    }
    for (norm, placement), position, feedforward, (bias, tied) in itertools.product(
        itertools.product(NORMS.names(), ("pre", "post", "none")),
        POSITIONS.names(),
        FEEDFORWARDS.names(),
        ((False, True), (True, False)),
    )
]


def test_formulas_count_every_combination_of_parts():
    tiny = {"vocab_size": 31, "context_length": 12, "d_model": 24, "num_layers": 3, "num_heads": 4}
    for number, settings in enumerate(GRID):
        extra = {
            "num_kv_heads": (None, 2, 1)[number % 3],
            "qk_norm": number % 2 == 0,
            "d_ff": (None, 40)[number % 2],
        }
        config = ModelConfig(**tiny, **settings, **extra)
        assert accounting.count_parameters(config) == counted(config), config


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("smollm-135m", 134_515_008),
        ("tinyllama-1.1b", 1_100_048_384),
        ("cs336-tinystories-17m", 22_696_448),
        ("llama-1b", 1_235_814_400),
        ("llama-3b", 3_212_749_824),
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
    ],
)
def test_named_sizes_have_the_published_number_of_parameters(name, parameters):
    assert accounting.num_parameters(ModelConfig(**named_size(name))) == parameters


@pytest.mark.parametrize("name", SIZES)
def test_every_named_size_can_be_built(name):
    config = ModelConfig(**named_size(name))
    assert sum(parameter.numel() for parameter in built(config).parameters()) == accounting.num_parameters(
        config
    )


def test_the_courses_tinystories_model_has_about_17_million_beside_its_embeddings():
    counts = accounting.count_parameters(ModelConfig(**named_size("cs336-tinystories-17m")))
    assert sum(counts.values()) - counts["token_embeddings"] == pytest.approx(17e6, rel=0.04)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model size 'gpt2-smal'\. Did you mean 'gpt2-small'"):
        named_size("gpt2-smal")


def test_changing_a_named_size_leaves_the_original():
    named_size("gpt2-small")["norm"]["eps"] = 1.0
    assert named_size("gpt2-small")["norm"]["eps"] == 1e-5


@pytest.mark.parametrize(
    "settings", [{}, {"num_kv_heads": 2, "feedforward": "gelu"}, {"tied": True, "position": "alibi"}]
)
def test_forward_flops_equal_torchs_count(settings):
    config = ModelConfig(
        vocab_size=50,
        context_length=16,
        d_model=32,
        num_layers=2,
        num_heads=4,
        attention="reference",
        **settings,
    )
    model = MODELS.build("transformer", config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 16, dtype=torch.long))
    flops = accounting.forward_flops(config, 16)
    # the reference computes the future's scores too: all 16 x 16 pairs instead of the causal 136
    full_scores = flops["attention_scores"] * 256 / 136
    assert counter.get_total_flops() == sum(flops.values()) - flops["attention_scores"] + full_scores


@pytest.mark.parametrize(("window", "num_tokens"), [(None, 1), (None, 9), (1, 9), (4, 9), (20, 9)])
def test_pairs_equal_counting_the_mask(window, num_tokens):
    from scratchlm.kernels.attention_reference import causal_mask

    config = ModelConfig(vocab_size=5, window=window)
    assert (
        accounting.num_pairs(config, num_tokens) == causal_mask(num_tokens, num_tokens, window=window).sum()
    )


def test_training_flops_are_six_per_parameter_and_the_scores():
    config = ModelConfig(**named_size("gpt2-small"))
    counts = accounting.count_parameters(config)
    in_products = counts["token_embeddings"] + 12 * 12 * 768**2
    scores = 3 * 4 * 12 * 768 * (1024 + 1) / 2
    assert accounting.flops_per_token(config, 1024) == pytest.approx(6 * in_products + scores)


def test_cache_memory_equals_a_real_cache():
    config = ModelConfig(
        vocab_size=50, context_length=16, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2
    )
    model = MODELS.build("transformer", config)
    cache = model.make_cache()
    model(torch.zeros(3, 1, dtype=torch.long), cache=cache)
    assert cache.num_bytes == accounting.cache_memory(config, 3, 16)


@pytest.mark.parametrize("rows", [2, 8])
def test_training_memory_bounds_what_autograd_keeps(rows):
    config = ModelConfig(vocab_size=1000, context_length=64, d_model=64, num_layers=4, num_heads=4)
    model = MODELS.build("transformer", config)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    from scratchlm.loss import cross_entropy

    ids = torch.zeros(rows, 64, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(ids), ids)
    assert loss.isfinite()
    weights = 16 * accounting.num_parameters(config)
    estimate = accounting.training_memory(config, rows, 64) - weights
    activations = sum(kept.values()) - 4 * accounting.num_parameters(config)
    assert 0.7 * activations < estimate < 2.5 * activations


def test_the_bigram_is_counted_too():
    config = ModelConfig(name="bigram", vocab_size=40)
    assert accounting.num_parameters(config) == 1600
    assert sum(parameter.numel() for parameter in built(config).parameters()) == 1600
    assert accounting.flops_per_token(config, 8) == 0
    assert accounting.cache_memory(config, 1, 8) == 0
    assert accounting.training_memory(config, 1, 8) == 16 * 1600 + 8 * 40 * 20
