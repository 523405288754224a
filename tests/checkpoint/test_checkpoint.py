"""Checkpoints: whole or not there, verified or refused."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from scratchlm.checkpoint import (
    FORMAT,
    CheckpointError,
    latest,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    verify,
)
from scratchlm.optim import OPTIMIZERS

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def tensors():
    return {
        "model": {"weight": torch.randn(4, 3), "bias": torch.zeros(4)},
        "random": {"torch": torch.get_rng_state()},
    }


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 7, tensors, {"best": 1.5, "plain": {"0": {"step": 7}}})
    found = load_checkpoint(path)
    assert found.step == 7
    assert found.state == {"best": 1.5, "plain": {"0": {"step": 7}}}
    assert all(
        torch.equal(found.tensors[group][name], tensors[group][name])
        for group in tensors
        for name in tensors[group]
    )


def test_a_missing_file_or_manifest_is_incomplete(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 3, tensors, {})
    (path / "random.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"random\.safetensors: missing"):
        verify(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify(path)
    assert latest(tmp_path) is None


def test_a_failed_save_leaves_nothing_behind(tmp_path, tensors):
    class Unsaveable:
        pass

    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 5, tensors, {"object": Unsaveable()})
    assert list(tmp_path.iterdir()) == []


def test_a_saved_file_is_byte_for_byte_what_the_safetensors_library_writes(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32]
    dtypes += [torch.int16, torch.int8, torch.uint8, torch.bool]
    named = {f"b{number}": torch.arange(6).reshape(2, 3).to(dtype) for number, dtype in enumerate(dtypes)}
    named |= {"a scalar": torch.tensor(3.5), "nothing": torch.empty(0, 4), "c.\u00e4": torch.ones(1)}
    path = save_checkpoint(tmp_path, 1, {"model": named}, {})
    assert (path / "model.safetensors").read_bytes() == save(named)
    loaded = load_checkpoint(path).tensors["model"]
    assert loaded.keys() == named.keys()
    for name, tensor in named.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_views_and_tied_tensors_are_saved_by_value(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    path = save_checkpoint(tmp_path, 1, {"model": {"table": table, "head": table, "turned": table.T}}, {})
    found = load_checkpoint(path).tensors["model"]
    assert torch.equal(found["table"], table)
    assert torch.equal(found["head"], table)
    assert torch.equal(found["turned"], table.T)


def test_what_is_loaded_does_not_depend_on_the_file_any_more(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 1, tensors, {})
    found = load_checkpoint(path)
    (path / "model.safetensors").write_bytes(b"")
    assert torch.equal(found.tensors["model"]["weight"], tensors["model"]["weight"])


def test_a_dtype_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor p: torch\.complex64 cannot be saved; convert it to one of"):
        save_checkpoint(tmp_path, 1, {"model": {"p": torch.zeros(2, dtype=torch.complex64)}}, {})


@pytest.mark.parametrize("group", ["", "..", "../model", "/model", "a b", "state", "manifest", ".hidden"])
def test_a_group_must_be_a_file_name(tmp_path, group):
    with pytest.raises(ValueError, match="not a name; letters, digits"):
        save_checkpoint(tmp_path, 1, {group: {}}, {})


def test_large_groups_are_cut_between_tensors(tmp_path):
    named = {f"p{number}": torch.full((25,), float(number)) for number in range(7)}  # 100 bytes each
    named["large"] = torch.zeros(100)
    path = save_checkpoint(tmp_path, 1, {"model": named, "empty": {}}, {}, shard_bytes=250)
    files = verify(path).files
    assert verify(path).groups == {
        "model": tuple(f"model-{number:05d}.safetensors" for number in range(1, 6)),
        "empty": (),
    }
    assert max(entry.num_bytes for entry in files.values()) < 400 + 200, "one tensor a file where it is large"
    found = load_checkpoint(path).tensors
    assert found["empty"] == {}
    assert found["model"].keys() == named.keys()
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in named.items())


def test_identity_is_in_the_manifest(tmp_path, tensors):
    identity = {"tokenizer": "9f2c", "data": "51aa", "world_size": 2, "checksum": "0" * 64}
    path = save_checkpoint(tmp_path, 1, tensors, {}, identity=identity)
    assert load_checkpoint(path).identity == verify(path).identity == identity


def test_equal_content_gives_equal_files(tmp_path, tensors):
    first = save_checkpoint(tmp_path / "a", 1, tensors, {"x": 1}, identity={"data": "5"})
    second = save_checkpoint(tmp_path / "b", 1, tensors, {"x": 1}, identity={"data": "5"})
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_the_same_step_saved_again_replaces_the_first(tmp_path, tensors):
    save_checkpoint(tmp_path, 1, tensors, {"course": "before the rollback"})
    path = save_checkpoint(tmp_path, 1, tensors, {"course": "after it"})
    assert load_checkpoint(path).state == {"course": "after it"}
    assert [found.name for found in tmp_path.iterdir()] == ["step-0000001"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 1, tensors, {})
    (path / "model.safetensors").write_bytes(b"damaged")
    assert load_checkpoint(save_checkpoint(tmp_path, 1, tensors, {})).step == 1


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_checkpoint_of_every_format_still_loads(version):
    """The golden folders were written by golden/make_golden.py when each format was the present one."""
    made = runpy.run_path(str(GOLDEN / "make_golden.py"))
    (path,) = (GOLDEN / f"format-{version}").iterdir()
    assert verify(path).format == version
    found = load_checkpoint(path)
    assert found.step == 3
    assert found.state == made["STATE"]
    assert found.identity == ({} if version == 1 else made["IDENTITY"])
    assert found.tensors.keys() == made["TENSORS"].keys()
    for group, named in made["TENSORS"].items():
        assert found.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(found.tensors[group][name], tensor), name


def test_the_present_format_has_a_golden_checkpoint():
    assert (GOLDEN / f"format-{FORMAT}").is_dir(), "run golden/make_golden.py when the format changes"


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_goes_on_as_if_never_stopped(tmp_path, name):
    def steps(optimizer, parameter, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = OPTIMIZERS.build(name, [whole])
    steps(optimizer, whole, 0, 4)
    tensors, plain = optimizer_tensors(optimizer)
    path = save_checkpoint(tmp_path, 4, {"model": {"p": whole}, "optimizer": tensors}, {"optimizer": plain})
    steps(optimizer, whole, 4, 8)

    saved = load_checkpoint(path)
    resumed = torch.nn.Parameter(saved.tensors["model"]["p"])
    fresh = OPTIMIZERS.build(name, [resumed])
    restore_optimizer(fresh, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
    steps(fresh, resumed, 4, 8)
    assert torch.equal(whole, resumed)
