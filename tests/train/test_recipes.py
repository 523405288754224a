"""Shipped recipes: each loads, says what was measured, fits its sources, and trains when made tiny."""

import json
import math

import pytest
import torch

from scratchlm.model import accounting
from scratchlm.model.sizes import SIZES
from scratchlm.model.transformer import TransformerLM
from scratchlm.train import recipes
from scratchlm.train.metrics import JsonLines
from scratchlm.train.plan import make_plan
from scratchlm.train.run import run

NAMES = recipes.names()

ASKED_FOR = {
    "demo",
    "demo-speed",
    "tinystories-17m",
    "tinystories-17m-cpu",
    "owt-17m",
    "gpt2-small",
    "owt-speedrun",
    "llama-125m",
    "quick-15m",
    "owt-50m-tokens",
    "wikitext-2",
    "shakespeare-char",
    "flash-adamw-4x8",
    "large-6x16",
    "attention-sgd",
}

TINY = [
    "corpus.name=stories",
    "corpus.num_train=30",
    "corpus.num_valid=2",
    "model.context_length=32",
    "model.d_model=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.d_ff=64",
    "train.steps=2",
    "train.batch_tokens=128",
    "train.eval_every=2",
    "train.log_every=1",
    "train.compile=false",
    "sampling.max_new_tokens=4",
    "train.device=cpu",
]
"""Everything that costs time, and nothing that says what kind of model, optimizer or schedule it is."""


def settings_of(name):
    return recipes.read(name, ['corpus.paths=["a.txt"]'] if name == "quick" else [])


def complete(name):
    """The recipe's model with a vocabulary as large as asked for; characters: 65 of Shakespeare and two."""
    config = settings_of(name)
    return config.model.with_vocabulary(int(config.tokenizer.settings.get("vocab_size", 67)))


def tiny(name):
    small = settings_of(name).tokenizer.settings.get("vocab_size")
    return recipes.read(name, [*TINY, *(["tokenizer.vocab_size=300"] if small else [])])


def test_every_recipe_that_is_promised_ships():
    assert set(NAMES) >= ASKED_FOR
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_called_like_its_file_and_says_what_it_is_for(name):
    config = settings_of(name)
    assert config.name == name
    assert len(config.description) > 20


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_a_recipe_says_what_was_measured_here_and_what_was_not(name):
    path = recipes.find(name)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        head = json.loads(text)["description"]
        assert "measured" in head
    else:
        head = text.partition("\nname = ")[0]
        assert head.startswith("# ")
        assert "# Measured" in head


@pytest.mark.parametrize("name", sorted(ASKED_FOR - {"demo", "demo-speed"}))
def test_a_recipe_is_plain_text_of_readable_width(name):
    text = recipes.find(name).read_text(encoding="utf-8")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_planned_without_its_text(name):
    config, settings = settings_of(name), complete(name)
    plan = make_plan(config, vocab_size=settings.vocab_size)
    assert plan.tokens == config.train.steps * config.train.batch_tokens
    assert plan.micro_batch_tokens * plan.accumulation == config.train.batch_tokens
    assert plan.parameters == accounting.num_parameters(settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_model_at_full_size(name):
    with torch.device("meta"):
        model = TransformerLM(complete(name))
    assert sum(p.numel() for p in model.parameters()) == accounting.num_parameters(complete(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_made_tiny_trains_two_steps(tmp_path, name):
    config, real = tiny(name), settings_of(name)
    assert config.optimizer == real.optimizer
    assert config.model.feedforward == real.model.feedforward
    summary = run(config, tmp_path / "run")
    rows = JsonLines(tmp_path / "run" / "metrics.jsonl").rows()
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert summary["steps"] == 2
    assert summary["optimizer"] == real.optimizer.name


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("tinystories-17m", "cs336-tinystories-17m", 327_680_000),
        ("tinystories-17m-cpu", "cs336-tinystories-17m", 40_960_000),
        ("owt-17m", None, 327_680_000),
        ("gpt2-small", "gpt2-small", None),
        ("llama-125m", "llama-125m", None),
    ],
)
def test_a_known_model_has_the_published_shape_and_length(name, size, tokens):
    config, settings = settings_of(name), complete(name)
    if size is not None:
        known = type(settings)(**SIZES[size])
        assert settings.model_dump(exclude={"d_ff"}) == known.model_dump(exclude={"d_ff"})
        assert settings.inner_width == known.inner_width
    if tokens is not None:
        assert config.train.steps * config.train.batch_tokens == tokens


def test_shakespeare_is_measured_at_nanogpts_setting():
    config = settings_of("shakespeare-char")
    model, train = config.model, config.train
    assert (model.num_layers, model.d_model, model.num_heads, model.context_length) == (4, 128, 4, 64)
    assert (train.steps, config.rows_per_step, model.dropout) == (2000, 12, 0.0)
    assert config.corpus.name == "tiny-shakespeare"


def test_the_speedrun_is_the_modern_block_with_muon():
    config = settings_of("owt-speedrun")
    model = config.model
    assert (model.qk_norm, model.feedforward.name, model.zero_init_projections) == (True, "relu2", True)
    assert config.optimizer.name == "muon"
    assert recipes.read("owt-speedrun", ["model.tied=false"]).model.tied is not model.tied


@pytest.mark.parametrize(
    ("name", "layers", "heads", "attention", "optimizer"),
    [
        ("flash-adamw-4x8", 4, 8, "blocks", "adamw"),
        ("large-6x16", 6, 16, "auto", "adamw"),
        ("attention-sgd", 3, 6, "reference", "sgd"),
    ],
)
def test_an_example_in_json_is_what_it_is_called(name, layers, heads, attention, optimizer):
    config = settings_of(name)
    model = config.model
    assert (model.num_layers, model.num_heads, model.attention) == (layers, heads, attention)
    assert config.optimizer.name == optimizer
    assert recipes.find(name).suffix == ".json"


def test_a_recipe_has_the_size_in_its_name():
    train = settings_of("owt-50m-tokens").train
    assert train.steps * train.batch_tokens == pytest.approx(50e6, rel=0.01)
    assert accounting.num_parameters(complete("quick-15m")) == pytest.approx(15e6, rel=0.02)


def test_recipes_in_json_are_found_by_name_and_by_path():
    path = recipes.find("attention-sgd")
    assert path.suffix == ".json"
    assert recipes.read(str(path)) == recipes.read("attention-sgd")
