r"""Adapters: which numbers of a model are trained, and how they become its weights.

    full    all
    lora    W' = W + (alpha / rank) B A            A rank x d_in, B d_out x rank, B = 0 at the start
    dora    W' = m (W + ...) / |W + ...|           |.| of each row; m, one number a row, is trained too

W stays as it is. The sum is formed anew in each pass (rank d_in d_out multiplications, little beside those
with the tokens of a batch) and takes W's place for every part of the model that reads the matrix: attention
and kernels need not know of it. What is saved is both: merged weights under a plain model's names, for all
commands, and the adapter alone, which goes on from the base's weights or is added to them elsewhere.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; Liu et al. 2024 (DoRA),
https://arxiv.org/abs/2402.09353, equation 5, with the norm held fixed in the gradient as in section 4.3.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter

from scratchlm.checkpoint import CheckpointReader
from scratchlm.model.linear import Linear, linear
from scratchlm.posttrain import ADAPTERS

GROUP = "adapter"
"""Group of a checkpoint with an adapter's own tensors."""

Part = Literal["attention", "feedforward", "head"]
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "output_proj"),
    "feedforward": ("w1", "w2", "w3"),
    "head": ("lm_head",),
}
"""Names of the layers of each part of a model."""


class Adapter(ABC):
    """Chooses what of a model is trained."""

    @abstractmethod
    def apply(self, model: Module, generator: torch.Generator) -> None:
        """Prepare `model`, with the base's weights, for training."""

    @abstractmethod
    def tensors(self, model: Module) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds in place of the model's own state; nothing: that state."""

    @abstractmethod
    def load(self, model: Module, saved: CheckpointReader) -> None:
        """Give `model` what a checkpoint holds."""

    @contextlib.contextmanager
    def merged(self, model: Module) -> Iterator[None]:
        """Inside, the weights are formed once and not in each pass: for writing texts."""
        yield

    def describe(self, model: Module) -> str:
        """How much is trained."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        if trained == total:
            return f"all {total:,} parameters are trained"
        return f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


@ADAPTERS.register("full")
class Full(Adapter):
    """Train all of the model's numbers."""

    def apply(self, model: Module, generator: torch.Generator) -> None:
        """Leave it as it is."""

    def tensors(self, model: Module) -> dict[str, dict[str, Tensor]]:
        """Nothing beside the model's own state."""
        return {}

    def load(self, model: Module, saved: CheckpointReader) -> None:
        """Load the model's state."""
        model.load_state_dict({name: saved.read("model", name) for name in saved.names("model")})


class LowRankLinear(Module):
    """A linear layer whose matrix is a fixed one plus a trained one of low rank."""

    def __init__(
        self, layer: Linear, *, rank: int, alpha: float, magnitude: bool, generator: torch.Generator
    ) -> None:
        """Take a layer's place.

        Args:
            layer: Its matrix stays as it is.
            rank: Of the trained matrix, at least 1.
            alpha: Its scale, in units of 1 / rank.
            magnitude: Whether rows keep a length of their own (DoRA).
            generator: For A's initial values.
        """
        super().__init__()
        d_out, d_in = layer.weight.shape
        self.original = Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = layer.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        bound = 1 / math.sqrt(d_in)  # as a linear layer's in the source: Kaiming's with a = sqrt(5)
        values = (torch.rand(rank, d_in, generator=generator) * 2 - 1) * bound
        self.lora_a, self.lora_b = Parameter(values), Parameter(torch.zeros(d_out, rank))
        self.magnitude = Parameter(self.original.norm(dim=1)) if magnitude else None
        self.scale = alpha / rank
        self.merged: Tensor | None = None

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The matrix that the layer has at this moment."""
        return self.form() if self.merged is None else self.merged

    def form(self) -> Float[Tensor, "d_out d_in"]:
        """Add what was learned to the fixed matrix."""
        weight = self.original + self.scale * (self.lora_b @ self.lora_a)
        if self.magnitude is None:
            return weight
        return weight * (self.magnitude / weight.detach().norm(dim=1)).unsqueeze(1)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return x W'^T, plus the bias if there is one."""
        return linear(x, self.weight, self.bias)


