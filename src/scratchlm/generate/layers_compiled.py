r"""Token vectors in, vectors after all layers and logits out: a runner's layers as one compiled call.

    widths      whatever the model's; weights are read where they lie, so what an optimizer changes in place
                is seen at once, and nothing is kept twice
    parts       RMSNorm before each half, SwiGLU, SiLU or squared ReLU, with or without biases and QK-norm,
                any window, softcap, slopes or angles; `obstacle` tells what is left to tensor operations
    rows        only those that are wanted: a row's bits do not depend on the others

What is computed: kernels/decode_layers_numba.py. The call is compiled on first use and kept on disk.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scratchlm.generate.layers import FastRMSNorm, FastSwiGLU, Layer, Product
from scratchlm.kernels.attention_decode import DecodeSettings
from scratchlm.model.feedforward import SiLUFeedForward, SquaredReLUFeedForward
from scratchlm.model.transformer import TransformerLM

ACTIVATION_OF = {FastSwiGLU: "silu", SiLUFeedForward: "silu", SquaredReLUFeedForward: "relu2"}
"""What stands between w1 and w2 of each feed-forward part that can run compiled."""

THREADS, LARGE = 4, 2**24
"""With more threads, torch's products of a model with more parameters than these are faster: one core reached
170 GFLOP/s with 8 rows compiled and 47 in torch (AMD EPYC), and reads no more than some 40 GB/s."""


def obstacle(layers: Sequence[Layer], ln_final: object) -> str | None:
    """Return why layers must run in tensor operations, None if they can run compiled."""
    size = len(layers) * sum(product.weight.numel() for product in _products(layers[0]).values())
    if torch.get_num_threads() > THREADS and size > LARGE:
        return f"{torch.get_num_threads()} threads share products of {size:,} numbers"
    for layer in layers:
        if layer.placement != "pre":
            return f"placement {layer.placement}"
        if type(layer.ffn) not in ACTIVATION_OF:
            return f"feed-forward {type(layer.ffn).__name__}"
        if not all(product.weight.t().is_contiguous() for product in _products(layer).values()):
            return "a weight lies in memory with gaps"  # a copy would not see what an optimizer changes
    norms = [ln_final, *(norm for layer in layers for norm in (layer.norm1, layer.norm2))]
    if not all(type(norm) is FastRMSNorm for norm in norms):
        return "a norm is no RMSNorm"
    return None


class CompiledLayers:
    """All layers, the last norm and the head of a transformer."""

    def __init__(self, layers: Sequence[Layer], ln_final: FastRMSNorm, model: TransformerLM) -> None:
        """Take the layers' weights, keys and values where they lie now."""
        from scratchlm.kernels.decode_layers_numba import ACTIVATIONS, FIELDS, NUMBERS

        first = layers[0]
        fields, numbers = [_fields(layer) for layer in layers], [_numbers(layer) for layer in layers]
        self._kept = fields  # what the addresses point to
        self._table = np.array(
            [[0 if row[name] is None else row[name].data_ptr() for name in FIELDS] for row in fields]
        )
        self._numbers = np.array([[row[name] for name in NUMBERS] for row in numbers], np.float32)
        self._settings = (
            tuple(first.keys.shape),
            first.num_heads,
            fields[0]["w1"].shape[0],
            ACTIVATIONS.index(ACTIVATION_OF[type(first.ffn)]),
            *_shared(first.settings),
        )
        self._ln_final = ln_final
        head = model.token_embeddings if model.lm_head is None else model.lm_head
        self._head = head.weight.detach().contiguous()
        self._divisor, self._cap = model.logit_divisor, model.config.logit_softcap

    def hidden(
        self, x: Float[Tensor, "rows d_model"], slots: Sequence[int], positions: Sequence[int]
    ) -> Float[Tensor, "rows d_model"]:
        """Take new tokens' vectors through all layers and the last norm; x is overwritten.

        Row r stands at positions[r] of slots[r]; the rows of one slot are neighbours, in order.
        """
        from scratchlm.kernels.decode_layers_numba import decode_layers, normalize

        y, norm = x.numpy(), self._ln_final
        places = np.array(slots), np.array(positions)
        decode_layers(y, self._table, self._numbers, *places, *self._settings)
        gain = 0 if norm.weight is None else norm.weight.data_ptr()
        normalize(y, gain, np.float32(norm.eps), y)
        return x

    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return the logits of vectors from `hidden`; the formula is TransformerLM.head's."""
        from scratchlm.kernels.rows_numba import multiply

        logits = hidden.new_empty(len(hidden), len(self._head))
        multiply(hidden.contiguous().numpy(), self._head.numpy(), logits.numpy())
        if self._divisor != 1:
            logits /= self._divisor
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


class CompiledAttention:
    """Attention of one new token a slot, over a layer's keys and values, by the compiled function."""

    def __init__(self, layer: Layer) -> None:
        num_slots, _, capacity, d_head = layer.keys.shape
        self._keys, self._values = layer.keys.numpy(), layer.values.numpy()
        self._slots = np.arange(num_slots)
        self._out = torch.empty(num_slots, layer.num_heads, d_head)
        repeats = layer.num_heads // layer.num_groups
        self._scores, self._turned = (np.empty((repeats, n), np.float32) for n in (capacity, d_head))
        settings = layer.settings
        self._numbers = (
            np.float32(settings.scale),
            *_shared(settings),
            _array(settings.q_gain, 0),
            _array(settings.k_gain, 0),
            np.float32(settings.eps),
        )

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
        memory, room = (self._keys, self._values), (self._scores, self._turned)
        attend_slots(q, k, v, *memory, self._slots, positions, out, *room, *self._numbers)
        return self._out


def _products(layer: Layer) -> dict[str, Product]:
    names = ("w1", "w2", "w3") if hasattr(layer.ffn, "w3") else ("w1", "w2")
    parts = {name: getattr(layer.ffn, name) for name in names}
    ffn = {name: part if isinstance(part, Product) else Product.of(part) for name, part in parts.items()}
    return {"q": layer.q, "k": layer.k, "v": layer.v, "output": layer.output, **ffn}


def _fields(layer: Layer) -> dict[str, Tensor | None]:
    settings, fields = layer.settings, {"w3": None, "w3_bias": None}
    for name, product in _products(layer).items():
        fields[name], fields[f"{name}_bias"] = product.weight.t(), product.bias
    fields |= {"norm1": layer.norm1.weight, "norm2": layer.norm2.weight}
    fields |= {"q_gain": settings.q_gain, "k_gain": settings.k_gain}
    return fields | {"keys": layer.keys, "values": layer.values}


def _numbers(layer: Layer) -> dict[str, float]:
    settings = layer.settings
    eps = {"norm1_eps": layer.norm1.eps, "norm2_eps": layer.norm2.eps, "qk_eps": settings.eps}
    return {**eps, "scale": settings.scale}


def _shared(settings: DecodeSettings) -> tuple:
    """What is the same for all layers, as the compiled functions take it: what is absent is empty or 0."""
    numbers = settings.window or 0, np.float32(settings.softcap or 0.0)
    angles = _array(settings.cos, 1, 0), _array(settings.sin, 1, 0)
    return (*numbers, _array(settings.slopes, 0), *angles)


def _array(tensor: Tensor | None, *empty: int) -> np.ndarray:
    return np.empty(empty, np.float32) if tensor is None else tensor.numpy()
