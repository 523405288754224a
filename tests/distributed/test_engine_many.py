"""More processes and rarer settings: groups of shards, frozen parameters, going back, compiled blocks."""

import engine_runs as real
import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

GROUPS = ("distributed=fsdp2", "distributed.shard_processes=2")
AVERAGE = "train.ema_decay=0.9"
FROZEN = "model.name=frozen"
SPIKE = (
    "train.steps=11",
    "train.guard.on_spike=rollback",
    "train.guard.window=8",
    "train.save_every=4",
    "train.eval_every=99",
)
COMPILED = (
    "model.name=transformer",
    "model.num_layers=1",
    "model.dropout=0",
    "train.compile=true",
    "train.steps=2",
    "train.micro_batch_tokens=96",
)
"""A compiler draws other random numbers for dropout."""
COMPILED_ROUNDING = 1e-5
"""A compiler adds up in another order; measured 1e-7."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(Folder, number of processes -> what they read): starts of 4, 2, 1 and 3, one after another."""
    folder = tmp_path_factory.mktemp("engines")
    wanted = {
        4: [
            real.told("groups", *GROUPS),
            real.told("rich-groups", *GROUPS, *real.RICH),
            real.told("frozen-groups", *GROUPS, FROZEN),
            real.told("thin-4", "distributed=fsdp2", "model.d_model=6"),
            real.told("chain-4", "distributed=fsdp2", AVERAGE, **real.stop(2, 4)),
        ],
        2: [
            real.told("zero1", "distributed=zero1", "distributed.how=bucketed"),
            real.told("rich-zero1", "distributed=zero1", *real.RICH),
            real.told("whole", "distributed=fsdp2", "distributed.whole_gradients=true"),
            real.told("frozen-ddp", FROZEN),
            real.told("frozen-zero1", "distributed=zero1", FROZEN),
            real.told("frozen-fsdp2", "distributed=fsdp2", FROZEN, "train.gradient_checkpointing=true"),
            real.told("spike", "distributed=fsdp2", *SPIKE, harm={"what": "spike", "after": 9 * 6}),
            real.told("chain-2", AVERAGE, begin="chain-4", **real.stop(1, 2)),
        ],
        1: [
            real.told("plain"),
            real.told("rich", *real.RICH),
            real.told("frozen", FROZEN),
            real.told("thin", "model.d_model=6"),
            real.told("average", AVERAGE),
            # one process alone would give up a step that is not at its last row
            real.told("chain-1", AVERAGE, begin="chain-2", harm={"what": "SIGTERM", "row": real.ROWS}),
        ],
        3: [real.told("chain-3", "distributed=zero1", AVERAGE, begin="chain-1")],
    }
    return folder, real.runs(folder, wanted)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("groups", "plain"),
        ("zero1", "plain"),
        ("whole", "plain"),
        ("thin-4", "thin"),
        ("frozen-groups", "frozen"),
        ("frozen-ddp", "frozen"),
        ("frozen-zero1", "frozen"),
        ("frozen-fsdp2", "frozen"),
        ("rich-groups", "rich"),
        ("rich-zero1", "rich"),
    ],
)
def test_an_engine_computes_what_one_process_computes(found, name, one):
    """Muon and tied embeddings in `rich`; `thin` has so few rows that a process keeps none of some."""
    folder, _ = found
    rounding = real.MUON_ROUNDING if one == "rich" else real.ROUNDING
    assert real.losses(folder / name) == pytest.approx(real.losses(folder / one), rel=rounding)
    assert real.losses(folder / name, "valid") == pytest.approx(
        real.losses(folder / one, "valid"), rel=rounding
    )
    real.close(real.saved(folder, one, 6), real.saved(folder, name, 6), rtol=1e-3, atol=1e-4)


def test_what_is_frozen_stays_as_it_was_and_has_no_moments(found):
    folder, _ = found
    for name in ("frozen-groups", "frozen-ddp", "frozen-zero1", "frozen-fsdp2"):
        before, after = real.saved(folder, name, 3), real.saved(folder, name, 6)
        moved = {
            key
            for key, tensor in after.tensors["model"].items()
            if (tensor != before.tensors["model"][key]).any()
        }
        assert moved == set(after.state["parameters"])
        assert not any(key.startswith(("token_embeddings", "layers.0", "layers.1.attn")) for key in moved)


@pytest.mark.parametrize(("name", "world_size"), [("zero1", 2), ("groups", 4)])
def test_rows_come_in_the_order_of_one_process(found, name, world_size):
    _, ranks = found
    assert real.sample_order(ranks[world_size], name) == ranks[1][0]["plain"]


def test_a_spike_takes_shards_back_to_the_checkpoint_before_it(found):
    folder, _ = found
    (row,) = real.rows_of(folder / "spike", "rollback")
    assert (row["step"], row["from_step"], row["data_offset"]) == (8, 10, 2)
    assert [row["step"] for row in real.rows_of(folder / "spike", "train")] == list(range(1, 12))


@pytest.mark.parametrize(
    ("name", "before", "step"),
    [("chain-2", "chain-4", 2), ("chain-1", "chain-2", 3), ("chain-3", "chain-1", 4)],
)
def test_a_checkpoint_is_the_same_bits_whoever_reads_and_writes_it(found, name, before, step):
    """Four processes with fsdp2, two with ddp, one, three with zero1: each saves at once what it has read."""
    folder, _ = found
    real.close(real.saved(folder, before, step), real.saved(folder, name, step), rtol=0, atol=0)


def test_a_run_handed_from_four_to_two_to_one_to_three_processes_is_that_of_one(found):
    """SIGTERM reached one process of each; all stopped after the same step with one checkpoint."""
    folder, ranks = found
    assert real.losses(folder / "chain-3") == pytest.approx(
        real.losses(folder / "average"), rel=real.ROUNDING
    )
    last = [real.losses(folder / name, "valid")[-1] for name in ("chain-3", "average")]
    assert last[0] == pytest.approx(last[1], rel=real.ROUNDING)
    whole = [row for size in (4, 2, 1, 3) for row in real.sample_order(ranks[size], f"chain-{size}")]
    assert whole == ranks[1][0]["average"]
    real.close(real.saved(folder, "average", 6), real.saved(folder, "chain-3", 6), rtol=1e-3, atol=1e-4)
    files = sorted(path.name for path in (folder / "chain-4" / "checkpoints" / "step-0000002").iterdir())
    assert [name for name in files if name.startswith("model")] == [
        f"model-r{rank:05d}-of-00004.safetensors" for rank in (1, 2, 3, 4)
    ]


@pytest.mark.compile
def test_compiled_processes_lose_what_one_process_loses(tmp_path):
    """It computes uncompiled; samples are written between the two steps."""
    plain = [word for word in COMPILED if word != "train.compile=true"]
    real.runs(
        tmp_path,
        {
            2: [real.told("ddp", *COMPILED), real.told("fsdp2", "distributed=fsdp2", *COMPILED)],
            1: [real.told("one", *plain)],
        },
    )
    for name in ("ddp", "fsdp2"):
        assert real.losses(tmp_path / name) == pytest.approx(
            real.losses(tmp_path / "one"), rel=COMPILED_ROUNDING
        )
