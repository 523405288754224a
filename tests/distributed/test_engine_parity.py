"""The engines in the real trainer: two processes compute what one does, and go on with what another left."""

import json

import engine_runs as real
import pytest
import torch

pytestmark = pytest.mark.distributed

END = {"what": "end"}
STAYS = ("distributed=fsdp2", "distributed.reshard_after_forward=false")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(Folder, number of processes -> what they read): two processes, then one."""
    folder = tmp_path_factory.mktemp("engines")
    wanted = {
        2: [
            real.told("ddp"),
            # where logits differ between machines, process 1 would end its samples early and be alone
            real.told("fsdp2", "distributed=fsdp2", harm=END, rank=1),
            real.told("nan", *STAYS, harm={"what": "nan", "row": 15}, rank=1),
            real.told("rich-2", "distributed=fsdp2", *real.RICH, **real.stop(2, 2)),
            real.told("rich-3", "distributed=zero1", *real.RICH, begin="rich-2", **real.stop(1, 2)),
            real.told("rich-6", "distributed=fsdp2", *real.RICH, begin="rich-3"),
        ],
        1: [real.told("plain"), real.told("rich", *real.RICH)],
    }
    return folder, real.runs(folder, wanted)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_an_engine_loses_what_one_process_loses(found, name):
    """With dropout, accumulation and clipping; the loss of validation, which all share, too."""
    folder, _ = found
    assert real.losses(folder / name) == pytest.approx(real.losses(folder / "plain"), rel=real.ROUNDING)
    assert real.losses(folder / name, "valid") == pytest.approx(
        real.losses(folder / "plain", "valid"), rel=real.ROUNDING
    )
    norms = [[row["grad_norm"] for row in real.rows_of(folder / run, "train")] for run in (name, "plain")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert min(norms[1]) > 0.3, "nothing was clipped"
    real.close(real.saved(folder, "plain", 6), real.saved(folder, name, 6), rtol=1e-3, atol=1e-4)


def test_a_rich_run_handed_from_fsdp2_to_zero1_and_back_is_that_of_one_process(found):
    """Muon, averages, tied embeddings, recomputed blocks; SIGTERM reached one process, all stopped."""
    folder, ranks = found
    assert real.losses(folder / "rich-6") == pytest.approx(
        real.losses(folder / "rich"), rel=real.MUON_ROUNDING
    )
    last = [real.losses(folder / name, "valid")[-1] for name in ("rich-6", "rich")]
    assert last[0] == pytest.approx(last[1], rel=real.MUON_ROUNDING)
    real.close(real.saved(folder, "rich", 6), real.saved(folder, "rich-6", 6), rtol=1e-3, atol=1e-4)
    whole = [row for step in (2, 3, 6) for row in real.sample_order(ranks[2], f"rich-{step}")]
    assert whole == ranks[1][0]["rich"]


@pytest.mark.parametrize(("name", "before", "step"), [("rich-3", "rich-2", 2), ("rich-6", "rich-3", 3)])
def test_a_checkpoint_is_the_same_bits_whichever_engine_reads_and_writes_it(found, name, before, step):
    """Each run saves at once what it has read."""
    folder, _ = found
    real.close(real.saved(folder, before, step), real.saved(folder, name, step), rtol=0, atol=0)


def test_sizes_of_layers_are_those_of_whole_layers(found):
    folder, _ = found
    sizes = [real.rows_of(folder / name, "statistics") for name in ("rich", "rich-6")]
    assert [row["step"] for row in sizes[1]] == [2, 4, 6]
    for one, shards in zip(*sizes, strict=True):
        assert one["layers"].keys() == shards["layers"].keys()
        for part, numbers in one["layers"].items():
            assert shards["layers"][part] == pytest.approx(numbers, rel=1e-3), part


def test_rows_that_are_kept_while_the_model_is_built_are_those_of_one_process_bit_for_bit(found):
    folder, _ = found
    whole, rows = real.first_weights(folder, "plain"), real.first_weights(folder, "fsdp2", 2)
    assert whole.keys() == rows.keys()
    assert all(torch.equal(rows[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_rows_come_in_the_order_of_one_process(found, name):
    _, ranks = found
    assert real.sample_order(ranks[2], name) == ranks[1][0]["plain"]


def test_samples_are_written_once_and_are_the_same_text(found):
    folder, _ = found
    texts = {
        name: [json.loads(line)["text"] for line in (folder / name / "samples.jsonl").open(encoding="utf-8")]
        for name in ("plain", "ddp", "fsdp2")
    }
    assert texts["plain"] == texts["ddp"] == texts["fsdp2"]
    assert len(texts["plain"]) == 3


def test_a_gradient_that_is_no_number_on_one_process_leaves_the_step_out_on_all(found):
    folder, _ = found
    (row,) = real.rows_of(folder / "nan", "skip")
    assert row["step"] == 3
    assert real.losses(folder / "nan")[:2] == real.losses(folder / "fsdp2")[:2]
    assert {values["step"] for values in real.saved(folder, "nan", 6).state["optimizer"].values()} == {5}
