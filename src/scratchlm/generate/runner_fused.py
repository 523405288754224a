r"""Tokens of all slots in, logits of their next tokens out: a transformer on a CPU, all slots in one pass.

    decode      x of shape (slots, d_model), always all slots; attention by slot in one compiled call a layer
                (kernels/attention_decode_numba.py), which reads each slot's own past and no more

The rest is in runner_transformer.py. The compiled call is made on first use and kept on disk: about seven
seconds, once for an installation; `warm_up` does it at a time of one's own choosing.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.layers import Layer
from scratchlm.generate.runner import PlainRunner, Runner
from scratchlm.generate.runner_transformer import TransformerRunner, unusual
from scratchlm.kernels.attention_decode import DecodeSettings
from scratchlm.model.transformer import TransformerLM


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
        self.decode_all([0] * self.num_slots, [-1] * self.num_slots)


class CompiledAttention:
    """Attention of one new token a slot, over a layer's keys and values, by the compiled function."""

    def __init__(self, layer: Layer) -> None:
        num_slots, _, capacity, d_head = layer.keys.shape
        self._keys, self._values = layer.keys.numpy(), layer.values.numpy()
        self._out = torch.empty(num_slots, layer.num_heads, d_head)
        self._scores, self._turned = np.empty(capacity, np.float32), np.empty(d_head, np.float32)
        self._numbers = _numbers(layer.settings)

    def __call__(
        self,
        q_SHK: Float[Tensor, "slots heads d_head"],
        k_SGK: Float[Tensor, "slots kv_heads d_head"],
        v_SGK: Float[Tensor, "slots kv_heads d_head"],
        positions: np.ndarray,
    ) -> Float[Tensor, "slots heads d_head"]:
        """Return what each slot's queries gather; the result is overwritten by the next call."""
        from scratchlm.kernels.attention_decode_numba import attend_slots

        q, k, v, out = q_SHK.numpy(), k_SGK.numpy(), v_SGK.numpy(), self._out.numpy()
        attend_slots(
            q, k, v, self._keys, self._values, positions, out, self._scores, self._turned, *self._numbers
        )
        return self._out


def _numbers(settings: DecodeSettings) -> tuple:
    """The settings as the compiled function takes them: what is absent is empty or 0."""

    def array(tensor: Tensor | None, *empty: int) -> np.ndarray:
        return np.empty(empty, np.float32) if tensor is None else tensor.numpy()

    return (
        np.float32(settings.scale),
        settings.window or 0,
        np.float32(settings.softcap or 0.0),
        array(settings.slopes, 0),
        array(settings.cos, 1, 0),
        array(settings.sin, 1, 0),
        array(settings.q_gain, 0),
        array(settings.k_gain, 0),
        np.float32(settings.eps),
    )
