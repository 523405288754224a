"""Model settings: mistakes end in one line that says what to do."""

import pytest

from scratchlm.config import load
from scratchlm.model import MODELS, ModelConfig, ModelSettings
from scratchlm.model.config import reading_on


def test_defaults_are_complete_settings():
    config = load(ModelConfig, overrides=["vocab_size=100"])
    assert config.norm.settings == {"eps": 1e-5, "gain": True}
    assert config.position.settings == {"theta": 10000.0}
    assert (config.d_head, config.kv_heads, config.inner_width) == (32, 8, 704)


def test_parts_are_chosen_by_name_and_their_settings_are_checked():
    config = load(
        ModelConfig, overrides=["vocab_size=100", "norm=layernorm", "norm.bias=false", "position.theta=500"]
    )
    assert config.norm.settings == {"eps": 1e-5, "bias": False}
    assert config.position.settings == {"theta": 500.0}
    with pytest.raises(ValueError, match=r"unknown setting of 'rope' 'tetha'.*Did you mean 'theta'"):
        load(ModelConfig, overrides=["vocab_size=100", "position.tetha=500"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["d_model=512", "num_heads=10"],
            "d_model=512 is not divisible by num_heads=10; choose num_heads from 1, 2, 4",
        ),
        (
            ["num_heads=8", "num_kv_heads=3"],
            "num_heads=8 is not divisible by num_kv_heads=3; choose .* 1, 2, 4, 8",
        ),
        (
            ["d_model=24", "num_heads=8"],
            "position=rope turns pairs, so d_model / num_heads must be even, not 3",
        ),
        (["d_modle=24"], "unknown key 'd_modle'. Did you mean 'd_model'"),
        (["name=transfomer"], "unknown model 'transfomer'. Did you mean 'transformer'"),
        (["norm=rmsnrm"], "unknown norm 'rmsnrm'. Did you mean 'rmsnorm'"),
        (["attention=sdpa", "softcap=5"], "sdpa cannot cap scores"),
        (["dropout=1.0"], "dropout=1.0"),
        (["placement=before"], "placement='before'"),
        (["vocab_size=0"], "vocab_size=0"),
    ],
)
def test_mistakes_are_told_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(ModelConfig, overrides=["vocab_size=100", *overrides])
    assert "\n" not in str(caught.value)


def test_the_former_name_of_attention_is_read_in_a_run_and_in_a_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"vocab_size": 9, "implementation": "sdpa"}', encoding="utf-8")
    assert load(ModelConfig, file).attention == "sdpa"
    assert ModelConfig(vocab_size=9, implementation="tiled").attention == "tiled"


def test_settings_and_vocabulary_make_a_configuration():
    settings = ModelSettings(d_model=64, norm="layernorm")
    config = settings.with_vocabulary(77)
    assert config.vocab_size == 77
    assert config.d_model == 64
    assert config.norm.name == "layernorm"


def test_a_configuration_loads_back_equal(tmp_path):
    config = ModelConfig(vocab_size=50, norm="layernorm", feedforward="gelu", num_kv_heads=2)
    (tmp_path / "model.json").write_text(config.to_json(), encoding="utf-8")
    assert load(ModelConfig, tmp_path / "model.json") == config


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_is_built_from_a_configuration(name):
    import torch

    config = ModelConfig(name=name, vocab_size=20, context_length=8, d_model=16, num_layers=1, num_heads=2)
    model, ids = MODELS.build(name, config), torch.randint(0, 20, (2, 8))
    assert model.config == config
    logits = model(ids)
    assert logits.shape == (2, 8, 20)
    torch.testing.assert_close(model.head(model.hidden(ids)), logits)
    cache = model.make_cache()
    steps = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(8)], dim=1)
    assert cache.length == 8
    torch.testing.assert_close(steps, logits)


def test_a_size_is_taken_by_its_name_and_settings_beside_it_win():
    from scratchlm.train import recipes

    small = recipes.read("demo", ["model=gpt2-small"]).model
    assert (small.name, small.num_layers, small.d_model, small.tied) == ("transformer", 12, 768, True)
    assert small.norm.settings["eps"] == 1e-5
    assert recipes.read("demo", ["model.name=gpt2-small"]).model == small
    short = recipes.read("demo", ["model=gpt2-small", "model.context_length=256"]).model
    assert (short.context_length, short.d_model) == (256, 768)
    assert short.model_copy(update={"context_length": 1024}) == small


def test_an_unknown_size_is_told_with_the_known_ones():
    from scratchlm.train import recipes

    with pytest.raises(ValueError, match=r"unknown model 'llama-1bb'. Did you mean 'llama-1b'"):
        recipes.read("demo", ["model=llama-1bb"])


@pytest.mark.parametrize("name", ["rope", "alibi", "sinusoidal", "none"])
def test_computed_positions_go_on_beyond_the_context(name):
    settings = ModelSettings(context_length=64, position=name)
    assert reading_on(settings, 256) == settings.model_copy(update={"context_length": 256})
    assert reading_on(settings, 32) is settings


def test_learned_positions_say_that_they_end():
    settings = ModelSettings(context_length=64, position="learned")
    assert reading_on(settings, 64) is settings
    with pytest.raises(
        ValueError, match=r"context_length=65: model\.position=learned ends at 64, since a pos"
    ):
        reading_on(settings, 65)
    assert (
        reading_on(ModelSettings(name="bigram", context_length=64, position="learned"), 65).context_length
        == 65
    )
