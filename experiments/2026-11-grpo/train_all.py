"""Base, demonstrations, rewards: trains what is missing and writes rows.csv and accuracy.png.

    python experiments/2026-11-grpo/train_all.py RUNS BASE      runs go to RUNS and are not trained twice

A seed decides which demonstrations come when, which problems are tried and what is drawn. The settings are
those of the recipes "openings-sft" and "openings-grpo".
"""

import csv
import json
import sys
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

from scratchlm.posttrain.run import read, run
from scratchlm.train.metrics import JsonLines

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
FIRST = 5
"""Steps over which the share of right ones among drawn answers is told, at the beginning and at the end."""


def train(stage: str, path: Path, base: Path, words: list[str]) -> Path:
    """One run, unless it is there."""
    if not (path / "summary.json").is_file():
        config = read(stage, f"openings-{stage}", [f"name={path.name}", *words])
        run(stage, config.model_copy(update={"base": base}), path)
    return path


def accuracies(path: Path) -> list[tuple[int, float]]:
    """Step and share of held-out problems that are solved."""
    rows = JsonLines(path / "metrics.jsonl").rows()
    return [(row["step"], row["accuracy"]) for row in rows if row["kind"] == "valid"]


def row_of(seed: int, untaught: Path, taught: Path, rewarded: Path) -> dict[str, object]:
    """What is told of one seed."""
    summaries = [json.loads((run / "summary.json").read_text("utf-8")) for run in (taught, rewarded)]
    figures = summaries[1]["posttrain"]
    tried = [
        row["accuracy"] for row in JsonLines(rewarded / "metrics.jsonl").rows() if row["kind"] == "train"
    ]
    row = {"seed": seed, "base": accuracies(untaught)[0][1]}
    row |= {"sft": figures["before"]["accuracy"], "grpo": figures["after"]["accuracy"]}
    row |= {"drawn_first": fmean(tried[:FIRST]), "drawn_last": fmean(tried[-FIRST:])}
    row |= {f"form_{when}": figures[when]["formatted"] for when in ("before", "after")}
    row |= {f"tokens_{when}": figures[when]["answer_tokens"] for when in ("before", "after")}
    row |= {"steps": summaries[1]["steps"], "answers": summaries[1]["steps"] * figures["items_per_step"]}
    row |= {"sft_seconds": summaries[0]["seconds"], "grpo_seconds": summaries[1]["seconds"]}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def draw(curves: dict[int, list[tuple[int, float]]]) -> None:
    """Accuracy over steps with rewards, a line a seed."""
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=120, layout="constrained")
    for color, (seed, curve) in zip(("#0072b2", "#d55e00", "#009e73"), curves.items(), strict=True):
        steps, shares = zip(*curve, strict=True)
        axes.plot(steps, [100 * share for share in shares], color=color, label=f"seed {seed}", marker="o")
    axes.set(xlabel="optimizer steps with rewards (0: after the demonstrations)", ylim=(0, 100))
    axes.set_ylabel("held-out wishes fulfilled, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "accuracy.png")


def main() -> None:
    folder, base = Path(sys.argv[1]), Path(sys.argv[2])
    rows, curves = [], {}
    untaught = train("grpo", folder / "openings-untaught", base, ["train.steps=1"])
    for seed in SEEDS:
        taught = train("sft", folder / f"openings-sft-{seed}", base, [f"seed={seed}"])
        rewarded = train("grpo", folder / f"openings-grpo-{seed}", taught, [f"seed={seed}"])
        rows.append(row_of(seed, untaught, taught, rewarded))
        curves[seed] = accuracies(rewarded)
        print(rows[-1], flush=True)
    with (HERE / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(curves)


if __name__ == "__main__":
    main()
