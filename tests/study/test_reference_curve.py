"""Claims about reference curves: what is called normal, too high or better, and what is not compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from several_runs import BATCH, write_small_run
from synthetic_run import CONFIG

from scratchlm.study import reference_curve
from scratchlm.study.reference_curve import ReferenceCurve, open_reference
from scratchlm.study.run_record import read_run

STEPS = (100, 200, 300, 400)


def curve_of(*losses, seeds=None, config=CONFIG, data=()):
    """A curve from the losses of each step, as a tuple over seeds."""
    return ReferenceCurve(
        name="demo", seeds=seeds or tuple(range(len(losses[0]))), steps=STEPS[: len(losses)],
        tokens=tuple(step * BATCH for step in STEPS[: len(losses)]), losses=losses, config=config,
        data=dict(data), hardware={"processor": "x"}, versions={"torch": "2.13.0"}, seconds=(1.0,),
    )  # fmt: skip


FLAT = curve_of(*[(1.98, 2.0, 2.02)] * 4)


def rows_of(*losses):
    return [{"kind": "valid", "step": step, "loss": loss} for step, loss in zip(STEPS, losses, strict=False)]


def test_tolerance_is_a_prediction_interval_of_pooled_spreads():
    expected = FLAT.expected
    assert [at.mean for at in expected] == [pytest.approx(2.0)] * 4
    assert [at.tolerance for at in expected] == [pytest.approx(6.965 * 0.02 * math.sqrt(4 / 3))] * 4
    uneven = curve_of((2.0, 2.0), (1.9, 2.1), (2.0, 2.0), (2.0, 2.0))
    two = 31.821 * math.sqrt(3 / 2)
    assert [at.tolerance for at in uneven.expected] == [
        pytest.approx(two * math.sqrt(0.02 / 2)),  # the variances of two steps are 0 and 0.02
        pytest.approx(two * math.sqrt(0.02 / 3)),
        pytest.approx(two * math.sqrt(0.02 / 3)),
        pytest.approx(0.01),  # no spread at all: half a per cent of the mean
    ]


def test_more_seeds_make_the_band_narrower():
    widths = [curve_of((1.98, 2.02) * pairs).expected[0].tolerance for pairs in (1, 2, 3, 10)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 10 * widths[3]


def test_a_single_run_has_five_per_cent_and_says_so():
    lonely = curve_of((2.0,), (1.5,))
    assert [at.tolerance for at in lonely.expected] == [pytest.approx(0.1), pytest.approx(0.075)]
    assert lonely.basis == "within 5 % of the loss, as there is one run only"
    assert "where the reference gave 1.500 +- 0.075" in str(lonely.judge(rows_of(2.0, 1.5)))


@pytest.mark.parametrize(
    ("losses", "kind", "step", "words"),
    [
        ((2.0, 2.05, 1.95, 2.09), "normal", None,
         "normal: 2.090 at step 400, where 3 seeds gave 2.000 +- 0.161"),
        ((2.0, 2.2, 2.0, 2.0), "normal", None, "normal: 2.000 at step 400"),
        ((2.0, 2.0, 2.2, 2.3), "too high", 300, "too high from step 300 on: 2.300 at step 400"),
        ((2.2, 2.2, 2.2, 2.2), "too high", 100, "too high from step 100 on"),
        ((2.0, 2.0, math.nan, math.inf), "too high", 300, "too high from step 300 on: inf at step 400"),
        ((2.2, 1.8, 1.8), "better", 200, "better than expected from step 200 on: 1.800 at step 300"),
        ((2.0,), "normal", None, "normal: 2.000 at step 100"),
    ],
)  # fmt: skip
def test_the_newest_loss_decides_and_the_verdict_says_since_when(losses, kind, step, words):
    verdict = FLAT.judge(rows_of(*losses))
    assert (verdict.kind, verdict.step) == (kind, step)
    assert str(verdict).startswith(words)


def test_other_rows_and_steps_are_left_out():
    rows = [
        {"kind": "train", "step": 400, "loss": 9.0},
        *rows_of(2.0),
        {"kind": "valid", "step": 150, "loss": 9.0},
    ]
    assert FLAT.judge(rows).kind == "normal"
    verdict = FLAT.judge([{"kind": "valid", "step": 150, "loss": 2.0}])
    assert str(verdict) == (
        "not comparable: no validation yet at a step of the reference (100, 200, 300 and 1 more)"
    )


def changed(key, value):
    tree = json.loads(json.dumps(CONFIG))
    owner = tree
    for part in key.split(".")[:-1]:
        owner = owner[part]
    owner[key.split(".")[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 0.01, "settings differ: optimizer.lr 0.01 instead of 0.003"),
        ("model.d_model", 256, "settings differ: model.d_model 256 instead of 192"),
        ("model.norm.name", "layernorm", "settings differ: model.norm layernorm instead of rmsnorm"),
        ("train.batch_tokens", 8192, "settings differ: train.batch_tokens 8192 instead of 4096"),
        ("train.z_loss", 1e-4, "settings differ: train.z_loss 0.0001 instead of -"),
    ],
)
def test_settings_that_decide_what_is_learned_must_be_equal(key, value, words):
    verdict = FLAT.judge(rows_of(2.0), changed(key, value))
    assert (verdict.kind, str(verdict)) == ("not comparable", f"not comparable: {words}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 5), ("name", "mine"), ("train.precision", "float32"), ("train.eval_every", 50),
     ("data.workers", 4), ("sampling.temperature", 0.5), ("model.attention", "sdpa")],
)  # fmt: skip
def test_settings_that_leave_the_expected_loss_alone_may_differ(key, value):
    assert FLAT.judge(rows_of(2.0), changed(key, value)).kind == "normal"


def test_settings_that_a_newer_version_added_count_with_their_defaults():
    from scratchlm.train.recipes import read

    config = read("quick")
    older = config.model_dump(mode="json")
    del older["train"]["z_loss"], older["train"]["label_smoothing"], older["train"]["document_mask"]
    assert curve_of((2.0, 2.1), config=older).judge(rows_of(2.0), config).kind == "normal"


def test_other_data_are_not_comparable():
    curve = curve_of((2.0, 2.1), data={"train_tokens": 2_400_000, "tokenizer": "9f86d081aa"})
    same = {"train_tokens": 2_400_000, "tokenizer": "9f86d081aa"}
    assert curve.judge(rows_of(2.0), data=same).kind == "normal"
    assert str(curve.judge(rows_of(2.0), data={"train_tokens": 2_300_000})) == (
        "not comparable: the data differ: train tokens 2,300,000 instead of 2,400,000"
    )


def test_a_curve_of_three_seeds_calls_other_seeds_normal_and_a_slow_start_too_high(tmp_path):
    runs = [read_run(write_small_run(tmp_path / f"s{seed}", seed=seed)) for seed in range(3)]
    curve = ReferenceCurve.from_runs(runs)
    assert (curve.seeds, curve.steps[0], curve.steps[-1]) == ((0, 1, 2), 100, 1200)
    assert curve.data == {"train_tokens": 2_400_000, "valid_tokens": 40_000, "tokenizer": "9f86d081"}
    for seed in range(3, 23):
        run = read_run(write_small_run(tmp_path / f"s{seed}", seed=seed))
        assert curve.judge_run(run).kind == "normal", seed
    worse = read_run(write_small_run(tmp_path / "worse", seed=5, shift=0.3))
    assert (curve.judge_run(worse).kind, curve.judge_run(worse).step) == ("too high", 100)


def test_false_alarms_are_rare():
    """Validations whose noise is independent: less than one run in fifty is called anything but normal."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        losses = 2.0 + random.normal(0, 0.02, size=(4, 4))
        curve = curve_of(*[tuple(row[:3]) for row in losses])
        alarms += curve.judge(rows_of(*losses[:, 3])).kind != "normal"
    assert alarms < 10


