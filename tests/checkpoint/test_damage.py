"""Damaged and hostile checkpoints: refused with the file's name, and passed over for the one before."""

import hashlib
import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import save

from scratchlm.checkpoint import (
    FORMAT,
    CheckpointError,
    latest,
    load_checkpoint,
    of_later_version,
    save_checkpoint,
    verify,
)
from scratchlm.checkpoint.manifest import MAX_MANIFEST_BYTES, FileEntry, read_manifest
from scratchlm.checkpoint.retention import is_complete

SHA = "0" * 64


@pytest.fixture
def steps(tmp_path):
    """Two checkpoints, of steps 1 and 2, with two tensor files each."""
    tensors = {"model": {"w": torch.arange(6.0)}, "optimizer": {"0.m": torch.ones(2)}}
    return [
        save_checkpoint(tmp_path, step, tensors, {"rows": [1, 2]}, identity={"tokenizer": "9f2c"})
        for step in (1, 2)
    ]


def files_of(path):
    found = sorted(path.iterdir())
    assert len(found) == 4, found
    return found


def test_a_file_cut_at_any_sixteenth_is_refused_and_the_step_before_is_taken(steps, caplog):
    older, newer = steps
    for file in files_of(newer):
        whole = file.read_bytes()
        for sixteenth in range(16):
            file.write_bytes(whole[: len(whole) * sixteenth // 16])
            with pytest.raises(CheckpointError, match=f"step-0000002.*{file.name}"):
                load_checkpoint(newer)
            caplog.clear()
            assert latest(older.parent) == older
            assert f"{file.name}" in caplog.text
            assert "Falling back to the checkpoint before it." in caplog.text
            assert not is_complete(newer), "a missing part shows without reading the contents"
        file.write_bytes(whole)
    assert latest(older.parent) == newer


def test_a_flipped_bit_in_any_byte_of_any_file_is_refused_and_named(steps):
    older, newer = steps
    for file in files_of(newer):
        whole = file.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=rf"step-0000002.*{file.name}"):
                load_checkpoint(newer)
            with pytest.raises(CheckpointError):
                verify(newer)
            assert of_later_version(older.parent) is None, "damage passes for a later version's work"
        assert latest(older.parent) == older
        file.write_bytes(whole)
    assert load_checkpoint(newer).step == 2


def test_a_missing_file_is_named(steps):
    for name in ("optimizer.safetensors", "state.json"):
        path = steps[1]
        (path / name).rename(path / "elsewhere")
        with pytest.raises(CheckpointError, match=f"{name}: missing; this checkpoint is incomplete"):
            load_checkpoint(path)
        (path / "elsewhere").rename(path / name)


def test_a_renamed_folder_does_not_pass_for_a_later_step(steps):
    older, newer = steps
    moved = newer.rename(newer.with_name("step-0000900"))
    with pytest.raises(CheckpointError, match="it is of step 2: the folder was renamed"):
        verify(moved)
    assert latest(older.parent) == older


def test_a_copy_under_another_name_loads(steps, tmp_path):
    assert load_checkpoint(shutil.copytree(steps[1], tmp_path / "the best one")).step == 2


def test_a_newer_format_is_refused_and_passed_over(steps):
    older, newer = steps
    manifest = json.loads((newer / "manifest.json").read_text(encoding="utf-8"))
    (newer / "manifest.json").write_text(json.dumps({"format": FORMAT + 1, "parts": manifest}))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1} is newer than {FORMAT}; update"):
        load_checkpoint(newer)
    assert latest(older.parent) == older
    assert of_later_version(older.parent) == newer
    shutil.rmtree(newer)
    assert of_later_version(older.parent) is None


def test_a_newer_format_behind_what_can_be_read_is_in_nobodys_way(steps):
    older, newer = steps
    (older / "manifest.json").write_text(json.dumps({"format": FORMAT + 1}))
    assert of_later_version(newer.parent) is None


