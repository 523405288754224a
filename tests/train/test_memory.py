"""Memory of training: what is counted without data is what real tensors take."""

import gc

import pytest
import torch

from scratchlm.loss import cross_entropy
from scratchlm.model import MODELS, accounting
from scratchlm.train import memory, recipes
from scratchlm.train.build import build_optimizer

SMALL = ["model.d_model=32", "model.num_heads=4", "model.num_layers=2", "model.context_length=32"]


def small(*words):
    common = [*SMALL, "optimizer=adamw", "train.batch_tokens=256", "tokenizer.vocab_size=300"]
    config = recipes.read("demo", [*common, *words])
    return config, config.model.with_vocabulary(300)


def counted(*words, rows=4, precision="float32"):
    config, settings = small(*words)
    return memory.counted_activations(config, settings, micro_rows=rows, precision=precision).num_bytes


def test_what_is_counted_after_the_forward_pass_is_what_autograd_keeps():
    _, settings = small()
    model = MODELS.get("transformer")(settings)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(8, 32, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy(model(ids), ids)
    activations = sum(kept.values()) - 4 * accounting.num_parameters(settings)
    peak = counted(rows=8)
    logits = 4 * 8 * 32 * 300
    # beyond what is kept, the loss works on a few more tables of logits
    assert activations < peak < activations + 5 * logits


def test_a_tensor_counts_while_it_lives_and_its_views_do_not():
    with memory._Living() as living:
        first = torch.zeros(1000)
        view = first[10:].view(-1, 10)
        second = torch.ones(500)
        assert living.now == 4 * 1500
        del second
        gc.collect()
        assert living.now == 4 * 1000
        del first
        assert living.now == 4 * 1000  # the view still holds it
        del view
        gc.collect()
        assert (living.now, living.peak) == (0, 4 * 1500)


def test_activations_grow_with_the_rows():
    assert counted(rows=64) == pytest.approx(2 * counted(rows=32), rel=0.1)


def test_validation_counts_where_it_needs_more_than_a_small_micro_batch():
    logits = 4 * 16 * 32 * 300  # of 16 rows, whatever is computed at once
    assert counted(rows=1) > 3 * logits


def test_checkpointing_and_bfloat16_need_less():
    plain = counted("model.num_layers=6", rows=8)
    assert counted("model.num_layers=6", "train.gradient_checkpointing=true", rows=8) < 0.7 * plain
    assert counted("model.num_layers=6", rows=8, precision="bfloat16") < plain


@pytest.mark.parametrize(
    "words",
    [
        ["model.dropout=0.1", "train.gradient_checkpointing=true"],
        ["train.document_mask=true"],
        ["train.z_loss=1e-4", "train.label_smoothing=0.1"],
        ["model.attention=sdpa"],
        ["model.attention=reference"],
        ["model.name=bigram"],
        ["model.norm=layernorm", "model.bias=true", "model.feedforward=gelu", "model.position=learned"],
    ],
    ids=" ".join,
)
def test_every_kind_of_model_can_be_counted(words):
    assert counted(*words) > 0


def test_a_model_that_fits_nowhere_is_counted_all_the_same():
    words = ["model.d_model=8192", "model.num_heads=64", "model.num_layers=2", "model.context_length=512"]
    config = recipes.read("demo", [*words, "train.batch_tokens=4096", "tokenizer.vocab_size=50000"])
    settings = config.model.with_vocabulary(50000)
    part = memory.counted_activations(config, settings, micro_rows=8, precision="bfloat16")
    assert 1e9 < part.num_bytes < 2e10


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "lion"])
def test_the_optimizers_bytes_are_those_of_a_real_one(optimizer):
    config, settings = small(f"optimizer={optimizer}", "model.bias=true")
    model = MODELS.get("transformer")(settings)
    real = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    real.step()
    held = sum(memory._bytes(state) for state in real.state.values())
    assert memory.optimizer_bytes(config, settings) == held


def test_parts_are_named_and_add_up():
    config, settings = small("train.ema_decay=0.99")
    activations = memory.MemoryPart("activations", 1000, "said here")
    parts = {part.name: part for part in memory.training_parts(config, settings, activations)}
    weights = 4 * accounting.num_parameters(settings)
    assert list(parts) == ["weights", "gradients", "optimizer", "activations", "average", "copy to save"]
    assert parts["weights"].num_bytes == parts["gradients"].num_bytes == parts["average"].num_bytes == weights
    assert parts["optimizer"].num_bytes == 2 * weights
    assert parts["copy to save"].num_bytes == 4 * weights  # weights, their average, two moments
    with_process = memory.training_parts(config, settings, activations, process_bytes=10**8)
    assert [part.name for part in with_process][-2:] == ["process", "allocator"]
    assert with_process[-2].num_bytes > 10**8


def test_without_saving_in_the_background_there_is_no_copy():
    config, settings = small("train.save_in_background=false")
    activations = memory.MemoryPart("activations", 1000, "said here")
    assert "copy to save" not in [p.name for p in memory.training_parts(config, settings, activations)]


def test_the_formula_is_near_the_count():
    for rows, words in ((4, ()), (8, ("model.d_model=64",)), (8, ("model.num_layers=6",))):
        _, settings = small(*words)
        estimated = memory.estimated_activations(settings, micro_rows=rows, precision="float32").num_bytes
        assert 0.6 < estimated / counted(*words, rows=rows) < 1.7
