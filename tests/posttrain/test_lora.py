"""Adapters: merged equals unmerged, few numbers move; saved alone, and added to each other by weight."""

import os
import signal

import pytest
import torch
from small_bases import make_base, sayings, settings, write_lines
from torch.nn.functional import linear as reference_linear

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.model.linear import Linear
from scratchlm.posttrain import ADAPTERS
from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.config import SftConfig
from scratchlm.posttrain.lora import LowRankLinear, merged_state
from scratchlm.posttrain.lora_files import add_adapters, load_adapter, save_adapter
from scratchlm.posttrain.merge import merge_runs
from scratchlm.posttrain.run import run
from scratchlm.train.events import StepEnded
from scratchlm.train.folder import RunFolder, load_run


@pytest.fixture(scope="module")
def base(base_run, tmp_path_factory):
    config = settings(SftConfig, base_run, data={"name": "alpaca", "paths": [__file__]})
    return open_base(config, RunFolder(tmp_path_factory.mktemp("lora")))


def adapted(base, name, **given):
    """A model with an adapter whose numbers are not those of the start."""
    model, adapter = base.model(), ADAPTERS.build(name, rank=4, **given)
    adapter.apply(model, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, adapter


IDS = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(2))


def test_a_head_that_the_model_does_not_have_is_refused(tmp_path):
    made = make_base(tmp_path / "tied", "model.tied=true", text=False)
    config = settings(SftConfig, made, data={"name": "alpaca", "paths": [__file__]})
    model = open_base(config, RunFolder(tmp_path / "run")).model()
    adapter = ADAPTERS.build("lora", parts=("attention", "head"))
    with pytest.raises(ValueError, match="the model has no head of its own"):
        adapter.apply(model, torch.Generator())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_at_the_start_the_model_is_the_base(base, name):
    model, adapter = base.model(), ADAPTERS.build(name)
    expected = model(IDS)
    adapter.apply(model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(IDS), expected)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_merged_weights_in_a_plain_model_give_the_same_logits(base, name):
    model, adapter = adapted(base, name)
    plain = base.model()
    before = plain(IDS)
    plain.load_state_dict(merged_state(model))
    torch.testing.assert_close(plain(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, model(IDS), atol=1e-2)
    with adapter.merged(model), torch.no_grad():
        torch.testing.assert_close(plain(IDS), model(IDS), rtol=1e-5, atol=1e-5)


def test_lora_computes_what_the_paper_writes():
    torch.manual_seed(0)
    layer = Linear(6, 5, bias=True)
    made = LowRankLinear(
        layer, rank=2, alpha=8.0, magnitude=False, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        made.lora_b.normal_()
    x = torch.randn(3, 6)
    expected = reference_linear(x, layer.weight, layer.bias) + 4.0 * (x @ made.lora_a.T) @ made.lora_b.T
    torch.testing.assert_close(made(x), expected)


def test_dora_rows_have_the_length_that_is_trained():
    made = LowRankLinear(
        Linear(6, 5), rank=2, alpha=8.0, magnitude=True, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        made.lora_b.normal_()
        made.magnitude.copy_(torch.arange(1.0, 6.0))
    torch.testing.assert_close(made.weight.norm(dim=1), torch.arange(1.0, 6.0))


def test_only_the_chosen_parts_are_trained(base):
    model, _ = adapted(base, "lora", parts=("attention",))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2
    assert all(".attn." in name and name.endswith(("lora_a", "lora_b")) for name in trained)
    model, _ = adapted(base, "lora", tables=True)
    assert model.token_embeddings.weight.requires_grad
    with pytest.raises(ValueError, match="tables=true trains it in full"):
        ADAPTERS.build("lora", parts=("head",), tables=True)


def test_a_saved_adapter_is_small_and_gives_the_same_model_on_the_base(base, tmp_path):
    model, adapter = adapted(base, "dora")
    save_adapter(model, adapter, tmp_path / "adapter")
    size = (tmp_path / "adapter" / "adapter.safetensors").stat().st_size
    assert size < 0.5 * sum(4 * p.numel() for p in base.model().parameters())
    again = base.model()
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again(IDS), model(IDS))


def test_several_adapters_are_added_to_the_base_by_weight(base, tmp_path):
    for number, name in enumerate(("lora", "dora")):
        model, adapter = adapted(base, name)
        save_adapter(model, adapter, tmp_path / name)
        if number == 0:
            first = merged_state(model)
    second, start = merged_state(model), base.weights
    plain = base.model()
    add_adapters(plain, {tmp_path / "lora": 0.3, tmp_path / "dora": 0.5})
    for name, tensor in plain.state_dict().items():
        expected = start[name] + 0.3 * (first[name] - start[name]) + 0.5 * (second[name] - start[name])
        torch.testing.assert_close(tensor, expected)


def test_an_adapter_of_another_model_is_refused_by_name(base, tmp_path):
    model, adapter = adapted(base, "lora")
    save_adapter(model, adapter, tmp_path / "adapter")
    other = base.model()
    del other.layers[1]
    with pytest.raises(ValueError, match=r"the model has no layers.1"):
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter.json.*is missing"):
        load_adapter(other, tmp_path)


def test_a_run_with_an_adapter_leaves_a_plain_run_folder_and_goes_on_bit_for_bit(base_run, tmp_path):
    data = write_lines(tmp_path / "a.jsonl", sayings(20))
    given = {"data": {"name": "alpaca", "paths": [str(data)]}, "conversations_per_step": 4}
    config = settings(SftConfig, base_run, "adapter=dora", "adapter.rank=2", **given)

    def stop(event):
        if isinstance(event, StepEnded) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    run("sft", config, tmp_path / "whole")
    run("sft", config, tmp_path / "stopped", on_event=stop)
    run("sft", config, tmp_path / "stopped", resume=True)
    saved = [
        load_checkpoint(latest(tmp_path / name / "checkpoints")).tensors for name in ("whole", "stopped")
    ]
    for group in ("adapter", "model", "optimizer"):
        assert saved[0][group].keys() == saved[1][group].keys()
        assert all(torch.equal(tensor, saved[1][group][name]) for name, tensor in saved[0][group].items())
    merged = {
        name: load_run(merge_runs(parts, tmp_path / name)).model
        for name, parts in {
            "same": {tmp_path / "whole": 1.0},
            "none": {tmp_path / "whole": 0.0},
            "twice": {tmp_path / "whole": 0.25, tmp_path / "stopped": 0.75},
        }.items()
    }
    loaded = load_run(tmp_path / "whole")
    start = load_checkpoint(latest(tmp_path / "whole" / "base")).tensors["model"]
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(merged["same"].state_dict()[name], tensor)
        torch.testing.assert_close(merged["twice"].state_dict()[name], tensor)
        assert torch.equal(merged["none"].state_dict()[name], start[name])
    with pytest.raises(ValueError, match="has no adapter; give runs that were trained with adapter=lora"):
        merge_runs({base_run: 1.0}, tmp_path / "never")
    with pytest.raises(ValueError, match="is there already"):
        merge_runs({tmp_path / "whole": 1.0}, tmp_path / "same")
    fixed = load_run(base_run).model.state_dict()
    assert torch.equal(loaded.model.state_dict()["ln_final.weight"], fixed["ln_final.weight"])
    assert not torch.equal(
        loaded.model.state_dict()["layers.0.ffn.w1.weight"], fixed["layers.0.ffn.w1.weight"]
    )