@pytest.mark.parametrize(
    "name",
    ["../1", "../../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".x", "", "a\0b", "c:\\x", "-a"],
)
def test_a_manifest_names_no_places_outside_its_folder(steps, name):
    path = steps[1]
    manifest = read_manifest(path)
    hostile = manifest._replace(files={**manifest.files, name: FileEntry(0, SHA)})
    (path / "manifest.json").write_text(hostile.render())
    with pytest.raises(CheckpointError, match="is not allowed there"):
        load_checkpoint(path)
    hostile = manifest._replace(groups={**manifest.groups, name: ()})
    (path / "manifest.json").write_text(hostile.render())
    with pytest.raises(CheckpointError, match="is not allowed there"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -2},
        {"step": "2"},
        {"step": True},
        {"format": 0},
        {"format": True},
        {"format": 2.0},
        {"format": None},
        {"groups": {}},
        {"groups": {"model": ["model.safetensors"], "twin": ["model.safetensors"]}},
        {"groups": {"model": ["state.json"]}},
        {"files": {}},
        {"files": {"state.json": FileEntry(-1, SHA)}},
        {"files": {"state.json": FileEntry(10.0, SHA)}},
        {"files": {"state.json": FileEntry(10, "abc")}},
        {"files": {"state.json": FileEntry(10, None)}},
    ],
    ids=str,
)
def test_a_manifest_with_the_right_checksum_and_wrong_values_is_refused(steps, change):
    path = steps[1]
    (path / "manifest.json").write_text(read_manifest(path)._replace(**change).render())
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"x"', "[" * 200_000, "{}", '{"format": 2}', "\xff", "NaN"]
)
def test_a_manifest_that_is_none_is_refused(steps, text):
    (steps[1] / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        load_checkpoint(steps[1])


def test_an_endless_manifest_is_not_read_into_memory(steps):
    with (steps[1] / "manifest.json").open("r+b") as stream:
        stream.truncate(2**40)  # a sparse file: no disk needed
    with pytest.raises(CheckpointError, match=f"longer than {MAX_MANIFEST_BYTES} bytes"):
        load_checkpoint(steps[1])


def test_links_and_pipes_are_not_followed(steps, tmp_path):
    file = steps[1] / "model.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_checkpoint(steps[1])
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_checkpoint(steps[1])


def put_in(path, content):
    """Make `content` the model file of a checkpoint, with the right size and checksum in its manifest."""
    (path / "model.safetensors").write_bytes(content)
    manifest = read_manifest(path)
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    sealed = manifest._replace(files={**manifest.files, "model.safetensors": entry})
    (path / "manifest.json").write_text(sealed.render())


def tensor_file(header, numbers=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return len(text).to_bytes(8, "little") + text + numbers


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        tensor_file(b"[]"),
        tensor_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        tensor_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"),
        tensor_file({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        tensor_file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        tensor_file({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"0000"),
        tensor_file({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        tensor_file(
            {
                "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
            },
            b"000000",
        ),
    ],
    ids=range(11),
)
def test_a_tensor_file_with_the_right_checksum_and_a_lying_header_is_refused(steps, content):
    put_in(steps[1], content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_checkpoint(steps[1])


def test_mutated_tensor_files_load_or_are_refused(tmp_path):
    draw = random.Random(0)
    named = {"w": torch.arange(6.0), "v": torch.ones(2, 2, dtype=torch.bfloat16)}
    path = save_checkpoint(tmp_path, 1, {"model": named}, {})
    whole = save(named)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content) - 24)] = draw.randrange(256)
        put_in(path, bytes(content))
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    ("version", "said"), [(2, "a is in another file of model too"), (3, "holds a, but the manifest does not")]
)
def test_a_name_in_two_files_of_a_group_is_refused(tmp_path, version, said):
    named = {"a": torch.ones(8), "b": torch.zeros(8)}
    path = save_checkpoint(tmp_path, 1, {"model": named}, {}, shard_bytes=32)
    manifest = read_manifest(path)
    first = (path / "model-00001.safetensors").read_bytes()
    (path / "model-00002.safetensors").write_bytes(first)
    files = {**manifest.files, "model-00002.safetensors": manifest.files["model-00001.safetensors"]}
    tensors = manifest.tensors if version == FORMAT else {}
    (path / "manifest.json").write_text(
        manifest._replace(format=version, files=files, tensors=tensors).render()
    )
    with pytest.raises(CheckpointError, match=rf"model-00002\.safetensors: {said}"):
        load_checkpoint(path)


def test_a_state_that_is_no_json_is_refused(steps):
    content = b"[" * 100_000
    (steps[1] / "state.json").write_bytes(content)
    manifest = read_manifest(steps[1])
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    sealed = manifest._replace(files={**manifest.files, "state.json": entry})
    (steps[1] / "manifest.json").write_text(sealed.render())
    with pytest.raises(CheckpointError, match=r"state\.json: not readable as JSON"):
        load_checkpoint(steps[1])
