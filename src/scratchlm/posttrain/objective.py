"""Objectives of post-training: a model and tensors of a batch come in, one loss goes out, figures are kept.

Model and loss are one module, as in pretraining (train/objective.py), since that is what a trainer takes. A
loss is the mean over the items of a micro-batch, or over its targets where the batches say `padded`, and the
trainer weighs micro-batches so that any split gives the gradient of the whole. What else is worth knowing of
a step (accuracy, entropy, a margin) is added up here as sum and number, and read once the step is done.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import runtime
from scratchlm.loss import token_losses
from scratchlm.train.trainer import Execution


class StageObjective(Module):
    """A model with a loss of its own: `forward` takes the tensors of a batch, in their order."""

    def __init__(self, model: Module, how: Execution) -> None:
        """Keep the model.

        Args:
            model: Ids -> logits.
            how: Device and number format.
        """
        super().__init__()
        self.model, self.device, self.precision = model, how.device, how.precision
        self.num_tokens = 0
        """Tokens that went through the model since `reset`, padding left out."""
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Forget all figures: a step begins."""
        self.num_tokens, self._sums = 0, {}

    def add(self, name: str, total: Tensor, number: Tensor | int = 1) -> None:
        """Add to figure `name`: its value will be the sum of all totals over the sum of all numbers."""
        number = torch.as_tensor(number, dtype=torch.float32, device=total.device)
        total = total.detach().float()
        before = self._sums.get(name)
        self._sums[name] = (total, number) if before is None else (before[0] + total, before[1] + number)

    def figures(self) -> dict[str, float]:
        """All figures since `reset`; those of nothing are left out."""
        return dict(self._values())

    def hidden(self, inputs: Int[Tensor, "rows time"], documents: Int[Tensor, "rows time"] | None) -> Tensor:
        """Return what the model's head turns into logits.

        Args:
            inputs: Rows of ids.
            documents: The number of each token's conversation in its row; None: one a row.
        """
        with runtime.autocast(self.device, self.precision):
            return self.model.hidden(inputs, **({} if documents is None else {"documents": documents}))

    def log_probs(
        self,
        inputs: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        documents: Int[Tensor, "rows time"] | None = None,
    ) -> Float[Tensor, "rows time"]:
        """Return ln p of each target, float32; 0 where it is IGNORE."""
        hidden = self.hidden(inputs, documents)
        with runtime.autocast(self.device, self.precision):
            logits = self.model.head(hidden)
        return -token_losses(logits, targets)

    def _values(self) -> Iterator[tuple[str, float]]:
        for name, (total, number) in self._sums.items():
            if number > 0:
                yield name, float(total / number)

    def forward(self, *tensors: Any) -> Float[Tensor, ""]:
        """Return the mean loss of a micro-batch."""
        raise NotImplementedError
