r"""What runs a transformer's slots in one pass, whatever the device: prefill, copies, weights that change.

    prefill     one slot's chunk against its own block of keys and values, with the attention of training
    decode      every matrix is read once for all slots, and a row's bits do not depend on how many others are
                wanted: all slots in one fixed shape, or rows that never meet. How, is the device's business:
                runner_fused.py on a CPU, runner_graph.py on a GPU
    refresh     weights that an optimizer changed in place are seen anyway; weights that moved, or that are
                computed from others (adapters), are taken up anew

Rows of a matrix product are independent of each other in the libraries that torch uses, at one number of
rows and on one thread; tests/generate/test_runner_fused.py watches it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.layers import Layer, fast_norm, position_table
from scratchlm.generate.runner import Runner
from scratchlm.kernels import choose
from scratchlm.model.linear import Linear
from scratchlm.model.position import ALiBi, LearnedPosition, NoPosition, RoPE, SinusoidalPosition
from scratchlm.model.transformer import TransformerLM

POSITIONS = (NoPosition, RoPE, ALiBi, LearnedPosition, SinusoidalPosition)
"""The position parts that are written out here."""


def unusual(model: Module) -> str | None:
    """Return what of a model is not written out here, None if nothing."""
    if type(model) is not TransformerLM:
        return f"{type(model).__name__} is no plain transformer"
    if type(model.position_embeddings) not in POSITIONS:
        return f"position part {type(model.position_embeddings).__name__} is not written out"
    for part in model.modules():
        if part._forward_hooks or part._forward_pre_hooks:
            return "somebody listens to its parts"
    for block in model.layers:
        attn = block.attn
        for part in (attn.q_proj, attn.k_proj, attn.v_proj, attn.output_proj, block.ffn.w1, block.ffn.w2):
            # a weight may be computed (torch's parametrizations), a product of another kind may not
            if not isinstance(part, Linear) or type(part).forward is not Linear.forward:
                return f"{type(part).__name__} is no plain linear layer"
    return None


class TransformerRunner(Runner):
    """All slots of a transformer, each with its own room in one memory for keys and values."""

    def __init__(self, model: TransformerLM, num_slots: int, *, capacity: int) -> None:
        """Make empty caches of `capacity` places for `num_slots` texts."""
        config, table = model.config, model.token_embeddings.weight
        self.model, self.num_slots = model, num_slots
        self.vocab_size, self.context_length = config.vocab_size, config.context_length
        self.attention = choose("attention", "auto", table.device.type).function
        self._lengths = [0] * num_slots
        shape = (num_slots, config.kv_heads, capacity, config.d_head)
        self._memory = [tuple(table.new_empty(shape) for _ in range(2)) for _ in model.layers]
        self.bind()

    @torch.no_grad()
    def bind(self) -> None:
        """Take up the model's weights as they are now."""
        pairs = zip(self.model.layers, self._memory, strict=True)
        self.layers = [Layer(block, self.model, *memory) for block, memory in pairs]
        self._table = self.model.token_embeddings.weight.detach()
        self._ln_final = fast_norm(self.model.ln_final)
        self._positions = position_table(self.model)
        self._bound = _places(self.model)

    def refresh(self) -> None:
        """Take up weights that moved or are computed, if there are any."""
        if self._bound is None or self._bound != _places(self.model):
            self.bind()

    @torch.no_grad()
    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, "time d_model"]:
        """Compute the slot's next tokens; return their vectors."""
        start = self._lengths[slot]
        end = start + len(ids)
        assert end <= self.context_length, (start, end, self.context_length)
        x = self._table[torch.tensor(ids, device=self._table.device)]
        if self._positions is not None:
            x = x + self._positions[start:end]
        for layer in self.layers:
            x = layer.forward(x, lambda *heads, layer=layer: layer.meet(self.attention, slot, start, heads))
        self._lengths[slot] = end
        return self._ln_final(x)

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in float32 on the CPU."""
        return self.model.head(hidden).float().cpu()

    @torch.no_grad()
    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Compute one further token of each slot, and nothing of use in the rows of the others."""
        all_ids, positions = [0] * self.num_slots, [-1] * self.num_slots
        for slot, token_id in zip(slots, ids, strict=True):
            all_ids[slot], positions[slot] = token_id, self._lengths[slot]
            self._lengths[slot] += 1
        assert max(positions) < self.context_length, positions
        return self.decode_all(all_ids, positions)[list(slots)]

    @abstractmethod
    def decode_all(self, ids: list[int], positions: list[int]) -> Float[Tensor, "slots vocab"]:
        """Compute a token of every slot at its position; -1: this slot is left out and stays as it is."""

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` tokens only."""
        assert 0 <= length <= self._lengths[slot], (length, self._lengths[slot])
        self._lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens; its memory stays and is never read before it is written."""
        self._lengths[slot] = 0

    @torch.no_grad()
    def copy(self, source: int, target: int, length: int) -> None:
        """Let a slot hold the first `length` tokens of another one."""
        assert 0 <= length <= self._lengths[source], (length, self._lengths[source])
        self.clear(target)
        for block in self.memory():
            for tensor in block:
                tensor[target, :, :length] = tensor[source, :, :length]
        self._lengths[target] = length

    def memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the keys and values of each layer."""
        yield from self._memory


def _places(model: TransformerLM) -> tuple[int, ...] | None:
    """Where the weights lie; None if some are computed, so that their places tell nothing."""
    parts = [part for part in model.modules() if hasattr(part, "weight")]
    if any("weight" not in part._parameters for part in parts):
        return None
    return tuple(parameter.data_ptr() for parameter in model.parameters())
