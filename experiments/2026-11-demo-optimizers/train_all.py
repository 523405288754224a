"""AdamW, Muon and SGD on the demo's corpus: trains what is missing and writes rows.csv and losses.png.

    python experiments/2026-11-demo-optimizers/train_all.py FOLDER      runs go there and are not trained twice

First each optimizer's learning rate is chosen among RATES with one seed and a short run; then each is trained
with three seeds at its best. Everything else is the recipe "demo".
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from scratchlm.train import recipes
from scratchlm.train.metrics import JsonLines
from scratchlm.train.run import run

HERE = Path(__file__).parent
TUNING_STEPS, STEPS = 150, 600
SEEDS = (1, 2, 3)
COMMON = ["train.sample_every=1000000", "train.first_sample=1000000", "train.save_every=1000000"]
OPTIMIZERS = {
    "muon": ["optimizer.betas=[0.9,0.98]", "optimizer.weight_decay=0.05"],
    "adamw": ["optimizer.betas=[0.9,0.98]", "optimizer.weight_decay=0.05"],
    "sgd": ["optimizer.momentum=0.9", "optimizer.nesterov=true"],
}
RATES = {"adamw": (2.5e-3, 5e-3, 1e-2), "muon": (5e-3, 1e-2, 2e-2), "sgd": (0.1, 0.3, 1.0)}


def train(folder: Path, name: str, lr: float, seed: int, steps: int) -> dict[str, object]:
    """One run, or what it gave before; tokenizer and shards are those of the first one."""
    path = folder / f"{name}-{lr:g}-seed-{seed}-steps-{steps}"
    if not (path / "summary.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        first = folder / "data-of-all"
        if first.is_dir():
            shutil.copytree(first, path)
        settings = [f"optimizer.name={name}", f"optimizer.lr={lr}", *OPTIMIZERS[name]]
        length = [f"seed={seed}", f"train.steps={steps}", f"train.eval_every={steps // 10}"]
        run(recipes.read("demo", [*COMMON, *settings, *length]), path)
        if not first.is_dir():
            first.mkdir()
            shutil.copy(path / "tokenizer.scratchlm.json", first)
            shutil.copytree(path / "data", first / "data")
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    curve = [row for row in JsonLines(path / "metrics.jsonl").rows() if row["kind"] == "valid"]
    print(f"{path.name}: {summary['valid_loss']:.4f} in {summary['seconds']:.0f} s", flush=True)
    row = {"optimizer": name, "lr": lr, "seed": seed, "steps": steps, "valid_loss": summary["valid_loss"]}
    row |= {"floor": summary["floor_loss"], "seconds": round(summary["seconds"], 1)}
    return row | {"curve": [(point["step"], point["loss"]) for point in curve]}


def draw(rows: list[dict[str, object]]) -> None:
    """Validation losses above the floor, one line a seed."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150, layout="constrained")
    colors = {"adamw": "#0072b2", "muon": "#d55e00", "sgd": "#009e73"}
    for row in rows:
        steps, losses = zip(*row["curve"], strict=True)
        label = f"{row['optimizer']}, lr {row['lr']:g}" if row["seed"] == SEEDS[0] else None
        axes.plot(
            steps, [loss - row["floor"] for loss in losses], color=colors[row["optimizer"]], label=label
        )
    axes.set(xlabel="step (2,048 tokens each)", ylabel="nats per token above the floor", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "losses.png")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tuned, final = [], []
    for name in OPTIMIZERS:
        tried = [train(folder, name, lr, SEEDS[0], TUNING_STEPS) for lr in RATES[name]]
        best = min(tried, key=lambda row: row["valid_loss"])
        tuned += tried
        final += [train(folder, name, best["lr"], seed, STEPS) for seed in SEEDS]
    with (HERE / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        columns = [key for key in tuned[0] if key != "curve"]
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(tuned + final)
    draw(final)


if __name__ == "__main__":
    main()
