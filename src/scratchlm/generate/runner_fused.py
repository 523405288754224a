r"""Tokens of some slots in, logits of their next tokens out: a transformer on a CPU, all slots in one pass.

    whole       most models of today: one compiled call for all layers (layers_compiled.py), for the rows that
                are wanted and no others; also for a chunk of one text, if it is short
    otherwise   tensor operations on x of shape (slots, d_model), always all slots; attention by slot in one
                compiled call a layer, which reads each slot's own past and no more

The rest is in runner_transformer.py. The compiled call is made on first use and kept on disk: some ten
seconds, once for an installation; `warm_up` does it at a time of one's own choosing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.layers_compiled import CompiledAttention, CompiledLayers
from scratchlm.generate.layers_compiled import obstacle as obstacle_to_compiled_layers
from scratchlm.generate.runner import PlainRunner, Runner
from scratchlm.generate.runner_transformer import TransformerRunner, unusual
from scratchlm.model.transformer import TransformerLM

SHORT = 32
"""Tokens up to which a chunk of one text goes row by row through the compiled layers."""


def fastest_runner(model: Module, num_slots: int) -> Runner:
    """Return a `FusedRunner` or a `GraphRunner` where one can run the model, else a `PlainRunner`."""
    from scratchlm.generate.runner_graph import GraphRunner
    from scratchlm.generate.runner_graph import obstacle as obstacle_to_graphs

    if obstacle(model) is None:
        return FusedRunner(model, num_slots)
    if next(model.parameters()).is_cuda and obstacle_to_graphs(model) is None:
        return GraphRunner(model, num_slots)
    return PlainRunner(model, num_slots)


def obstacle(model: Module) -> str | None:
    """Return why `FusedRunner` cannot run a model, None if it can."""
    if reason := unusual(model):
        return reason
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        return "its weights are not float32 on the CPU"
    return "autocast is on" if torch.is_autocast_enabled("cpu") else None


class FusedRunner(TransformerRunner):
    """All slots of a transformer together, on a CPU."""

    def __init__(self, model: TransformerLM, num_slots: int) -> None:
        """Make empty caches for `num_slots` texts of the model's context length."""
        if reason := obstacle(model):
            raise ValueError(f"FusedRunner: {reason}; take PlainRunner.")
        super().__init__(model, num_slots, capacity=model.config.context_length)

    def bind(self) -> None:
        """Take up the model's weights as they are now."""
        super().bind()
        self.compiled = [CompiledAttention(layer) for layer in self.layers]
        left = obstacle_to_compiled_layers(self.layers, self._ln_final)
        self.whole = None if left else CompiledLayers(self.layers, self._ln_final, self.model)

    @torch.no_grad()
    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, "time d_model"]:
        """Compute the slot's next tokens; return their vectors."""
        if self.whole is None or len(ids) > SHORT:
            return super().prefill(slot, ids)
        return self._rows([slot] * len(ids), ids)

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in float32 on the CPU."""
        return super().logits(hidden) if self.whole is None else self.whole.logits(hidden)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Compute one further token of each slot; where layers are compiled, nothing for the other slots."""
        if self.whole is None:
            return super().decode(slots, ids)
        return self.whole.logits(self._rows(slots, ids))

    @torch.no_grad()
    def _rows(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows d_model"]:
        """Compute the next token of each slot in turn, a slot several times for several of its tokens."""
        lengths, positions = self._lengths.copy(), []
        for slot in slots:
            positions.append(lengths[slot])
            lengths[slot] += 1
        assert max(lengths) <= self.context_length, lengths
        self._lengths = lengths
        x = self._table[torch.tensor(ids)]
        if self._positions is not None:
            x = x + self._positions[torch.tensor(positions)]
        return self.whole.hidden(x, slots, positions)

    @torch.no_grad()
    def decode_all(self, ids: list[int], positions: list[int]) -> Float[Tensor, "slots vocab"]:
        """Compute a token of every slot at its position; -1: this slot is left out and stays as it is."""
        x = self._table[torch.tensor(ids)]
        if self._positions is not None:
            x = x + self._positions[torch.tensor(positions).clamp(min=0)]
        places = np.array(positions)
        for layer, compiled in zip(self.layers, self.compiled, strict=True):
            x = layer.forward(x, lambda *heads, compiled=compiled: compiled(*heads, places))
        return self.model.head(self._ln_final(x))

    def warm_up(self) -> None:
        """Compile what is compiled, or read it from the disk; no slot changes."""
        if self.whole is None:
            self.decode_all([0] * self.num_slots, [-1] * self.num_slots)
        else:
            self.whole.logits(self.whole.hidden(self._table[:1].clone(), [0], [-1]))
