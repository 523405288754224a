"""Claims about the picture of several runs."""

import numpy as np
import pytest
from PIL import Image
from several_runs import write_small_run

from scratchlm.study.reference_curve import ReferenceCurve
from scratchlm.study.run_curves import (
    COLOURS,
    LABEL_GAP,
    PAPER,
    _apart,
    _group_name,
    _time_step,
    grouped,
    plot_runs,
)
from scratchlm.study.run_record import read_run


def records(folder, **runs):
    return [read_run(write_small_run(folder / name.replace("_", "-"), **how)) for name, how in runs.items()]


def share_of(path, colour):
    """Share of the pixels that have a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return float((pixels == wanted).all(axis=1).mean())


@pytest.mark.parametrize("over", ["tokens", "step", "seconds"])
def test_every_run_has_its_colour_in_the_picture(tmp_path, over):
    runs = records(
        tmp_path,
        adamw={},
        lion={"optimizer": "lion", "shift": 0.2},
        stopped={"until": 100, "optimizer": "sgd"},
    )
    plot_runs(tmp_path / "a.png", runs, over=over)
    assert Image.open(tmp_path / "a.png").size == (1920, 1080)
    assert share_of(tmp_path / "a.png", PAPER) > 0.8
    for colour in COLOURS[:3]:
        assert share_of(tmp_path / "a.png", colour) > 1e-5, colour
    assert share_of(tmp_path / "a.png", COLOURS[3]) == 0


def test_seeds_of_one_setting_are_one_group_with_the_name_they_share(tmp_path):
    runs = records(
        tmp_path, adamw_seed0={}, adamw_seed1={"seed": 1}, adamw_small_3={"seed": 3},
        muon={"optimizer": "muon"},
    )  # fmt: skip
    assert [(group.name, len(group.records)) for group in grouped(runs)] == [
        ("adamw, 3 seeds", 3),
        ("muon", 1),
    ]
    assert _group_name(runs[:2]) == "adamw, 2 seeds"
    assert _group_name([runs[0], runs[3]]) == "demo, 2 seeds"


def test_a_reference_lies_behind_and_not_over_time(tmp_path):
    runs = records(tmp_path, a={}, b={"seed": 1})
    reference = ReferenceCurve.from_runs(runs)
    pictures = {}
    for over in ("step", "seconds"):
        for given in (None, reference):
            plot_runs(tmp_path / "a.png", runs[:1], over=over, reference=given)
            pictures[over, given is None] = (tmp_path / "a.png").read_bytes()
    assert pictures["step", False] != pictures["step", True]
    assert pictures["seconds", False] == pictures["seconds", True]


def test_runs_that_were_never_validated_are_refused_or_left_out(tmp_path):
    runs = records(tmp_path, early={"until": 50}, good={"seed": 1})
    with pytest.raises(ValueError, match="none of these runs has been validated yet"):
        plot_runs(tmp_path / "a.png", runs[:1])
    plot_runs(tmp_path / "a.png", runs)
    assert sorted(path.name for path in tmp_path.glob("*.png*")) == ["a.png"]


def test_a_diverged_run_and_nine_runs_can_be_drawn(tmp_path):
    how = {f"r{number}": {"optimizer": "x" * number, "until": 200} for number in range(1, 10)}
    runs = records(tmp_path, **how)
    for row in runs[0].valid:
        row["loss"] = float("nan")
    runs[1].valid[-1]["loss"] = float("inf")
    plot_runs(tmp_path / "a.png", runs)
    assert share_of(tmp_path / "a.png", COLOURS[7]) > 0


def test_names_are_moved_apart_and_stay_in_order():
    moved = _apart([0.1, 0.1, 0.11, 0.9], LABEL_GAP)
    gaps = np.diff(moved)
    assert (gaps >= LABEL_GAP - 1e-9).all()
    assert moved[3] == pytest.approx(0.9, abs=LABEL_GAP)
    assert _apart([0.2, 0.8], LABEL_GAP) == pytest.approx([0.2, 0.8])


def test_ticks_of_time_are_whole_minutes():
    assert [_time_step(span) for span in (5, 160, 900, 7200)] == [1, 30, 300, 1200]
    assert _time_step(86_400 * 30) % 86_400 == 0
