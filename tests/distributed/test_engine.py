"""The engines in the real trainer: any number of processes computes what one does, and goes on with it."""

import json

import pytest
import torch
from engine_runs import ROWS, losses, rows_of, sample_order, told
from engine_runs import runs as run_all

from scratchlm.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed

ROUNDING = 2e-6
"""Gradients are added in another order; measured over 6 steps: 6e-7 of the loss."""
MUON_ROUNDING = 1e-5
"""Newton-Schulz makes small differences larger: measured 1e-6."""

RICH = (
    "model.tied=true",
    "optimizer=muon",
    "optimizer.precision=float32",
    "train.ema_decay=0.9",
    "train.statistics_every=2",
    "train.gradient_checkpointing=true",
    "train.grad_clip=0.1",
)
SPIKE = ("train.steps=11", "train.guard.on_spike=rollback", "train.guard.window=8", "train.save_every=4")


def stop(step, world_size):
    """SIGTERM reaches the last process alone, in the middle of a step."""
    return {"harm": {"what": "SIGTERM", "row": (step - 1) * ROWS // world_size + 1}, "rank": world_size - 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(Folder, number of processes -> what they read): starts of 4, 2, 1 and 3, one after another."""
    folder = tmp_path_factory.mktemp("engines")
    wanted = {
        4: [
            told("hybrid", "distributed=fsdp2", "distributed.shard_processes=2"),
            told("chain-4", "distributed=fsdp2", "train.ema_decay=0.9", **stop(2, 4)),
        ],
        2: [
            told("ddp"),
            told("zero1", "distributed=zero1", "distributed.how=bucketed"),
            told("fsdp2", "distributed=fsdp2", "distributed.reshard_after_forward=false"),
            told("rich-zero1", "distributed=zero1", *RICH),
            told("rich-fsdp2", "distributed=fsdp2", *RICH),
            told("nan", "distributed=fsdp2", harm={"what": "nan", "row": 15}, rank=1),
            told("spike", "distributed=fsdp2", *SPIKE, harm={"what": "spike", "after": 9 * ROWS // 2}),
            told("chain-2", "train.ema_decay=0.9", begin="chain-4", **stop(1, 2)),
        ],
        1: [
            told("plain"),
            told("rich", *RICH),
            told("average", "train.ema_decay=0.9"),
            told("chain-1", "train.ema_decay=0.9", begin="chain-2", harm={"what": "SIGTERM", "row": ROWS}),
        ],
        3: [told("chain-3", "distributed=zero1", "train.ema_decay=0.9", begin="chain-1")],
    }
    return folder, run_all(folder, wanted)


def saved(folder, name, step):
    return load_checkpoint(folder / name / "checkpoints" / f"step-{step:07d}")


def close(one, other, **tolerance):
    for group in ("model", "optimizer", "ema"):
        assert one.tensors.get(group, {}).keys() == other.tensors.get(group, {}).keys()
        for name, tensor in one.tensors.get(group, {}).items():
            torch.testing.assert_close(
                other.tensors[group][name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance
            )
    assert one.state["optimizer"] == other.state["optimizer"]
    assert one.state["parameters"] == other.state["parameters"]


@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp2", "hybrid"])
def test_an_engine_loses_what_one_process_loses(runs, name):
    """With dropout, accumulation and clipping; the loss of validation, which all share, too."""
    folder, _ = runs
    assert losses(folder / name) == pytest.approx(losses(folder / "plain"), rel=ROUNDING)
    assert losses(folder / name, "valid") == pytest.approx(losses(folder / "plain", "valid"), rel=ROUNDING)
    norms = [[row["grad_norm"] for row in rows_of(folder / run, "train")] for run in (name, "plain")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert min(norms[1]) > 0.3, "nothing was clipped"
    close(saved(folder, "plain", 6), saved(folder, name, 6), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["rich-zero1", "rich-fsdp2"])
def test_muon_averages_tied_embeddings_and_recomputed_blocks_are_those_of_one_process(runs, name):
    folder, _ = runs
    assert losses(folder / name) == pytest.approx(losses(folder / "rich"), rel=MUON_ROUNDING)
    assert losses(folder / name, "valid") == pytest.approx(
        losses(folder / "rich", "valid"), rel=MUON_ROUNDING
    )


def test_sizes_of_layers_are_those_of_whole_layers(runs):
    folder, _ = runs
    found = [rows_of(folder / name, "statistics") for name in ("rich", "rich-fsdp2")]
    assert [row["step"] for row in found[1]] == [2, 4]
    for one, shards in zip(*found, strict=True):
        assert one["layers"].keys() == shards["layers"].keys()
        for part, sizes in one["layers"].items():
            assert shards["layers"][part] == pytest.approx(sizes, rel=1e-3), part


@pytest.mark.parametrize(("name", "world_size"), [("ddp", 2), ("zero1", 2), ("fsdp2", 2), ("hybrid", 4)])
def test_rows_come_in_the_order_of_one_process(runs, name, world_size):
    _, found = runs
    assert sample_order(found[world_size], name) == found[1][0]["plain"]


def test_samples_are_written_once_and_are_the_same_text(runs):
    folder, _ = runs
    texts = {
        name: [json.loads(line)["text"] for line in (folder / name / "samples.jsonl").open(encoding="utf-8")]
        for name in ("plain", "ddp", "fsdp2")
    }
    assert texts["plain"] == texts["ddp"] == texts["fsdp2"]
    assert len(texts["plain"]) == 3


def test_a_gradient_that_is_no_number_on_one_process_leaves_the_step_out_on_all(runs):
    folder, _ = runs
    (row,) = rows_of(folder / "nan", "skip")
    assert row["step"] == 3
    assert losses(folder / "nan")[:2] == losses(folder / "fsdp2")[:2]
    assert {values["step"] for values in saved(folder, "nan", 6).state["optimizer"].values()} == {5}


def test_a_spike_takes_shards_back_to_the_checkpoint_before_it(runs):
    folder, _ = runs
    (row,) = rows_of(folder / "spike", "rollback")
    assert (row["step"], row["from_step"], row["data_offset"]) == (8, 10, 2)
    assert [row["step"] for row in rows_of(folder / "spike", "train")] == list(range(1, 12))


@pytest.mark.parametrize(
    ("name", "before", "step"),
    [("chain-2", "chain-4", 2), ("chain-1", "chain-2", 3), ("chain-3", "chain-1", 4)],
)
def test_a_checkpoint_is_the_same_bits_whoever_reads_and_writes_it(runs, name, before, step):
    """Four processes with fsdp2, two with ddp, one, three with zero1: each saves at once what it has read."""
    folder, _ = runs
    close(saved(folder, before, step), saved(folder, name, step), rtol=0, atol=0)


def test_a_run_handed_from_four_to_two_to_one_to_three_processes_is_that_of_one(runs):
    """SIGTERM reached one process of each; all stopped after the same step with one checkpoint."""
    folder, found = runs
    assert losses(folder / "chain-3") == pytest.approx(losses(folder / "average"), rel=ROUNDING)
    assert losses(folder / "chain-3", "valid")[-1] == pytest.approx(
        losses(folder / "average", "valid")[-1], rel=ROUNDING
    )
    whole = [row for size in (4, 2, 1, 3) for row in sample_order(found[size], f"chain-{size}")]
    assert whole == found[1][0]["average"]
    close(saved(folder, "average", 6), saved(folder, "chain-3", 6), rtol=1e-3, atol=1e-4)
    files = sorted(path.name for path in (folder / "chain-4" / "checkpoints" / "step-0000002").iterdir())
    assert [name for name in files if name.startswith("model")] == [
        f"model-r{rank:05d}-of-00004.safetensors" for rank in (1, 2, 3, 4)
    ]
