"""Adapters: which numbers of a model are trained."""

from torch.nn import Module

from scratchlm.posttrain import ADAPTERS


class Adapter:
    """Chooses what of a model is trained."""

    def apply(self, model: Module) -> None:
        """Prepare `model` for training."""


@ADAPTERS.register("none")
class NoAdapter(Adapter):
    """Train all of the model's numbers."""
