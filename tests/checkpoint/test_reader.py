"""Reading parts of a checkpoint: the rows that are asked for, from the files that hold them, verified."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from savers_together import equal, save_together, tensors_of, whole_tensors

from scratchlm.checkpoint import (
    CheckpointError,
    latest,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
    verify,
)
from scratchlm.checkpoint.manifest import TensorEntry, read_manifest
from scratchlm.checkpoint.retention import is_complete

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """A checkpoint that three processes wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("three")
    assert save_together(folder, [5], 3) == [None] * 3
    return latest(folder)


@pytest.fixture
def mine(tmp_path):
    """One to damage."""
    assert save_together(tmp_path, [4], 3) == [None] * 3
    assert save_together(tmp_path, [5], 3) == [None] * 3
    return tmp_path / "step-0000005"


@settings(deadline=None)  # the disk is shared
@given(rows=st.tuples(st.integers(0, 37), st.integers(0, 37)).map(sorted))
def test_any_rows_come_out_whoever_wrote_them(of_three, rows):
    first, end = rows
    whole = whole_tensors(5)["model"]["embeddings"]
    with open_checkpoint(of_three) as reader:
        assert torch.equal(reader.read("model", "embeddings", first, end - first), whole[first:end])


def test_what_a_checkpoint_says_of_itself(of_three):
    with open_checkpoint(of_three) as reader:
        assert (reader.step, reader.state, reader.identity) == (
            5,
            {"done": 5, "rank": 0},
            {"world_size": 3},
        )
        assert reader.groups == ("model", "optimizer", "random")
        assert sorted(reader.names("model")) == ["embeddings", "norm"]
        assert reader.names("ema") == ()
        assert reader.shape("model", "embeddings") == (37, 5)
        assert reader.shape("optimizer", "0.step") == ()
        found = {
            group: {name: reader.read(group, name) for name in reader.names(group)} for group in reader.groups
        }
        assert equal(found, 5)


def test_files_that_are_not_needed_are_not_opened(mine):
    (mine / "model-r00003-of-00003.safetensors").unlink()
    (mine / "model-r00002-of-00003.safetensors").write_bytes(b"damaged")
    with open_checkpoint(mine) as reader:
        assert torch.equal(
            reader.read("model", "embeddings", 2, 11), whole_tensors(5)["model"]["embeddings"][2:13]
        )
        with pytest.raises(CheckpointError, match=r"r00002-of-00003\.safetensors: size or .* for embeddings"):
            reader.read("model", "embeddings", 2, 12)
        assert reader.read("model", "embeddings", 37, 0).shape == (0, 5)


def test_a_missing_shard_is_named_with_its_tensor_and_the_step_before_is_taken(mine, caplog):
    (mine / "model-r00002-of-00003.safetensors").unlink()
    missing = r"step-0000005/model-r00002-of-00003\.safetensors: missing; this checkpoint is incomplete"
    with open_checkpoint(mine) as reader:
        with pytest.raises(CheckpointError, match=rf"{missing}\. It is needed for embeddings\."):
            reader.read("model", "embeddings")
    for look in (load_checkpoint, verify):
        with pytest.raises(CheckpointError, match=missing):
            look(mine)
    assert not is_complete(mine)
    assert latest(mine.parent).name == "step-0000004"
    assert "model-r00002-of-00003.safetensors: missing" in caplog.text


