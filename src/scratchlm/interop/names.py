r"""Our names and orders of weights <-> those of Hugging Face.

    layers.0.attn.q_proj.weight   <->   model.layers.0.self_attn.q_proj.weight      llama, qwen3
                                        transformer.h.0.attn.c_attn.weight          gpt2: q, k and v in one

Llama and Qwen 3: RoPE turns the pairs (x[k], x[k + d_head / 2]) there and (x[2k], x[2k+1]) here. Inside a
head the rows of the query and key projections, and the gains of QK-norm, are therefore put in another order:
0 2 4 ... 1 3 5 ... . At position 0 nothing turns, so a wrong order shows from the second token on.

GPT-2 keeps its matrices transposed, (in, out), and those of queries, keys and values side by side.

Source: https://github.com/huggingface/transformers, modeling_llama.py, modeling_qwen3.py, modeling_gpt2.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "rows ..."]

_LLAMA_LAYER = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w3": "mlp.up_proj",
    "ffn.w2": "mlp.down_proj",
}
_LLAMA = {
    "token_embeddings": "model.embed_tokens",
    "ln_final": "model.norm",
    "lm_head": "lm_head",
}
_GPT2_LAYER = {
    "ln1": "ln_1",
    "ln2": "ln_2",
    "attn.output_proj": "attn.c_proj",
    "ffn.w1": "mlp.c_fc",
    "ffn.w2": "mlp.c_proj",
}
_GPT2 = {
    "token_embeddings": "transformer.wte",
    "position_embeddings": "transformer.wpe",
    "ln_final": "transformer.ln_f",
    "lm_head": "lm_head",
}

_TURNED = ("attn.q_proj", "attn.k_proj", "attn.q_norm", "attn.k_norm")
_QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")


class Source(NamedTuple):
    """Where a weight of ours is found in the weights of another program."""

    name: str
    """Name of the tensor there."""
    read: Callable[[Tensor], Tensor]
    """Their tensor -> ours."""
    shape: tuple[int, ...]
    """What shape it must have there."""


def halves(rows: Rows, d_head: int) -> Rows:
    """Return rows in the order of Hugging Face's RoPE, head by head: 0 2 4 ... 1 3 5 ..."""
    return rearrange(rows, "(H pairs two) ... -> (H two pairs) ...", two=2, pairs=d_head // 2)


def pairs(rows: Rows, d_head: int) -> Rows:
    """Return rows in our order, head by head; undoes `halves`."""
    return rearrange(rows, "(H two pairs) ... -> (H pairs two) ...", two=2, pairs=d_head // 2)


def to_huggingface(
    kind: str, weights: Mapping[str, Float[Tensor, "..."]], *, d_head: int
) -> dict[str, Float[Tensor, "..."]]:
    """Rename and rearrange weights.

    Args:
        kind: "llama", "qwen3" or "gpt2".
        weights: By our names, as `weights.whole_weights` gives them.
        d_head: Width of a head.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        part, _, last = name.rpartition(".")
        within = _within_layer(part)
        if kind == "gpt2" and within in _QKV:
            if within == _QKV[0]:
                joined = torch.cat([weights[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
                layer = part.split(".")[1]
                found[f"transformer.h.{layer}.attn.c_attn.{last}"] = joined.T if last == "weight" else joined
            continue
        if kind != "gpt2" and within in _TURNED:
            value = halves(value, d_head)
        if kind == "gpt2" and within is not None and value.ndim == 2:
            value = value.T
        found[f"{_their_name(kind, part)}.{last}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def sources(kind: str, names: Mapping[str, tuple[int, ...]], *, d_head: int) -> Iterator[tuple[str, Source]]:
    """Yield where each of our weights comes from.

    Args:
        kind: "llama", "qwen3" or "gpt2".
        names: Our names with their shapes.
        d_head: Width of a head.
    """
    for name, shape in names.items():
        part, _, last = name.rpartition(".")
        within = _within_layer(part)
        if kind == "gpt2" and within in _QKV:
            theirs = f"transformer.h.{part.split('.')[1]}.attn.c_attn.{last}"
            yield name, Source(theirs, _third(_QKV.index(within), shape[0]), (*shape[:0:-1], 3 * shape[0]))
        elif kind == "gpt2" and within is not None:
            yield name, Source(f"{_their_name(kind, part)}.{last}", _transposed, shape[::-1])
        else:
            read = _in_pairs(d_head) if within in _TURNED else _same
            yield name, Source(f"{_their_name(kind, part)}.{last}", read, shape)


def _within_layer(part: str) -> str | None:
    """Example: "layers.3.attn.q_proj" -> "attn.q_proj"; None outside of the layers."""
    return part.split(".", 2)[2] if part.startswith("layers.") else None


def _their_name(kind: str, part: str) -> str:
    within = _within_layer(part)
    if within is None:
        return (_GPT2 if kind == "gpt2" else _LLAMA)[part]
    layer = part.split(".")[1]
    return (
        f"transformer.h.{layer}.{_GPT2_LAYER[within]}"
        if kind == "gpt2"
        else (f"model.layers.{layer}.{_LLAMA_LAYER[within]}")
    )


def _same(value: Tensor) -> Tensor:
    return value


def _transposed(value: Tensor) -> Tensor:
    return value.T if value.ndim == 2 else value


def _in_pairs(d_head: int) -> Callable[[Tensor], Tensor]:
    return lambda value: pairs(value, d_head)


def _third(number: int, width: int) -> Callable[[Tensor], Tensor]:
    """What takes queries (0), keys (1) or values (2) out of GPT-2's joint matrix or offset."""

    def take(value: Tensor) -> Tensor:
        return (value.T if value.ndim == 2 else value)[number * width : (number + 1) * width]

    return take
