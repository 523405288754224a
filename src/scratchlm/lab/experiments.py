r"""What a cell does: its settings come in, a run folder with config, metrics and summary goes out.

    train       a recipe's run (train/run.py)                                      the usual one
    quadratic   CS336's first optimizer on a toy: loss = mean(w^2), w = 5 * N(0, 1) of shape (10, 10),
                w = w - lr / sqrt(t + 1) * gradient
    sft, dpo, grpo                  post-training (posttraining.py)

All leave the files that study/run_record.py reads, so that everything behind them is the same.

Source: quadratic from Stanford CS336, assignment 1, problem "learning_rate_tuning".
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from scratchlm.config import Config, load
from scratchlm.registry import Family
from scratchlm.runtime import write_text_atomically
from scratchlm.train.events import OnEvent, StepEnded

EXPERIMENTS: Family["Experiment"] = Family("experiment", package="scratchlm.lab")
"""What cells can do."""


class Estimate(NamedTuple):
    """What a cell will need."""

    steps: int
    tokens: int
    flops: float
    seconds: float | None
    """None where nobody can tell."""


class Experiment(ABC):
    """A kind of cell."""

    unit = "nats per token"
    """Of its loss."""
    on_texts = True
    """Whether its loss is one of predicting texts."""
    settings: type[Config]
    """What its config.json holds."""

    @abstractmethod
    def resolve(self, recipe: str, words: Sequence[str]) -> Config:
        """The complete settings of one cell.

        Raises:
            ValueError: A word is wrong, or the settings do not fit together.
        """

    @abstractmethod
    def estimate(self, config: Any, *, timed: bool = False) -> Estimate:
        """What a cell will need; `timed` asks for its seconds on this machine."""

    @abstractmethod
    def run(self, config: Any, folder: Path, on_event: OnEvent) -> dict[str, Any]:
        """Do it in `folder`, or go on where it was stopped, and return the summary."""


class TrainExperiment(Experiment):
    """Train a recipe."""

    def __init__(self) -> None:
        from scratchlm.train.config import RunConfig

        self.settings = RunConfig

    def resolve(self, recipe: str, words: Sequence[str]) -> Config:
        """The run's settings; schedule and optimizer are tried, so that their mistakes are known now."""
        import torch

        from scratchlm.optim import OPTIMIZERS, SCHEDULES
        from scratchlm.optim.groups import parameter_groups
        from scratchlm.train import recipes

        if not recipe:
            raise ValueError(f"a study names a recipe to start from; known: {', '.join(recipes.names())}.")
        config = recipes.read(recipe, words)
        SCHEDULES.build(config.schedule.name, config.train.steps, **config.schedule.settings)
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        groups = parameter_groups([("layers.weight", weight)])
        OPTIMIZERS.build(config.optimizer.name, groups, **config.optimizer.settings)
        return config

    def estimate(self, config: Any, *, timed: bool = False) -> Estimate:
        """By model/accounting.py and, if timed, train/plan.py; a vocabulary that nobody set counts as 256."""
        from scratchlm.model.accounting import flops_per_token

        vocab_size = int(config.tokenizer.settings.get("vocab_size", 256))
        model = config.model.with_vocabulary(vocab_size)
        tokens = config.train.steps * config.train.batch_tokens
        each = flops_per_token(model, model.context_length)
        return Estimate(config.train.steps, tokens, each * tokens, _seconds(config) if timed else None)

    def run(self, config: Any, folder: Path, on_event: OnEvent) -> dict[str, Any]:
        """Train, from the last checkpoint where there is one."""
        from scratchlm.train.run import run

        return run(config, folder, resume=(folder / "config.json").is_file(), on_event=on_event)


class QuadraticConfig(Config):
    """Settings of the toy."""

    name: str = "quadratic"
    """The run's name."""
    description: str = ""
    """One line for people."""
    seed: int = 0
    """Decides where the weights start."""
    lr: float = Field(default=1.0, gt=0)
    """Step size of the first step."""
    size: int = Field(default=10, ge=1)
    """The weights are a square with this side."""
    spread: float = Field(default=5.0, gt=0)
    """Standard deviation of the weights at the start."""
    steps: int = Field(default=10, ge=1)
    """Updates."""


class QuadraticExperiment(Experiment):
    """Walk down the mean of squares, CS336's first example of a learning rate."""

    unit = "mean square of the weights"
    on_texts = False
    settings = QuadraticConfig

    def resolve(self, recipe: str, words: Sequence[str]) -> Config:
        """The toy's settings; it has no recipes."""
        if recipe:
            raise ValueError(f"recipe={recipe!r}: the quadratic experiment has none; leave it out.")
        return load(QuadraticConfig, None, words)

    def estimate(self, config: Any, *, timed: bool = False) -> Estimate:
        """Nothing to speak of."""
        return Estimate(config.steps, 0, 0.0, 0.0)

    def run(self, config: Any, folder: Path, on_event: OnEvent) -> dict[str, Any]:
        """Make all steps; there is nothing to go on with."""
        import torch

        from scratchlm.optim.sgd import SGD

        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / "config.json", config.to_json())
        start = torch.randn(config.size, config.size, generator=torch.Generator().manual_seed(config.seed))
        weights = torch.nn.Parameter(config.spread * start)
        optimizer = SGD([weights], lr=config.lr, decay="inverse_sqrt")
        rows, began = [], time.perf_counter()
        for step in range(config.steps + 1):
            optimizer.zero_grad()
            loss = weights.square().mean()
            seconds = time.perf_counter() - began
            rows.append({"kind": "valid", "step": step, "tokens": 0, "loss": loss.item(), "seconds": seconds})
            on_event(
                StepEnded(
                    step, config.steps, loss.item(), config.lr, 0.0, 0, 0.0, 0.0, None, seconds_left=0.0
                )
            )
            loss.backward()
            optimizer.step()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text_atomically(folder / "metrics.jsonl", text)
        return _toy_summary(config, folder, rows)


def _toy_summary(config: QuadraticConfig, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from scratchlm.runtime import environment

    losses = [row["loss"] for row in rows]
    summary = {
        "name": config.name,
        "steps": config.steps,
        "tokens": 0,
        "parameters": config.size**2,
        "valid_loss": losses[-1],
        "best_valid_loss": min(loss for loss in losses if not math.isnan(loss)),
        "guessing_loss": losses[0],
        "floor_loss": 0.0,
        "seconds": rows[-1]["seconds"],
        "tokens_per_second": None,
        "stopped_early": False,
    }
    write_text_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_text_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _seconds(config: Any) -> float:
    from scratchlm.train.plan import make_plan

    return make_plan(config).seconds


EXPERIMENTS.register("train")(TrainExperiment)
EXPERIMENTS.register("quadratic")(QuadraticExperiment)