def test_saved_and_loaded_it_is_the_same(tmp_path):
    curve = ReferenceCurve.from_runs(
        [read_run(write_small_run(tmp_path / f"s{seed}", seed=seed)) for seed in range(2)]
    )
    path = tmp_path / "curves" / "demo.json"
    curve.save(path)
    assert ReferenceCurve.load(path) == curve
    text = path.read_text(encoding="utf-8")
    assert f'"fingerprint": "{curve.fingerprint}"' in text
    assert sum(line.startswith('    {"step": ') for line in text.splitlines()) == len(curve.steps)


def test_the_fingerprint_names_the_settings_and_not_the_seed():
    assert curve_of((2.0,)).fingerprint == curve_of((3.0,), config=changed("seed", 9)).fingerprint
    assert curve_of((2.0,)).fingerprint != curve_of((2.0,), config=changed("optimizer.lr", 1.0)).fingerprint


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"seed": 0}, {"seed": 0}], r"a: seed 0 is there twice; train with another, seed=1\."),
        ([{"seed": 0}, {"seed": 1, "until": 500}], r"b: this run is not finished; a reference"),
        ([{"seed": 0}, {"seed": 1, "optimizer": "lion"}], r"differ from those of .*a: optimizer; a ref"),
        ([], r"no run given; give finished runs of one recipe with different seeds"),
    ],
)  # fmt: skip
def test_runs_that_make_no_reference_are_refused(tmp_path, runs, message):
    records = [
        read_run(write_small_run(tmp_path / name, **how)) for name, how in zip("ab", runs, strict=False)
    ]
    with pytest.raises(ValueError, match=message):
        ReferenceCurve.from_runs(records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "no reference curve, not valid JSON"),
        ("[]", "no reference curve; make one with: scratchlm runs curve RUN"),
        (
            '{"format": "scratchlm reference curve", "version": 2}',
            "version 2; this scratchlm reads version 1",
        ),
        ('{"format": "scratchlm reference curve", "version": 1}', "a damaged reference curve"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path, content, message):
    path = tmp_path / "curve.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ReferenceCurve.load(path)


def test_a_reference_is_found_by_recipe_file_or_run(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_curve, "FOLDER", tmp_path / "curves")
    assert ReferenceCurve.find("demo") is None
    FLAT.save(tmp_path / "curves" / "demo.json")
    FLAT.save(tmp_path / "own.json")
    run = write_small_run(tmp_path / "run", seed=4)
    assert (
        open_reference("demo")
        == ReferenceCurve.find("demo")
        == open_reference(str(tmp_path / "own.json"))
        == FLAT
    )
    assert open_reference(str(run)).seeds == (4,)
    assert ReferenceCurve.find("../own") is None
    with pytest.raises(ValueError, match=r"nowhere: nothing to compare with; .* shipped curve \(demo\)"):
        open_reference("nowhere")


@pytest.mark.parametrize("path", sorted(reference_curve.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_curve_has_the_settings_of_its_recipe(path):
    from scratchlm.train.recipes import read

    curve = ReferenceCurve.load(Path(path))
    assert len(curve.seeds) >= 3
    rows = [{"kind": "valid", "step": at.step, "loss": at.mean} for at in curve.expected]
    assert str(curve.judge(rows, read(path.stem))).startswith("normal: ")
