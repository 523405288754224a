"""Claims about `scratchlm study fit`: table, page and statement; one line for what is wrong."""

import json
import re
from pathlib import Path

import pytest

from scratchlm.lab.scaling import fit_scaling, write_statement
from scratchlm.lab.scaling_runs import read_runs


def write_curves(path, budgets=(1e12, 4e12, 1.6e13, 6.4e13)):
    """Losses of a law with best sizes that grow with the square root of the compute."""
    entries = [
        {
            "parameters": size,
            "compute_budget": budget,
            "final_loss": 1.0 + 90 / size**0.4 + 90 / (budget / 6 / size) ** 0.4,
        }
        for budget in budgets
        for size in ((budget / 6) ** 0.5 * factor for factor in (0.2, 0.5, 1, 2, 5))
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")


def test_one_command_checks_what_was_stated_and_makes_table_page_and_statement(cli):
    write_curves(Path("early.json"))
    write_statement(fit_scaling(read_runs(Path("early.json")).runs), Path("stated.json"))
    write_curves(Path("<b>.json"), (1e12, 4e12, 1.6e13, 6.4e13, 1e15))
    words = ("--at", "1e16", "--check", "stated.json", "--folder", "out")
    done = cli("study", "fit", "<b>.json", *words)
    assert done.code == 0, done
    assert "a: best parameters ~ C^a   0.500" in done.out
    assert re.search(r"Stated from what was written on 20.* and then checked at 1e\+15 FLOPs", done.out)
    assert "The report: out/scaling.html" in done.out
    html = Path("out/scaling.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|@import|<link|src=", html)
    assert "<b>.json" not in html, "escaped"
    assert len(re.findall(r'<svg class="plot (?:wide|narrow)"', html)) == 2 * 3
    assert not re.search(r"#0a0[ab]0", html), "every stand-in colour became a variable of the page"
    text = Path("out/scaling.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((figures/\w+\.svg)\)", text):
        assert "var(--" not in (Path("out") / name).read_text(encoding="utf-8")
    assert json.loads(Path("out/scaling.json").read_text(encoding="utf-8"))["largest_budget"] > 6.4e13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.csv"], "nothing.csv: no such file; give a study's folder"),
        (["one.json"], "1 budget of compute: a power law needs runs at two or more"),
        (["good.json", "--at", "-1"], "--at -1: give a number of FLOPs above 0."),
        (["good.json", "--hold-out", "3"], "hold_out=3: with 4 budgets choose 0 to 2"),
        (
            ["good.json", "--check", "no.json"],
            "no.json: no such file; give the scaling.json",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(cli, words, message):
    write_curves(Path("one.json"), (1e12,))
    write_curves(Path("good.json"))
    assert message in cli("study", "fit", *words).error