def test_a_flipped_bit_in_any_shard_is_named(mine):
    for file in sorted(mine.glob("*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        for look in (load_checkpoint, verify):
            with pytest.raises(CheckpointError, match=f"{file.name}: size or sha256 differs"):
                look(mine)
        group = file.name.partition("-")[0]
        with open_checkpoint(mine) as reader:
            with pytest.raises(CheckpointError, match=f"{file.name}: size or sha256 differs"):
                [reader.read(group, name) for name in reader.names(group)]
        file.write_bytes(whole)
    assert equal(load_checkpoint(mine).tensors, 5)


def test_what_was_read_does_not_depend_on_the_files(mine):
    reader = open_checkpoint(mine)
    found = reader.read("model", "embeddings")
    number = reader.read("optimizer", "0.step")
    for file in mine.glob("*.safetensors"):
        with file.open("r+b") as stream:
            stream.write(b"\xff" * file.stat().st_size)
    assert torch.equal(found, whole_tensors(5)["model"]["embeddings"])
    assert number == 5
    found += 1  # its own memory: nothing else changes


@pytest.mark.parametrize(("first", "rows"), [(-1, 2), (36, 2), (38, None), (3, -1)])
def test_rows_that_are_not_there_are_refused(of_three, first, rows):
    with open_checkpoint(of_three) as reader:
        with pytest.raises(ValueError, match=r"model, embeddings has 37 rows; .* are not among them"):
            reader.read("model", "embeddings", first, rows)


def test_a_name_that_is_not_there_is_refused(of_three):
    with open_checkpoint(of_three) as reader:
        with pytest.raises(CheckpointError, match=r"unknown tensor of group model 'embedding'.*'embeddings'"):
            reader.read("model", "embedding")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_format_can_be_read_in_parts(version):
    (path,) = (GOLDEN / f"format-{version}").iterdir()
    whole = load_checkpoint(path).tensors
    with open_checkpoint(path) as reader:
        assert set(reader.groups) == {"model", "optimizer", "random"}
        assert reader.shape("model", "token_embeddings.weight") == (4, 3)
        for group, named in whole.items():
            assert set(reader.names(group)) == set(named)
            for name, tensor in named.items():
                assert torch.equal(reader.read(group, name), tensor)
        rows = reader.read("model", "token_embeddings.weight", 1, 2)
        assert torch.equal(rows, whole["model"]["token_embeddings.weight"][1:3])


def rewritten(path, change):
    """Give a checkpoint a manifest with the right checksum and other tensors."""
    manifest = read_manifest(path)
    tensors = {group: dict(named) for group, named in manifest.tensors.items()}
    change(tensors)
    (path / "manifest.json").write_text(manifest._replace(tensors=tensors).render(), encoding="utf-8")


FILE = "model.safetensors"
SIX = "w: of 6 rows the first"
WAS = "w is F32 .6., but the manifest says"
LIES = {
    "gap": ("w", TensorEntry("F32", (6,), {FILE: (0, 5)}), f"{SIX} 5 are there, up to model"),
    "beyond": ("w", TensorEntry("F32", (6,), {FILE: (0, 7)}), f"{SIX} 7 are there"),
    "late": ("w", TensorEntry("F32", (6,), {FILE: (1, 6)}), f"{SIX} 0 are there, up to no file"),
    "nowhere": ("w", TensorEntry("F32", (6,), {}), f"{SIX} 0 are there, up to no file"),
    "backwards": ("w", TensorEntry("F32", (6,), {FILE: (6, 0)}), f"{SIX} 0 are there"),
    "empty": ("w", TensorEntry("F32", (6,), {FILE: (0, 0)}), f"{SIX} 0 are there"),
    "other file": ("w", TensorEntry("F32", (6,), {"state.json": (0, 6)}), "'0:6' is not allowed there"),
    "other dtype": ("w", TensorEntry("F16", (6,), {FILE: (0, 6)}), f"{WAS} F16"),
    "no dtype": ("w", TensorEntry("float", (6,), {FILE: (0, 6)}), "'float' is not allowed there"),
    "other shape": ("w", TensorEntry("F32", (6, 1), {FILE: (0, 6)}), f"{WAS} F32"),
    "scalar": ("w", TensorEntry("F32", (), {FILE: (0, 1)}), f"{WAS} F32"),
    "other name": ("v", TensorEntry("F32", (6,), {FILE: (0, 6)}), "v is missing, but|holds w, but the man"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_about_rows_is_refused(tmp_path, lie):
    path = save_checkpoint(tmp_path, 1, {"model": {"w": torch.arange(6.0)}}, {})
    name, entry, said = LIES[lie]
    rewritten(path, lambda groups: groups.update(model={name: entry}))
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)

    def read():
        with open_checkpoint(path) as reader:
            return [reader.read("model", name) for name in reader.names("model")]

    with pytest.raises(CheckpointError, match=said):
        read()


def test_a_tensor_that_is_larger_than_its_files_is_refused_before_memory_is_taken(mine):
    def grow(groups):
        entry = groups["model"]["embeddings"]
        files = list(entry.rows)
        rows = {files[0]: (0, 13), files[1]: (13, 26), files[2]: (26, 2**50)}
        groups["model"]["embeddings"] = entry._replace(shape=(2**50, 5), rows=rows)

    rewritten(mine, grow)
    with pytest.raises(CheckpointError, match=r"embeddings of F32 .* cannot be in model-r00001-of-00003"):
        load_checkpoint(mine)
    with open_checkpoint(mine) as reader:
        with pytest.raises(CheckpointError, match=r"embeddings of F32 .* cannot be in model-r00001-of-00003"):
            reader.read("model", "embeddings")


def test_rows_in_two_files_are_refused(mine):
    def twice(groups):
        entry = groups["model"]["embeddings"]
        files = list(entry.rows)
        rows = {files[0]: (0, 13), files[1]: (12, 26), files[2]: (26, 37)}
        groups["model"]["embeddings"] = entry._replace(rows=rows)

    rewritten(mine, twice)
    with pytest.raises(CheckpointError, match=r"rows 12 to 13 are in model-r00001-.* and in model-r00002-"):
        open_checkpoint(mine)
    assert latest(mine.parent).name == "step-0000004"


def test_a_manifest_is_small(tmp_path):
    save_checkpoint(tmp_path, 1, tensors_of(1, 0, 1, "ddp"), {})
    text = (latest(tmp_path) / "manifest.json").read_text(encoding="utf-8")
    tensors = json.loads(text)["tensors"]
    assert tensors["model"]["norm"] == {"dtype": "F32", "shape": [3], "rows": {"model.safetensors": "0:3"}}
