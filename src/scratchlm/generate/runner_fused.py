r"""Tokens of all slots in, logits of their next tokens out: a transformer on a CPU, all slots in one pass.

    keys, values     one block a layer, (slots, kv_heads, capacity, d_head)
    decode           x of shape (slots, d_model), always all slots: every matrix is read once for all of them,
                     and a row's bits do not depend on how many others are wanted; attention by slot in one
                     compiled call (kernels/attention_decode_numba.py)
    prefill          one slot's chunk against its own block, with the attention that training has

The same numbers as TransformerLM.hidden and head up to rounding, without what a token at a time makes
expensive: weights put together at every step, gradients' bookkeeping, tables of masks. The weights are the
model's own memory, not a copy: what changes them in place is seen at once.

Rows of a matrix product are independent of each other in the libraries that torch uses, at one number of
rows and on one thread; tests/generate/test_runner_fused.py watches it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.runner import PlainRunner, Runner
from scratchlm.kernels import choose
from scratchlm.kernels.attention_decode import DecodeSettings, prepare
from scratchlm.model.block import Block
from scratchlm.model.feedforward import SwiGLU
from scratchlm.model.linear import Linear
from scratchlm.model.norm import RMSNorm
from scratchlm.model.position import ALiBi, LearnedPosition, NoPosition, RoPE, SinusoidalPosition
from scratchlm.model.transformer import TransformerLM

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values of new tokens, (rows, heads, d_head) each -> what the queries gather."""

POSITIONS = (NoPosition, RoPE, ALiBi, LearnedPosition, SinusoidalPosition)
"""The position parts that are written out here."""


def fastest_runner(model: Module, num_slots: int) -> Runner:
    """Return a `FusedRunner` where one can run the model, else a `PlainRunner`."""
    return PlainRunner(model, num_slots) if obstacle(model) else FusedRunner(model, num_slots)


def obstacle(model: Module) -> str | None:
    """Return why `FusedRunner` cannot run a model, None if it can."""
    if type(model) is not TransformerLM:
        return f"{type(model).__name__} is no plain transformer"
    if type(model.position_embeddings) not in POSITIONS:
        return f"position part {type(model.position_embeddings).__name__} is not written out"
    if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        return "somebody listens to its parts"
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        return "its weights are not float32 on the CPU"
    return "autocast is on" if torch.is_autocast_enabled("cpu") else None


