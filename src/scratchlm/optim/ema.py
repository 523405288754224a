r"""Average of weights: parameters come in after every step, their exponential moving average goes out.

    d = min(decay, (1 + t) / (10 + t))               t = 1, 2, ...: updates made when this one is done
    a = d * a + (1 - d) * p                          a = p before the first

The weights of a run jump about the floor of a valley as long as the learning rate is high; their mean lies
lower than any of them. The average costs one more copy of the weights and takes no part in training. At first
`d` is small, or the random initial weights would stay in the average for 1 / (1 - decay) steps.

    ema = EMA(model.named_parameters(), 0.999)
    ema.update_()                                    after every optimizer.step()
    with ema.swapped():                              the model is the average here
        evaluate(model)

Source: Polyak & Juditsky 1992, https://doi.org/10.1137/0330046; the growing `d` as `num_updates` in
TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

COUNT = "num_updates"
"""Name of the number of updates among the saved tensors; no parameter is called so."""


class EMA:
    """The exponential moving average of a model's trainable parameters, in float32 or wider."""

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], decay: float) -> None:
        """Begin the average at the parameters as they are.

        Args:
            named_parameters: As `model.named_parameters()` gives them; those without gradient are left out.
            decay: How much of the average is kept per step, in (0, 1): it looks back 1 / (1 - decay) steps.
                A hundredth of the run is a place to start: 0.99 for 10,000 steps.

        Raises:
            ValueError: `decay` is out of its range.
        """
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: must lie between 0 and 1; 0.999 looks back 1,000 steps.")
        self.decay, self.num_updates = decay, 0
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self._averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update_(self) -> None:
        """Let the parameters as they are now into the average."""
        self.num_updates += 1
        kept = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = list(self._averages.values())
        params = [p.detach().to(a.dtype) for p, a in zip(self._parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, params, 1 - kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages into the model inside a `with` block; after it, the very weights again."""
        weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(weights)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name and the number of updates, for a checkpoint; not copies."""
        return {**self._averages, COUNT: torch.tensor(self.num_updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, or begin again at a model's `state_dict()`.

        Args:
            tensors: By name; names that are no trainable parameter's are passed over.

        Raises:
            ValueError: A parameter is missing or has another shape; nothing is changed then.
        """
        for name, average in self._averages.items():
            if name not in tensors or tensors[name].shape != average.shape:
                found = tuple(tensors[name].shape) if name in tensors else "missing"
                raise ValueError(
                    f"average of weights: {name} is {found}, the model's is {tuple(average.shape)}; "
                    "load the average into the model that it was saved from."
                )
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.num_updates = int(tensors.get(COUNT, 0))

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        # in place: compiled graphs and optimizers hold these very tensors
        for name, p in self._parameters.items():
            p.copy_(values[name])
