r"""Cells of post-training: a recipe of recipes/posttrain comes in, a run folder as any other goes out.

    experiment = "grpo"              in a study's file: its recipe and its words are those of scratchlm grpo
    loss                             what the stage measures on held-out data; of grpo 1 - accuracy, so lower
                                     is better in every table

What a cell goes on from is the recipe's own base, or what the study's `start` makes first (start.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from scratchlm.config import Config, read_tree
from scratchlm.lab.experiments import EXPERIMENTS, Estimate, Experiment
from scratchlm.train.events import OnEvent


class PosttrainExperiment(Experiment):
    """Go on from a base by one way of post-training."""

    stage: ClassVar[str]
    """Its name on the command line."""
    on_texts = False

    def __init__(self) -> None:
        from scratchlm.posttrain import STAGES

        self.settings = STAGES.get(self.stage).Config

    def resolve(self, recipe: str, words: Sequence[str]) -> Config:
        """The run's settings; schedule and optimizer are tried, so that their mistakes are known now."""
        from scratchlm.optim import SCHEDULES
        from scratchlm.posttrain.run import read, recipe_names

        if not recipe:
            raise ValueError(f"a study names a recipe to start from; known: {', '.join(recipe_names())}.")
        config = read(self.stage, recipe, words)
        SCHEDULES.build(config.schedule.name, config.train.steps, **config.schedule.settings)
        return config

    def estimate(self, config: Any, *, timed: bool = False) -> Estimate:
        """Its steps; how long answers are is known when they have been written."""
        return Estimate(config.train.steps, 0, 0.0, None)

    def run(self, config: Any, folder: Path, on_event: OnEvent) -> dict[str, Any]:
        """Train, from the last checkpoint where there is one."""
        from scratchlm.posttrain.run import run
        from scratchlm.posttrain.stage import stage_file

        going_on = stage_file(folder).is_file()
        if going_on:  # the run keeps what it began with; where that lay before does not matter
            config = config.model_copy(update={"base": Path(read_tree(stage_file(folder))["base"])})
        return run(self.stage, config, folder, resume=going_on, on_event=on_event)


@EXPERIMENTS.register("sft")
class SftExperiment(PosttrainExperiment):
    """Supervised fine-tuning."""

    stage = "sft"
    unit = "nats per token of held-out answers"


@EXPERIMENTS.register("dpo")
class DpoExperiment(PosttrainExperiment):
    """Preferences."""

    stage = "dpo"
    unit = "loss of held-out pairs"


@EXPERIMENTS.register("grpo")
class GrpoExperiment(PosttrainExperiment):
    """Rewards."""

    stage = "grpo"
    unit = "share of held-out problems not solved"
