"""`scratchlm checkpoint` from the command line."""

import shutil
import threading

import pytest
import torch
from tiny_settings import TINY, TINY_STORIES

from scratchlm.checkpoint import Coordinator, Saver, load_checkpoint, save_checkpoint
from scratchlm.lock import run_lock


@pytest.fixture
def checkpoints(tmp_path):
    """A folder of three checkpoints."""
    for step in (1, 2, 3):
        tensors = {"model": {"w": torch.full((1000,), float(step))}}
        save_checkpoint(tmp_path / "run" / "checkpoints", step, tensors, {}, identity={"world_size": 2})
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def of_two(tmp_path):
    """A folder of two checkpoints, each written by two processes."""
    (tmp_path / "pair").mkdir()
    store = torch.distributed.HashStore()

    def work(rank):
        coordinator = Coordinator(store, rank, 2)
        with Saver(tmp_path / "pair" / "checkpoints", newest=2, coordinator=coordinator) as saver:
            for step in (1, 2):
                saver.save(step, {"model": {"w": torch.full((1000,), float(step))}}, {}, {"world_size": 2})

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return tmp_path / "pair" / "checkpoints"


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_list_shows_each_checkpoint(cli, checkpoints, place):
    found = cli("checkpoint", "list", place)
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0].split() == ["step", "written", "size", "format", "processes", "state"]
    assert [(line.split()[0], line.split()[-1]) for line in lines[1:]] == [
        (str(step), "complete") for step in (1, 2, 3)
    ]
    assert lines[1].split()[-3:-1] == ["3", "2"]
    assert "4.08 kB" in lines[1]


def test_list_names_what_is_cut_off_and_unfinished_saves(cli, checkpoints):
    (checkpoints / "step-0000002" / "model.safetensors").write_bytes(b"")
    (checkpoints / ".step-0000004.abc.tmp").mkdir()
    found = cli("checkpoint", "list", "run")
    assert found.code == 0
    assert "step-0000002/model.safetensors: size or sha256 differs" in found.out
    assert "unfinished saves: 1; they go when training goes on" in found.err


def test_verify_reads_every_byte(cli, checkpoints):
    found = cli("checkpoint", "verify", "run")
    assert (found.code, found.err) == (0, "")
    assert found.out.count("every byte is right") == 3
    one = cli("checkpoint", "verify", "run/checkpoints/step-0000002")
    assert one.out.count("every byte is right") == 1


def test_verify_names_the_damaged_file_and_where_a_run_would_go_on(cli, checkpoints):
    damage(checkpoints / "step-0000003" / "model.safetensors")
    found = cli("checkpoint", "verify", "run")
    assert "step-0000003/model.safetensors: size or sha256 differs" in found.out
    assert found.error == "error: run: 1 of 3 cannot be used; a run goes on from step-0000002."
    for step in (1, 2):
        damage(checkpoints / f"step-000000{step}" / "manifest.json")
    assert cli("checkpoint", "verify", "run").error.endswith(
        "3 of 3 cannot be used; no run can go on from here."
    )


def test_a_missing_file_of_one_process_is_named(cli, of_two):
    listed = cli("checkpoint", "list", "pair")
    assert [line.split()[-3:] for line in listed.out.splitlines()[1:]] == [["3", "2", "complete"]] * 2
    assert cli("checkpoint", "verify", "pair").out.count("every byte is right") == 2
    (of_two / "step-0000002" / "model-r00002-of-00002.safetensors").unlink()
    missing = "model-r00002-of-00002.safetensors: missing; this checkpoint is incomplete"
    assert missing in " ".join(cli("checkpoint", "list", "pair").out.split())
    found = cli("checkpoint", "verify", "pair")
    assert missing in " ".join(found.out.split())
    assert found.error == "error: pair: 1 of 2 cannot be used; a run goes on from step-0000001."


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_place_without_checkpoints_says_what_to_give(cli, tmp_path, command):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing"):
        assert f"{place}: holds no checkpoint; give a run folder" in cli("checkpoint", command, place).error


def test_import_makes_a_checkpoint_that_says_where_it_is_from(cli, tmp_path):
    weights = {"token_embeddings.weight": torch.randn(5, 4), "ln_final.weight": torch.ones(4)}
    torch.save({"model": weights, "iteration": 70}, tmp_path / "theirs.pt")
    found = cli("checkpoint", "import", "theirs.pt", "-o", "taken")
    assert (found.code, found.err) == (0, "")
    assert found.out == "taken/step-0000070: 24 parameters in 2 tensors\n"
    checkpoint = load_checkpoint(tmp_path / "taken" / "step-0000070")
    assert torch.equal(
        checkpoint.tensors["model"]["token_embeddings.weight"], weights["token_embeddings.weight"]
    )
    assert checkpoint.state == {"imported_from": "theirs.pt"}
    again = cli("checkpoint", "import", "theirs.pt", "-o", "taken")
    assert again.error == "error: taken: holds step-0000070 already; give --step 71 or another folder."
    assert cli("checkpoint", "import", "theirs.pt", "-o", "taken", "--step", 71).code == 0


def test_weights_imported_into_a_run_are_used_by_it(cli, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "small")
    newest = max((tmp_path / "small" / "checkpoints").iterdir())
    weights = load_checkpoint(newest).tensors["model"]
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, tmp_path / "zero.pt")
    words = ["checkpoint", "import", "zero.pt", "-o", "small", "--step", 9]
    with run_lock(tmp_path / "small"):
        assert "has been training here since" in cli(*words).error
    assert cli(*words).code == 0
    made = load_checkpoint(tmp_path / "small" / "checkpoints" / "step-0000009")
    assert all(not tensor.any() for tensor in made.tensors["model"].values())
    assert made.state["imported_from"] == "zero.pt"
    assert cli("generate", "small", "--max-new-tokens", 3).code == 0


def test_a_run_goes_on_from_imported_weights(cli, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "small")
    (tmp_path / "small" / "summary.json").unlink()
    newest = max((tmp_path / "small" / "checkpoints").iterdir())
    torch.save(load_checkpoint(newest).tensors["model"], tmp_path / "theirs.pt")
    assert cli("checkpoint", "import", "theirs.pt", "-o", "small", "--step", 5).code == 0
    settings = [*TINY, *TINY_STORIES, "train.steps=6"]
    found = cli("train", "demo", *settings, "--folder", "small", "--resume")
    assert (found.code, found.err) == (0, "")
    assert "Continuing at step 5 of 6." in found.out
    assert max((tmp_path / "small" / "checkpoints").iterdir()).name == "step-0000006"


def test_weights_that_do_not_fit_the_run_are_refused(cli, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "small")
    newest = max((tmp_path / "small" / "checkpoints").iterdir())
    weights = load_checkpoint(newest).tensors["model"]
    torch.save({**weights, "ln_final.weight": torch.ones(3)}, tmp_path / "other.pt")
    before = sorted((tmp_path / "small" / "checkpoints").iterdir())
    error = cli("checkpoint", "import", "other.pt", "-o", "small", "--step", 9).error
    assert "ln_final.weight has the shape [3], the model needs [16]" in error
    assert sorted((tmp_path / "small" / "checkpoints").iterdir()) == before


def test_help_of_each_command_answers(cli):
    for command in ("list", "verify", "import"):
        assert cli("checkpoint", command, "--help").code == 0
