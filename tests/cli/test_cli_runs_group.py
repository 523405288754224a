"""`scratchlm runs` on real runs at tiny size: list, show, compare, plot, curve."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image


def change(folder, **values):
    """Change settings of a saved run: seed=1, optimizer__lr=0.5."""
    path = folder / "config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *parts, last = name.split("__")
        owner = tree
        for part in parts:
            owner = owner[part]
        owner[last] = value
    path.write_text(json.dumps(tree), encoding="utf-8")


@pytest.fixture
def runs(finished_run, tmp_path):
    """Three copies of a finished run: another seed, another learning rate, and one that was killed."""
    folder = tmp_path / "runs"
    for name in ("first", "second", "other", "killed"):
        shutil.copytree(finished_run, folder / name)
        change(folder / name, seed=0)
    change(folder / "second", seed=1)
    change(folder / "other", optimizer__lr=0.5)
    change(folder / "killed", optimizer__lr=0.25)
    (folder / "killed" / "summary.json").unlink()
    return folder


def test_list_has_a_line_for_each_run_with_status_and_figures(cli, runs):
    found = cli("runs", "list", runs)
    assert (found.code, found.err) == (0, "")
    head, *lines = found.out.splitlines()
    assert head.split() == [
        "run", "status", "loss", "bits/byte", "tokens", "steps", "parameters", "tokens/s", "time", "changed",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines} == {"first", "second", "other", "killed"}
    killed = next(line for line in lines if line.startswith("killed"))
    assert "interrupted" in killed
    assert "4 of 4" in killed
    finished = next(line for line in lines if line.startswith("first"))
    assert re.search(r"finished +\d\.\d{3} +\d\.\d{3} +1,024 +4 ", finished)


def test_list_of_an_empty_folder_says_how_to_begin(cli, tmp_path):
    found = cli("runs", "list")
    assert (found.code, found.out) == (0, "No runs in . yet; make one with: scratchlm demo\n")


def test_show_tells_the_budget_the_origin_and_the_machine(cli, runs):
    found = cli("runs", "show", runs / "second")
    assert (found.code, found.err) == (0, "")
    for words in (
        "effective batch +256 tokens +4 rows of 64 tokens", "tokens seen +1,024", "seed +1\n", r"torch +\d",
        r"tokens per parameter +\d", r"commit +\w", r"processor +\w", r"epochs +\d",
    ):  # fmt: skip
        assert re.search(words, found.out), words


def test_compare_puts_figures_side_by_side_and_names_what_differs(cli, runs):
    found = cli("runs", "compare", runs / "first", runs / "other", runs / "second")
    assert found.code == 0
    head, *lines = found.out.splitlines()
    assert head.split() == ["first", "other", "second"]
    assert any(line.startswith("validation loss") for line in lines)
    differing = {line.split()[0]: line.split()[1:] for line in lines[lines.index("") + 2 :]}
    assert set(differing) == {"seed", "optimizer.lr"}
    assert differing["seed"] == ["0", "0", "1"]
    assert differing["optimizer.lr"][1] == "0.5"


def test_compare_of_equal_runs_says_so_and_of_one_run_is_refused(cli, runs):
    change(runs / "second", seed=0)
    assert "All settings are the same." in cli("runs", "compare", runs / "first", runs / "second").out
    assert "one run alone; name another to compare it with" in cli("runs", "compare", runs / "first").error


def test_plot_writes_a_png(cli, runs):
    found = cli("runs", "plot", runs, "--over", "step", "--compare-to", runs / "first")
    assert (found.code, found.out) == (0, "runs.png\n")
    assert Image.open("runs.png").size == (1920, 1080)
    assert (
        "a plot is a PNG; choose a name that ends with .png" in cli("runs", "plot", runs, "-o", "a.pdf").error
    )


def test_curve_makes_a_reference_that_calls_its_runs_normal(cli, runs):
    found = cli("runs", "curve", runs / "first", runs / "second", "-o", "curve.json")
    assert found.code == 0
    assert "demo: expected loss from seeds 0, 1; normal is where 98 of 100 equal runs lie" in found.out
    assert found.out.splitlines()[-1] == "curve.json"
    curve = json.loads(Path("curve.json").read_text(encoding="utf-8"))
    assert curve["seeds"] == [0, 1]
    assert [point["step"] for point in curve["points"]] == [2, 4]
    shutil.copy("curve.json", runs / "second" / "reference.json")
    assert cli("report", runs / "second").code == 0
    assert "Yes, this loss is normal" in (runs / "second" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list", "nowhere"), "nowhere: no such folder; give a folder of runs"),
        (("show", "nowhere"), "nowhere: no such run folder"),
        (("plot", "nowhere"), "nowhere: no such folder"),
        (("plot", "runs", "--compare-to", "nothing"), "nothing: nothing to compare with; give a run folder"),
        (("curve", "runs/first", "runs/other", "-o", "x.json"), "seed 0 is there twice"),
        (("curve", "runs/killed", "-o", "x.json"), "killed: this run is not finished"),
        (("plot", "runs", "--over", "moons"), "Invalid value for '--over'"),
    ],
)
def test_mistakes_are_one_line(cli, runs, words, message):
    assert message in cli("runs", *words).error


def test_a_narrow_terminal_loses_columns_and_no_letters(cli, runs, monkeypatch):
    from scratchlm.cli import runs as group

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    columns = {name: ["x" * 12] for name in group.COLUMNS}
    for width, left in ((200, len(group.COLUMNS)), (60, 4)):
        monkeypatch.setenv("COLUMNS", str(width))
        kept = group._fitting(columns)
        assert len(kept) == left
        assert kept[:3] == ["run", "status", "loss"]
