r"""Tokens of all slots in, logits of their next ones out: a transformer on a GPU, a recorded graph a step.

    record     once: the kernels of one step for all slots, from ids and positions in fixed memory to logits
    decode     write ids and positions into that memory, replay, read the logits

A step of a small model on a GPU is hundreds of kernels of a few microseconds, and starting each from Python
takes longer than running it; a recorded graph starts them all at once. Its shapes are fixed, so a slot's
attention covers the whole capacity with a mask, whatever its length: a row's bits do not depend on its
neighbours. A slot that is left out writes its keys to a spare place behind the capacity.

On other devices the same operations run unrecorded; that is how they are tested without a GPU.

Source: CUDA graphs as in https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs, "warm up on a side
stream, capture, replay".
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.layers import Layer
from scratchlm.generate.runner_transformer import TransformerRunner, unusual
from scratchlm.kernels.attention_decode import DecodeSettings
from scratchlm.kernels.rms_norm import rms_norm_reference
from scratchlm.model.transformer import TransformerLM

WARM_UPS = 3
"""Steps before the recording: libraries choose their kernels and take their memory in the first ones
(the source has three as well)."""


def obstacle(model: Module) -> str | None:
    """Return why `GraphRunner` cannot run a model, None if it can."""
    if reason := unusual(model):
        return reason
    kinds = {(parameter.device, parameter.dtype) for parameter in model.parameters()}
    if len(kinds) > 1:
        return "its weights have several devices or number formats"
    (device, _) = kinds.pop()
    return "autocast is on" if torch.is_autocast_enabled(device.type) else None


class GraphRunner(TransformerRunner):
    """All slots of a transformer together, each step one replay of a recorded graph."""

    def __init__(self, model: TransformerLM, num_slots: int) -> None:
        """Make empty caches for `num_slots` texts of the model's context length."""
        if reason := obstacle(model):
            raise ValueError(f"GraphRunner: {reason}; take PlainRunner.")
        device = model.token_embeddings.weight.device
        # ids in the first row, positions in the second: one copy to the device
        self._asked = torch.zeros(2, num_slots, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        super().__init__(model, num_slots, capacity=model.config.context_length + 1)
        for slot in range(num_slots):
            self.clear(slot)

    def bind(self) -> None:
        """Take up the model's weights as they are now; the next step is recorded anew."""
        super().bind()
        self._graph = None

    def decode_all(self, ids: list[int], positions: list[int]) -> Float[Tensor, "slots vocab"]:
        """Compute a token of every slot at its position; -1: this slot is left out and stays as it is."""
        if not self._asked.is_cuda:
            self._asked.copy_(torch.tensor([ids, positions]))
            return self._step().cpu()
        if self._graph is None:
            self._record()
        self._asked.copy_(torch.tensor([ids, positions]))
        self._graph.replay()
        return self._logits.cpu()

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens: what is masked is multiplied by 0, so it must be a number."""
        super().clear(slot)
        for block in self.memory():
            for tensor in block:
                tensor[slot].zero_()

    def warm_up(self) -> None:
        """Record the step; no slot changes."""
        if self._asked.is_cuda and self._graph is None:
            self._record()

    @torch.no_grad()
    def _record(self) -> None:
        self._asked[1] = -1
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        self._graph = graph

    @torch.no_grad()
    def _step(self) -> Float[Tensor, "slots vocab"]:
        ids, positions = self._asked
        x = self._table[ids]
        if self._positions is not None:
            x = x + self._positions[positions.clamp(min=0)]
        for layer in self.layers:
            x = layer.forward(x, lambda *heads, layer=layer: attend_masked(*heads, positions, layer))
        return self.model.head(self._ln_final(x)).float()


def attend_masked(
    q_SHK: Float[Tensor, "slots heads d_head"],
    k_SGK: Float[Tensor, "slots kv_heads d_head"],
    v_SGK: Float[Tensor, "slots kv_heads d_head"],
    positions: Int[Tensor, " slots"],
    layer: Layer,
) -> Float[Tensor, "slots heads d_head"]:
    """Store each slot's new key and value and return what its queries gather from the slot's past.

    The twin in words is kernels/attention_decode.attend_slots_reference; slots with position -1 get numbers
    without meaning, and their own places keep what they hold.
    """
    settings, capacity = layer.settings, layer.keys.shape[2] - 1
    seen = positions.clamp(min=0)
    q, k = (
        _prepared(x, gain, seen, settings) for x, gain in ((q_SHK, settings.q_gain), (k_SGK, settings.k_gain))
    )
    slots, places = torch.arange(len(q), device=q.device), torch.where(positions < 0, capacity, positions)
    layer.keys[slots, :, places] = k
    layer.values[slots, :, places] = v_SGK
    q_SGRK = rearrange(q, "S (G R) K -> S G R K", G=layer.num_groups)
    scores = einsum(q_SGRK, layer.keys[:, :, :capacity], "S G R K, S G C K -> S G R C").float()
    scores = scores * settings.scale
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    distance_SC = seen[:, None] - torch.arange(capacity, device=q.device)
    if settings.slopes is not None:
        slopes_GR = rearrange(settings.slopes, "(G R) -> G R", G=layer.num_groups)
        scores = scores - slopes_GR[None, :, :, None] * distance_SC[:, None, None]
    hidden_SC = (distance_SC < 0) | (distance_SC >= (settings.window or capacity))
    scores = scores.masked_fill(hidden_SC[:, None, None], -torch.inf)
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(q.dtype)
    out = einsum(weights, layer.values[:, :, :capacity], "S G R C, S G C K -> S G R K")
    return rearrange(out, "S G R K -> S (G R) K")


def _prepared(x_SNK: Tensor, gain: Tensor | None, positions: Tensor, settings: DecodeSettings) -> Tensor:
    """Queries or keys of one token a slot, normalised and turned as the settings say."""
    if gain is not None:
        x_SNK = rms_norm_reference(x_SNK, gain, eps=settings.eps)
    if settings.cos is None or settings.sin is None:
        return x_SNK
    cos, sin = (table[positions][:, None].to(x_SNK.dtype) for table in (settings.cos, settings.sin))
    a, b = rearrange(x_SNK, "S N (P two) -> two S N P", two=2)
    return rearrange([a * cos - b * sin, a * sin + b * cos], "two S N P -> S N (P two)")
