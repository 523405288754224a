"""Rows of the proof on a GPU come in; who is judged, what is best and what the README shows go out."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is a folder of scripts, not a part of the package

from benchmarks.gpu import goals, tiles  # noqa: E402


def test_the_table_judges_ours_and_shows_the_others():
    def row(candidate, **fields):
        return {"part": "speed", "case": candidate, "status": "ok", "candidate": candidate} | fields

    rows = [
        row("copy", ceiling="copy", rate=4000.0, ms=1.0, unit="GB/s"),
        row("triton", goal="leaderboard", ms=5.0),
        row("flash", goal="leaderboard", ms=7.0),
        row("triton", goal="backward-64-1k", ms=5.0, rate=180.0),
        row("triton_one_pass", goal="backward-64-1k", ms=5.0, rate=200.0),
        row("triton", goal="rmsnorm-forward", ms=0.1, rate=3000.0),
        row("scratchlm", goal="training", ms=1.0, rate=600_000.0),
        row("torch, flash", goal="training", ms=1.0, rate=500_000.0),
        row("torch, cudnn", goal="training", ms=1.0, rate=480_000.0),
    ]
    found = {line.words: line for line in goals.lines(rows)}
    first = found["attention forward+backward, 16 heads, T 16,384, d 64"]
    assert (first.ours, first.verdict, first.others) == ("5", "goal", "flash 7")
    backward = found["attention backward, d 64, T 1,024"]  # the best of ours is judged, and named
    assert backward[1::3] == ("200 (triton_one_pass)", "goal")
    assert backward.others == "triton 180"
    assert found["RMSNorm forward, share of a copy's rate"][1::3] == ("75", "missed")
    assert found["training gpt2-small, compiled, bfloat16"].verdict == "stretch"
    assert goals.training_ratio(rows) == (1.2, "torch, flash")
    setting = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6.0", "date": "2026-11-21"}
    assert "goal     flash 7" in goals.report(setting, rows)
    written = goals.tables([setting | {"cuda": "13.0", "commit": "abc", "checks": 9}, *rows])
    assert "| **5** | 5.36 ms | 4.9 | flash 7 |" in written
    assert "1.20x" in written
    assert "0 of 9 checks against float64 passed." in written


def test_kernels_take_turns_in_the_sweep():
    x, y, z = (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2)
    found = list(tiles.in_turn({("a", 64): (x, y), ("b", 64): (z,)}))
    assert found == [("a", 64, None), ("b", 64, None), ("a", 64, x), ("b", 64, z), ("a", 64, y)]


def test_the_best_tile_is_the_fastest_for_short_and_long_texts_together():
    def row(tile, ms):
        return {"kernel": "forward", "width": 64, "tile": tile, "table": tile == [1], "ms": ms}

    best = tiles.best_tiles([row([1], 2.0), row([2], 1.0), row([3], 3.0)])
    assert best["forward, d 64"]["tile"] == [2]
    assert best["forward, d 64"]["gain"] == 2.0


def test_the_best_constants_are_told_with_their_gain():
    def row(constants, ms):
        return {"constants_of": "AdamW", "constants": constants, "before": {"PIECE": 2048}, "ms": ms}

    best = tiles.best_constants([row({}, 2.0), row({"PIECE": 4096}, 1.6), row({"PIECE": 1024}, 3.0)])
    assert (best["AdamW"]["constants"], best["AdamW"]["gain"]) == ({"PIECE": 4096}, 1.25)


def test_the_table_of_the_readme_is_made_from_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(goals.BEGIN) + len(goals.BEGIN) : text.index(goals.END)]
    assert shown.strip() == goals.tables().strip()
