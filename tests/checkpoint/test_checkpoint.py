"""Checkpoints: whole or not there, verified or refused."""

import json
import shutil

import pytest
import torch

from scratchlm.checkpoint import (
    CheckpointError,
    keep_only,
    latest,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    verify,
)
from scratchlm.optim import OPTIMIZERS


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


def test_every_flipped_byte_is_refused_and_the_file_is_named(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 1, tensors, {})
    for file in [file for file in path.iterdir() if file.name != "manifest.json"]:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{file.name}: size or sha256 differs"):
            load_checkpoint(path)
        file.write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_falls_back_to_the_checkpoint_before(tmp_path, tensors, sixteenth):
    older = save_checkpoint(tmp_path, 1, tensors, {})
    newer = save_checkpoint(tmp_path, 2, tensors, {})
    assert latest(tmp_path) == newer
    file = newer / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * sixteenth // 16])
    assert latest(tmp_path) == older


def test_a_missing_file_or_manifest_is_incomplete(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 3, tensors, {})
    (path / "random.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"random\.safetensors: missing"):
        verify(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify(path)
    assert latest(tmp_path) is None


def test_a_newer_format_is_refused(tmp_path, tensors):
    path = save_checkpoint(tmp_path, 3, tensors, {})
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        load_checkpoint(path)


def test_a_failed_save_leaves_nothing_behind(tmp_path, tensors):
    class Unsaveable:
        pass

    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 5, tensors, {"object": Unsaveable()})
    assert list(tmp_path.iterdir()) == []


def test_keep_only_spares_the_newest_and_the_best(tmp_path, tensors):
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, tensors, {})
    keep_only(tmp_path, 2, also=[3])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-0000003",
        "step-0000005",
        "step-0000006",
    ]
    shutil.rmtree(tmp_path / "step-0000006")
    assert latest(tmp_path) == tmp_path / "step-0000005"


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
