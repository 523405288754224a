"""Base, demonstrations, rewards: trains what is missing and writes rows.csv and accuracy.png.

    python experiments/2026-11-grpo/train_all.py RUNS BASE           all tasks, then rows.csv and accuracy.png
    python experiments/2026-11-grpo/train_all.py RUNS BASE sums      the runs of one task alone

Runs go to RUNS and are not trained twice. A seed decides which demonstrations come when, which problems are
tried and what is drawn. The settings are those of the recipes TASK-sft and TASK-grpo, which are files here
for the task that no shipped recipe is about.
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
TASKS = {"openings": "first sentences", "sums": "sums", "questions": "questions about a story"}
SEEDS = (1, 2, 3)
COLORS = ("#0072b2", "#d55e00", "#009e73")
FIRST = 5
"""Steps over which the share of right ones among drawn answers is told, at the beginning and at the end."""


def train(stage: str, recipe: str, path: Path, base: Path, words: list[str]) -> Path:
    """One run, unless it is there."""
    if not (path / "summary.json").is_file():
        here = HERE / f"{recipe}.toml"
        config = read(stage, str(here) if here.is_file() else recipe, [f"name={path.name}", *words])
        run(stage, config.model_copy(update={"base": base}), path)
    return path


def runs_of(task: str, folder: Path, base: Path) -> list[tuple[int, Path, Path, Path]]:
    """Of each seed the run on the base without demonstrations, with demonstrations, and with rewards."""
    found = []
    untaught = train("grpo", f"{task}-grpo", folder / f"{task}-untaught", base, ["train.steps=1"])
    for seed in SEEDS:
        taught = train("sft", f"{task}-sft", folder / f"{task}-sft-{seed}", base, [f"seed={seed}"])
        rewarded = train("grpo", f"{task}-grpo", folder / f"{task}-grpo-{seed}", taught, [f"seed={seed}"])
        found.append((seed, untaught, taught, rewarded))
    return found


def accuracies(path: Path) -> list[tuple[int, float]]:
    """Step and share of held-out problems that are solved."""
    rows = JsonLines(path / "metrics.jsonl").rows()
    return [(row["step"], row["accuracy"]) for row in rows if row["kind"] == "valid"]


def row_of(task: str, seed: int, untaught: Path, taught: Path, rewarded: Path) -> dict[str, object]:
    """What is told of one seed."""
    summaries = [json.loads((path / "summary.json").read_text("utf-8")) for path in (taught, rewarded)]
    figures = summaries[1]["posttrain"]
    tried = [
        row["accuracy"] for row in JsonLines(rewarded / "metrics.jsonl").rows() if row["kind"] == "train"
    ]
    row = {"task": task, "seed": seed, "base": accuracies(untaught)[0][1]}
    row |= {"sft": figures["before"]["accuracy"], "grpo": figures["after"]["accuracy"]}
    row |= {"drawn_first": fmean(tried[:FIRST]), "drawn_last": fmean(tried[-FIRST:])}
    row |= {f"form_{when}": figures[when]["formatted"] for when in ("before", "after")}
    row |= {f"tokens_{when}": figures[when]["answer_tokens"] for when in ("before", "after")}
    row |= {"steps": summaries[1]["steps"], "answers": summaries[1]["steps"] * figures["items_per_step"]}
    row |= {"sft_seconds": summaries[0]["seconds"], "grpo_seconds": summaries[1]["seconds"]}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def draw(curves: dict[str, list[list[tuple[int, float]]]]) -> None:
    """Accuracy over steps with rewards: a panel a task, a line a seed."""
    figure, panels = plt.subplots(
        1, len(curves), figsize=(10, 3.4), dpi=120, sharey=True, layout="constrained"
    )
    for axes, (task, lines) in zip(panels, curves.items(), strict=True):
        for seed, color, curve in zip(SEEDS, COLORS, lines, strict=True):
            steps, shares = zip(*curve, strict=True)
            axes.plot(steps, [100 * share for share in shares], color=color, label=f"seed {seed}", marker="o")
        axes.set(title=TASKS[task], ylim=(0, 102))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out problems solved, %")
    panels[-1].legend(frameon=False, loc="lower right")
    figure.supxlabel("optimizer steps with rewards (0: after the demonstrations)")
    figure.savefig(HERE / "accuracy.png")


def main() -> None:
    folder, base = Path(sys.argv[1]), Path(sys.argv[2])
    chosen = sys.argv[3:] or list(TASKS)
    runs = {task: runs_of(task, folder, base) for task in chosen}
    rows = [row_of(task, *paths) for task, found in runs.items() for paths in found]
    for row in rows:
        print(row, flush=True)
    if list(runs) != list(TASKS):
        return
    with (HERE / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw({task: [accuracies(rewarded) for *_, rewarded in found] for task, found in runs.items()})


if __name__ == "__main__":
    main()
