"""Fine-tuning in full, by LoRA and by DoRA: trains what is missing and writes rows.csv and gains.png.

    python experiments/2026-11-sft/train_all.py FOLDER BASE      runs go to FOLDER and are not trained twice

Everything that ARMS does not name is recipe.toml beside this file. A seed decides which problems are drawn,
their order and the adapters' first numbers.
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
LOW_RANK = [
    *("adapter.rank=7", "adapter.alpha=14", "adapter.parts=['attention', 'feedforward', 'head']"),
    *("optimizer.name=adamw", "optimizer.lr=1e-2"),
]
STORIES = ["data.exercises=[{ name = 'story_instructions', num = 4800 }]", "train.steps=200"]
ARMS = {
    "full": [],
    "lora": ["adapter.name=lora", *LOW_RANK],
    "full-stories": STORIES,
    "lora-stories": ["adapter.name=lora", *LOW_RANK, *STORIES],
    "dora-stories": ["adapter.name=dora", *LOW_RANK, *STORIES],
}
"""Name -> what differs from the recipe."""
SEEDS_OF = {
    "full": SEEDS, "lora": SEEDS[:1], "full-stories": SEEDS, "lora-stories": SEEDS, "dora-stories": SEEDS[:1],
}  # fmt: skip
COLORS = dict(zip(ARMS, ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73"), strict=True))


def train(folder: Path, base: str, arm: str, seed: int) -> dict[str, object]:
    """One run, or what it gave before."""
    path = folder / f"{arm}-seed-{seed}"
    if not (path / "summary.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        settings = [f"base={base}", f"seed={seed}", f"data.data_seed={seed}", *COMMON, *ARMS[arm]]
        posttrain.run("sft", posttrain.read("sft", str(HERE / "recipe.toml"), settings), path)
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    about = summary["posttrain"]
    before, after = about["before"], about["after"]
    row = {
        "arm": arm,
        "seed": seed,
        "trained_parameters": about["trainable_parameters"],
        "steps": summary["steps"],
        "loss_before": before["loss"],
        "loss_after": after["loss"],
        "gain": before["loss"] - after["loss"],
        "token_accuracy_before": before["token_accuracy"],
        "token_accuracy_after": after["token_accuracy"],
        "base_loss_before": before["base_loss"],
        "base_loss_after": after["base_loss"],
        "seconds": summary["seconds"],
    }
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    curve = [found for found in JsonLines(path / "metrics.jsonl").rows() if found["kind"] == "valid"]
    return row | {"curve": [(point["step"], point["loss"], point["base_loss"]) for point in curve]}


def draw(rows: list[dict[str, object]]) -> None:
    """Held-out loss on answers, and the base's text, over steps: one line a seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=120, layout="constrained")
    for row in rows:
        steps, losses, base = zip(*row["curve"], strict=True)
        label = row["arm"] if row["seed"] == SEEDS[0] else None
        left.plot(steps, losses, color=COLORS[row["arm"]], label=label)
        right.plot(steps, base, color=COLORS[row["arm"]])
    left.set(xlabel="step (24 conversations each)", ylabel="nats per token of held-out answers")
    right.set(xlabel="step (24 conversations each)", ylabel="nats per token of the base's text")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "gains.png")


def main() -> None:
    folder, base = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [train(folder, base, arm, seed) for arm in ARMS for seed in SEEDS_OF[arm]]
    with (HERE / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [key for key in rows[0] if key != "curve"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows)


if __name__ == "__main__":
    main()
