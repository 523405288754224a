"""Preferences of stories, three seeds: trains what is missing and writes rows.csv and accuracy.png.

    python experiments/2026-11-dpo/train_all.py FOLDER SFT       runs go to FOLDER and are not trained twice

SFT is the folder of experiments/2026-11-sft/train_all.py: seed N begins with its run full-seed-N. Everything
that ARMS does not name is the recipe "demo-dpo". A seed decides which pairs are drawn and their order.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from scratchlm.posttrain import run as posttrain
from scratchlm.train.metrics import JsonLines

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
COMMON = [
    "base_tokens=8192",
    *("train.sample_every=1000000", "train.first_sample=1000000", "train.save_every=1000000"),
]
ARMS = {"demo-dpo": (SEEDS, []), "one mistake": (SEEDS[:1], ["data.mistakes=1"])}
"""Name -> its seeds, and what differs from the recipe."""
COLORS = {"demo-dpo": "#0072b2", "one mistake": "#d55e00"}
MEASURED = ("accuracy", "likelier", "margin", "reward_chosen", "reward_rejected", "kl")


def train(folder: Path, sft: Path, arm: str, seed: int) -> dict[str, object]:
    """One run, or what it gave before."""
    path = folder / f"{arm.replace(' ', '-')}-seed-{seed}"
    if not (path / "summary.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        base = sft / f"full-seed-{seed}"
        settings = [f"base={base}", f"seed={seed}", f"data.data_seed={seed}", *COMMON, *ARMS[arm][1]]
        posttrain.run("dpo", posttrain.read("dpo", "demo-dpo", settings), path)
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    about = summary["posttrain"]
    before, after = about["before"], about["after"]
    row = {"arm": arm, "seed": seed, "pairs_held_out": about["valid_items"], "steps": summary["steps"]}
    for name in MEASURED:
        row[f"{name}_before"], row[f"{name}_after"] = before[name], after[name]
    row |= {"base_loss_before": before["base_loss"], "base_loss_after": after["base_loss"]}
    row |= {"seconds": summary["seconds"]}
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    curve = [found for found in JsonLines(path / "metrics.jsonl").rows() if found["kind"] == "valid"]
    return row | {"curve": [(point["step"], point["accuracy"], point["base_loss"]) for point in curve]}


def draw(rows: list[dict[str, object]]) -> None:
    """Accuracy on held-out pairs, and the loss on the base's text, over steps: one line a seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=120, layout="constrained")
    for row in rows:
        steps, accuracy, base = zip(*row["curve"], strict=True)
        label = row["arm"] if row["seed"] == SEEDS[0] else None
        left.plot(steps, accuracy, color=COLORS[row["arm"]], label=label)
        right.plot(steps, base, color=COLORS[row["arm"]])
    left.axhline(0.9, color="#777777", linewidth=0.8, linestyle=":")
    left.set(xlabel="step (8 pairs each)", ylabel="accuracy on held-out pairs", ylim=(0.45, 1.0))
    right.set(xlabel="step (8 pairs each)", ylabel="nats per token of the base's text")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "accuracy.png")


def main() -> None:
    folder, sft = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [train(folder, sft, arm, seed) for arm, (seeds, _) in ARMS.items() for seed in seeds]
    with (HERE / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [key for key in rows[0] if key != "curve"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows)


if __name__ == "__main__":
    main()
