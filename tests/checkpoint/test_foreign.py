"""Files of torch.save from elsewhere: their weights come in, their code never runs."""

import os
import re
import zipfile

import pytest
import torch

from scratchlm.checkpoint import foreign
from scratchlm.checkpoint.foreign import check_fits, read_foreign
from scratchlm.model import MODELS, ModelSettings


@pytest.fixture
def weights():
    settings = ModelSettings(context_length=8, d_model=8, num_layers=2, num_heads=2).with_vocabulary(11)
    return MODELS.get("transformer")(settings).state_dict()


def saved(tmp_path, content, name="theirs.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_a_state_dict_comes_in_bit_for_bit(tmp_path, weights):
    found = read_foreign(saved(tmp_path, weights))
    assert found.step == 0
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.items())
    check_fits(found.tensors, weights, tmp_path / "theirs.pt")


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", foreign.MODEL_KEYS)
def test_a_training_state_gives_its_weights_and_its_step(tmp_path, weights, key, prefix):
    theirs = {prefix + name: tensor.bfloat16() for name, tensor in weights.items()}
    content = {key: theirs, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "iteration": 5000}
    found = read_foreign(saved(tmp_path, content))
    assert found.step == 5000
    assert found.tensors.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found.tensors[name].dtype == torch.float32
        assert torch.equal(found.tensors[name], tensor.bfloat16().float())


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("default", ["", "1"], ids=["plain", "forced by the environment"])
def test_a_payload_does_not_run(tmp_path, weights, monkeypatch, default):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", default)
    file = saved(tmp_path, {**weights, "extra": Payload(tmp_path / "hacked")})
    with pytest.raises(
        ValueError, match=r"theirs\.pt: holds more than tensors and plain values.*could run code"
    ):
        read_foreign(file)
    assert not (tmp_path / "hacked").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "hacked").exists(), "the payload is dead: nothing was tested"


def test_a_flipped_bit_is_found_although_torch_load_does_not_see_it(tmp_path, weights):
    file = saved(tmp_path, weights)
    content = bytearray(file.read_bytes())
    numbers = weights["lm_head.weight"].numpy().tobytes()
    content[bytes(content).index(numbers) + 5] ^= 1
    file.write_bytes(content)
    assert not torch.equal(torch.load(file, weights_only=True)["lm_head.weight"], weights["lm_head.weight"])
    with pytest.raises(ValueError, match=r"theirs/data/\d+ has the wrong checksum; the file is damaged"):
        read_foreign(file)


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_cut_file_is_refused(tmp_path, weights, sixteenth):
    file = saved(tmp_path, weights)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(ValueError, match=r"theirs\.pt: not a file of torch\.save"):
        read_foreign(file)


def test_a_packed_archive_is_refused_before_it_unfolds(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(10_000_000))
    with pytest.raises(ValueError, match="bomb/data/0 is compressed"):
        read_foreign(tmp_path / "bomb.pt")


def test_an_old_format_and_a_missing_file_say_what_to_do(tmp_path, weights):
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"from before torch 1\.6 must be saved again"):
        read_foreign(tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"nothing\.pt: no such file"):
        read_foreign(tmp_path / "nothing.pt")


def test_a_tensor_cannot_claim_more_than_its_file_holds(tmp_path):
    huge = torch.zeros(1).expand(2**40, 8)
    with pytest.raises(ValueError, match=r"lm_head\.weight is larger than what the file holds"):
        read_foreign(saved(tmp_path, {"lm_head.weight": huge}))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, dtype=torch.int64), torch.eye(2).to_sparse()], ids=["whole numbers", "sparse"]
)
def test_only_dense_weights_come_in(tmp_path, tensor):
    with pytest.raises(ValueError, match=r"lm_head\.weight is not a dense tensor of floating-point numbers"):
        read_foreign(saved(tmp_path, {"lm_head.weight": tensor}))


@pytest.mark.parametrize(
    "content", [{}, [torch.ones(1)], torch.ones(1), {"a": 1}, {"model": {}}, {1: torch.ones(1)}], ids=str
)
def test_a_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"theirs\.pt: no weights found; a dictionary of tensors"):
        read_foreign(saved(tmp_path, content))


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.c_attn.weight", "layers.x.ln1.weight", "../lm_head.weight"]
)
def test_a_foreign_name_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{re.escape(name)} is no name of this library"):
        read_foreign(saved(tmp_path, {name: torch.ones(1)}))


def test_weights_of_another_size_are_refused_with_both_shapes(tmp_path, weights):
    wanted = dict(weights)
    file = tmp_path / "theirs.pt"
    with pytest.raises(ValueError, match=r"ln_final\.weight has the shape \[8\], the model needs \[16\]"):
        check_fits(weights, {**wanted, "ln_final.weight": torch.ones(16, device="meta")}, file)
    with pytest.raises(ValueError, match=r"ln_final\.bias is missing; the model's settings differ"):
        check_fits(weights, {**wanted, "ln_final.bias": torch.ones(8)}, file)
    with pytest.raises(ValueError, match=r"unknown weight 'lm_head\.bias'\. Did you mean 'lm_head\.weight'"):
        check_fits({**weights, "lm_head.bias": torch.ones(8)}, wanted, file)