class LowRank(Adapter):
    """What LoRA and DoRA have in common."""

    magnitude = False

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        parts: tuple[Part, ...] = ("attention", "feedforward"),
        tables: bool = False,
    ) -> None:
        """Choose the settings.

        Args:
            rank: Of the trained matrices, at least 1.
            alpha: Their scale in units of 1 / rank, above 0.
            parts: Which of the model's matrices: attention, feedforward, head.
            tables: Whether embedding and head are trained in full: new tokens can be learned by that alone.

        Raises:
            ValueError: A number is out of range, or no part is named.
        """
        if rank < 1 or not alpha > 0 or not parts:
            raise ValueError(
                f"adapter: rank={rank}, alpha={alpha}, parts={list(parts)}: rank must be at least 1, alpha "
                f"above 0, and parts some of {', '.join(PARTS)}."
            )
        if tables and "head" in parts:
            raise ValueError("adapter: parts has head and tables=true trains it in full; choose one.")
        self.rank, self.alpha, self.parts, self.tables = rank, alpha, parts, tables
        self.names = frozenset(name for part in parts for name in PARTS[part])

    def settings(self) -> dict[str, Any]:
        """Name and settings: the adapter can be built from these alone."""
        name = next(name for name in ADAPTERS.names() if ADAPTERS.get(name) is type(self))
        return {
            "name": name,
            "rank": self.rank,
            "alpha": self.alpha,
            "parts": list(self.parts),
            "tables": self.tables,
        }

    def apply(self, model: Module, generator: torch.Generator) -> None:
        """Put a `LowRankLinear` in the place of each chosen layer; nothing else is trained, but tables.

        Raises:
            ValueError: The head is chosen, and the model's embeddings are its head.
        """
        if "head" in self.parts and model.lm_head is None:
            raise ValueError(
                "adapter.parts: the model has no head of its own, its embeddings are the head; leave head "
                "out, or train them in full with adapter.tables=true."
            )
        model.requires_grad_(False)
        if self.tables:
            model.token_embeddings.requires_grad_(True)
            if model.lm_head is not None:
                model.lm_head.requires_grad_(True)
        for owner in list(model.modules()):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, Linear) and name in self.names:
                    settings = {"rank": self.rank, "alpha": self.alpha, "magnitude": self.magnitude}
                    setattr(owner, name, LowRankLinear(layer, generator=generator, **settings))

    def tensors(self, model: Module) -> dict[str, dict[str, Tensor]]:
        """The merged weights as group "model", what is trained as group "adapter"."""
        return {"model": merged_state(model), GROUP: own_state(model)}

    def load(self, model: Module, saved: CheckpointReader) -> None:
        """Load what is trained; the fixed matrices are the base's."""
        own = own_state(model)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved.read(GROUP, name))

    @contextlib.contextmanager
    def merged(self, model: Module) -> Iterator[None]:
        """Form each matrix once."""
        layers = [part for part in model.modules() if isinstance(part, LowRankLinear)]
        with torch.no_grad():
            for layer in layers:
                layer.merged = layer.form()
        try:
            yield
        finally:
            for layer in layers:
                layer.merged = None


@ADAPTERS.register("lora")
class Lora(LowRank):
    """Train a sum of low rank to the matrices of attention and feed-forward."""


@ADAPTERS.register("dora")
class Dora(LowRank):
    """As lora, with the length of each row trained apart from its direction."""

    magnitude = True


def own_state(model: Module) -> dict[str, Tensor]:
    """Return what is trained, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def merged_state(model: Module) -> dict[str, Tensor]:
    """Return the weights under the names of a plain model, adapters added."""
    state, layers = {}, {}
    for name, part in model.named_modules():
        if isinstance(part, LowRankLinear):
            layers[name] = part
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            owner, _, leaf = name.rpartition(".")
            if owner not in layers:
                state[name] = tensor
            elif leaf == "original":
                state[f"{owner}.weight"] = layers[owner].form()
            elif leaf == "bias":
                state[name] = tensor
    return state