class FusedRunner(Runner):
    """All slots of a transformer together."""

    def __init__(self, model: TransformerLM, num_slots: int) -> None:
        """Make empty caches for `num_slots` texts of the model's context length."""
        if reason := obstacle(model):
            raise ValueError(f"FusedRunner: {reason}; take PlainRunner.")
        config = model.config
        self.model, self.num_slots = model, num_slots
        self.vocab_size, self.context_length = config.vocab_size, config.context_length
        self.attention = choose("attention", "auto", "cpu").function
        shape = (num_slots, config.kv_heads, config.context_length, config.d_head)
        self._layers = [_Layer.of(block, model, shape) for block in model.layers]
        self._table = model.token_embeddings.weight.detach()
        self._ln_final = fast_norm(model.ln_final)
        self._positions = _position_table(model)
        self._lengths = [0] * num_slots

    @torch.no_grad()
    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, "time d_model"]:
        """Compute the slot's next tokens; return their vectors."""
        start = self._lengths[slot]
        end = start + len(ids)
        assert end <= self.context_length, (start, end, self.context_length)
        x = self._table[torch.tensor(ids)]
        if self._positions is not None:
            x = x + self._positions[start:end]
        for layer in self._layers:
            x = layer.forward(x, lambda q, k, v, layer=layer: self._meet(layer, slot, start, q, k, v))
        self._lengths[slot] = end
        return self._ln_final(x)

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in float32."""
        return self.model.head(hidden)

    @torch.no_grad()
    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Compute one further token of each slot, and nothing of use in the rows of the others."""
        all_ids, positions = [0] * self.num_slots, [-1] * self.num_slots
        for slot, token_id in zip(slots, ids, strict=True):
            all_ids[slot], positions[slot] = token_id, self._lengths[slot]
            self._lengths[slot] += 1
        assert max(positions) < self.context_length, positions
        x = self._table[torch.tensor(all_ids)]
        if self._positions is not None:
            x = x + self._positions[torch.tensor(positions).clamp(min=0)]
        places = np.array(positions)
        for layer in self._layers:
            x = layer.forward(x, lambda q, k, v, layer=layer: layer.attend(q, k, v, places))
        return self.model.head(self._ln_final(x))[list(slots)]

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` tokens only."""
        assert 0 <= length <= self._lengths[slot], (length, self._lengths[slot])
        self._lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens; its memory stays and is never read before it is written."""
        self._lengths[slot] = 0

    def memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the keys and values of each layer."""
        for layer in self._layers:
            yield layer.keys, layer.values

    def _meet(
        self, layer: "_Layer", slot: int, start: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor
    ) -> Tensor:
        """Attention of a chunk over its slot's past and itself."""
        end, settings, config = start + len(q_THK), layer.settings, self.model.config
        q_HTK = prepare(q_THK.transpose(0, 1), start, settings, settings.q_gain)
        layer.keys[slot, :, start:end] = prepare(k_TGK.transpose(0, 1), start, settings, settings.k_gain)
        layer.values[slot, :, start:end] = v_TGK.transpose(0, 1)
        # the attention divides by sqrt(d_head) itself
        out_BHTK = self.attention(
            q_HTK[None] * (settings.scale * config.d_head**0.5),
            layer.keys[slot, None, :, :end],
            layer.values[slot, None, :, :end],
            window=config.window,
            softcap=config.softcap,
            slopes_H=settings.slopes,
        )
        return out_BHTK[0].transpose(0, 1)


class _Product(NamedTuple):
    """A linear layer, ready for rows: its weight turned, a view of the same memory."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(linear: Linear) -> "_Product":
        return _Product(linear.weight.detach().t(), None if linear.bias is None else linear.bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add(self, total: Tensor, x: Tensor) -> Tensor:
        """Return total + x W^T + b."""
        total = torch.addmm(total, x, self.weight)
        return total if self.bias is None else total.add_(self.bias)


class _Layer:
    """One block: its products, its norms, its keys and values."""

    def __init__(self, block: Block, settings: DecodeSettings, shape: tuple[int, ...]) -> None:
        attn, ffn = block.attn, block.ffn
        self.q, self.k, self.v = (_Product.of(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        self.output = _Product.of(attn.output_proj)
        self.norm1, self.norm2, self.placement = fast_norm(block.ln1), fast_norm(block.ln2), block.placement
        self.ffn = FastSwiGLU(ffn) if type(ffn) is SwiGLU else ffn
        self.num_heads, self.num_groups, self.d_head = attn.num_heads, attn.num_kv_heads, shape[-1]
        self.settings = settings
        self.keys, self.values = torch.empty(shape), torch.empty(shape)
        self._keys, self._values = self.keys.numpy(), self.values.numpy()
        self._out = torch.empty(shape[0], self.num_heads, self.d_head)
        self._scores, self._turned = np.empty(shape[2], np.float32), np.empty(self.d_head, np.float32)
        self._numbers = _numbers(settings)

    @staticmethod
    def of(block: Block, model: TransformerLM, shape: tuple[int, ...]) -> "_Layer":
        config, attn, position = model.config, block.attn, model.position_embeddings
        cos, sin = (position.cos, position.sin) if isinstance(position, RoPE) else (None, None)
        settings = DecodeSettings(
            # with QK-norm the factor is in the gain, which is a factor of the scores as well
            scale=config.d_head**-0.5 * attn.score_factor,
            window=config.window,
            softcap=config.softcap,
            slopes=position.slopes,
            cos=cos,
            sin=sin,
            q_gain=None if attn.q_norm is None else attn.q_norm.weight.detach(),
            k_gain=None if attn.k_norm is None else attn.k_norm.weight.detach(),
            eps=0.0 if attn.q_norm is None else attn.q_norm.eps,
        )
        return _Layer(block, settings, shape)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Return the tokens' vectors after this layer; the formulas are in model/block.py."""
        if self.placement == "post":
            x = self.norm1(self.output.add(x, self._attended(x, attend)))
            return self.norm2(x + self.ffn(x))
        x = self.output.add(x, self._attended(self.norm1(x), attend))
        return x + self.ffn(self.norm2(x))

    def attend(self, q_SHK: Tensor, k_SGK: Tensor, v_SGK: Tensor, positions: np.ndarray) -> Tensor:
        """Attention of one new token a slot."""
        from scratchlm.kernels.attention_decode_numba import attend_slots

        q, k, v, out = q_SHK.numpy(), k_SGK.numpy(), v_SGK.numpy(), self._out.numpy()
        attend_slots(
            q, k, v, self._keys, self._values, positions, out, self._scores, self._turned, *self._numbers
        )
        return self._out

    def _attended(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        rows, heads, groups, width = len(x), self.num_heads, self.num_groups, self.d_head
        out = attend(q.view(rows, heads, width), k.view(rows, groups, width), v.view(rows, groups, width))
        return out.reshape(rows, heads * width)


class FastSwiGLU:
    """silu(W1 x) * W3 x, then W2; no matrices put together, no autograd."""

    def __init__(self, ffn: SwiGLU) -> None:
        self.w1, self.w2, self.w3 = (_Product.of(part) for part in (ffn.w1, ffn.w2, ffn.w3))

    def __call__(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """Return W2 of the gated values; one row for each token."""
        gate = self.w1(x)
        return self.w2(torch.sigmoid(gate).mul_(gate).mul_(self.w3(x)))


class FastRMSNorm:
    """RMSNorm without autograd: the length of each row, then one product."""

    def __init__(self, norm: RMSNorm) -> None:
        self.eps = norm.eps
        self.weight = None if norm.weight is None else norm.weight.detach()

    def __call__(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """Return x with root mean square 1, times the gain."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        y = x * length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return y if self.weight is None else y.mul_(self.weight)


def fast_norm(norm: Module) -> Callable[[Tensor], Tensor]:
    """Return the same norm without autograd's bookkeeping, where it is an RMSNorm."""
    return FastRMSNorm(norm) if type(norm) is RMSNorm else norm


def _position_table(model: TransformerLM) -> Tensor | None:
    """The vectors that are added to embeddings, a row for each position."""
    position = model.position_embeddings
    if isinstance(position, LearnedPosition):
        return position.weight.detach()
    return position.table if isinstance(position, SinusoidalPosition) else None


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
