"""CS336, assignment 1 (basics): every function of the course's tests/adapters.py, over this library.

Names, arguments and shapes are the course's (2026 edition). A student copies one line per function into the
course's adapters (docs/how-to/cs336.md). The functions are thin on purpose; what they are about stands in

    run_linear, run_embedding               model/linear.py
    run_silu, run_swiglu                    model/feedforward.py
    run_rmsnorm                             model/norm.py
    run_rope                                model/position.py
    run_softmax, run_scaled_dot_product_... kernels/attention_reference.py
    run_multihead_self_attention, ...       model/attention.py
    run_transformer_block, ..._lm           model/block.py, model/transformer.py
    run_cross_entropy                       loss.py
    run_get_batch                           data/loader.py
    get_adamw_cls                           optim/adamw.py
    run_gradient_clipping                   optim/clip.py
    run_get_lr_cosine_schedule              optim/schedule.py
    run_save_checkpoint, run_load_...       cs336/serialization.py
    get_tokenizer, run_train_bpe            tokenizer/bpe.py, tokenizer/bpe_train.py
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy.typing as npt
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scratchlm.cs336.serialization import load_training_state, save_training_state
from scratchlm.data.loader import get_batch
from scratchlm.kernels.attention_reference import masked_attention, softmax
from scratchlm.loss import cross_entropy
from scratchlm.model.attention import CausalSelfAttention
from scratchlm.model.block import Block
from scratchlm.model.config import ModelConfig
from scratchlm.model.feedforward import SwiGLU, silu
from scratchlm.model.linear import Embedding, linear
from scratchlm.model.norm import RMSNorm
from scratchlm.model.position import NoPosition, Position, RoPE, rope_tables, rotate_pairs
from scratchlm.model.transformer import TransformerLM
from scratchlm.optim.adamw import AdamW
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.schedule import cosine_with_warmup
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_train import train_bpe_on_file


def run_linear(
    d_in: int,
    d_out: int,
    weights: Float[Tensor, " d_out d_in"],
    in_features: Float[Tensor, " ... d_in"],
) -> Float[Tensor, " ... d_out"]:
    """Return in_features W^T."""
    return linear(in_features, weights)


def run_embedding(
    vocab_size: int,
    d_model: int,
    weights: Float[Tensor, " vocab_size d_model"],
    token_ids: Int[Tensor, " ..."],
) -> Float[Tensor, " ... d_model"]:
    """Return the row of `weights` for each id."""
    return _loaded(Embedding(vocab_size, d_model), {"weight": weights})(token_ids)


def run_swiglu(
    d_model: int,
    d_ff: int,
    w1_weight: Float[Tensor, " d_ff d_model"],
    w2_weight: Float[Tensor, " d_model d_ff"],
    w3_weight: Float[Tensor, " d_ff d_model"],
    in_features: Float[Tensor, " ... d_model"],
) -> Float[Tensor, " ... d_model"]:
    """Return W2 (silu(W1 x) * W3 x)."""
    weights = {"w1.weight": w1_weight, "w2.weight": w2_weight, "w3.weight": w3_weight}
    return _loaded(SwiGLU(d_model, d_ff, bias=False), weights)(in_features)


def run_scaled_dot_product_attention(
    Q: Float[Tensor, " ... queries d_k"],
    K: Float[Tensor, " ... keys d_k"],
    V: Float[Tensor, " ... keys d_v"],
    mask: Bool[Tensor, " ... queries keys"] | None = None,
) -> Float[Tensor, " ... queries d_v"]:
    """Return softmax(Q K^T / sqrt(d_k)) V; where `mask` is False a query sees nothing of that key."""
    if mask is not None:
        mask = _as_heads(mask.expand(*Q.shape[:-1], K.shape[-2]))
    out = masked_attention(_as_heads(Q), _as_heads(K), _as_heads(V), mask_TS=mask)
    return out.reshape(*Q.shape[:-1], V.shape[-1])


def run_multihead_self_attention(
    d_model: int,
    num_heads: int,
    q_proj_weight: Float[Tensor, " d_model d_model"],
    k_proj_weight: Float[Tensor, " d_model d_model"],
    v_proj_weight: Float[Tensor, " d_model d_model"],
    o_proj_weight: Float[Tensor, " d_model d_model"],
    in_features: Float[Tensor, " ... sequence_length d_model"],
) -> Float[Tensor, " ... sequence_length d_model"]:
    """Return causal multi-head attention without positions."""
    weights = _attention_weights(q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    position = NoPosition(d_model, num_heads, d_model // num_heads, in_features.shape[-2])
    return _self_attention(d_model, num_heads, weights, in_features, position)


def run_multihead_self_attention_with_rope(
    d_model: int,
    num_heads: int,
    max_seq_len: int,
    theta: float,
    q_proj_weight: Float[Tensor, " d_model d_model"],
    k_proj_weight: Float[Tensor, " d_model d_model"],
    v_proj_weight: Float[Tensor, " d_model d_model"],
    o_proj_weight: Float[Tensor, " d_model d_model"],
    in_features: Float[Tensor, " ... sequence_length d_model"],
    token_positions: Int[Tensor, " ... sequence_length"] | None = None,
) -> Float[Tensor, " ... sequence_length d_model"]:
    """Return causal multi-head attention with RoPE; positions count from 0 when they are not given."""
    weights = _attention_weights(q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    if token_positions is None:
        token_positions = torch.arange(in_features.shape[-2], device=in_features.device)
    position = _GivenPositions(
        d_model // num_heads, max_seq_len, theta, token_positions.expand(in_features.shape[:-1])
    )
    return _self_attention(d_model, num_heads, weights, in_features, position)


def run_rope(
    d_k: int,
    theta: float,
    max_seq_len: int,
    in_query_or_key: Float[Tensor, " ... sequence_length d_k"],
    token_positions: Int[Tensor, " ... sequence_length"],
) -> Float[Tensor, " ... sequence_length d_k"]:
    """Return the input with adjacent pairs turned by position * theta^(-2k / d_k)."""
    cos, sin = (table.to(in_query_or_key.device) for table in rope_tables(d_k, theta, max_seq_len))
    return rotate_pairs(in_query_or_key, cos[token_positions], sin[token_positions])


def run_transformer_block(
    d_model: int,
    num_heads: int,
    d_ff: int,
    max_seq_len: int,
    theta: float,
    weights: dict[str, Tensor],
    in_features: Float[Tensor, " batch sequence_length d_model"],
) -> Float[Tensor, " batch sequence_length d_model"]:
    """Return one pre-norm block with RMSNorm, RoPE and SwiGLU; `weights` by the block's state-dict keys."""
    config = ModelConfig(
        vocab_size=1, context_length=max_seq_len, d_model=d_model, num_heads=num_heads, d_ff=d_ff
    )
    position = RoPE(d_model, num_heads, config.d_head, max_seq_len, theta=theta).to(in_features.device)
    return _loaded(Block(config), weights)(in_features, position)


def run_transformer_lm(
    vocab_size: int,
    context_length: int,
    d_model: int,
    num_layers: int,
    num_heads: int,
    d_ff: int,
    rope_theta: float,
    weights: dict[str, Tensor],
    in_indices: Int[Tensor, " batch_size sequence_length"],
) -> Float[Tensor, " batch_size sequence_length vocab_size"]:
    """Return the next-token logits of the course's transformer; `weights` by its state-dict keys."""
    config = ModelConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        position={"name": "rope", "theta": rope_theta},
    )
    return _loaded(TransformerLM(config), weights)(in_indices)


def run_rmsnorm(
    d_model: int,
    eps: float,
    weights: Float[Tensor, " d_model"],
    in_features: Float[Tensor, " ... d_model"],
) -> Float[Tensor, " ... d_model"]:
    """Return x / sqrt(mean(x^2) + eps) * weights."""
    return _loaded(RMSNorm(d_model, eps=eps), {"weight": weights})(in_features)


def run_silu(in_features: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Return x * sigmoid(x)."""
    return silu(in_features)


def run_get_batch(
    dataset: npt.NDArray, batch_size: int, context_length: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random windows of `dataset` on `device`, and the same windows one place on."""
    return get_batch(dataset, batch_size, context_length, device)


def run_softmax(in_features: Float[Tensor, " ..."], dim: int) -> Float[Tensor, " ..."]:
    """Return exp(x) divided by its sum along `dim`."""
    return softmax(in_features, dim)


def run_cross_entropy(
    inputs: Float[Tensor, " batch_size vocab_size"], targets: Int[Tensor, " batch_size"]
) -> Float[Tensor, ""]:
    """Return the mean of -log softmax(inputs)[target]."""
    return cross_entropy(inputs, targets)


def run_gradient_clipping(parameters: Iterable[torch.nn.Parameter], max_l2_norm: float) -> None:
    """Scale the gradients in place so that their common length is at most `max_l2_norm`."""
    clip_gradients_(parameters, max_l2_norm)


def get_adamw_cls() -> Any:
    """Return our AdamW."""
    return AdamW


def run_get_lr_cosine_schedule(
    it: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_iters: int,
    cosine_cycle_iters: int,
) -> float:
    """Return the learning rate of iteration `it`: linear warm-up, half a cosine wave, then the minimum."""
    return cosine_with_warmup(it, max_learning_rate, min_learning_rate, warmup_iters, cosine_cycle_iters)


def run_save_checkpoint(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    out: str | os.PathLike | BinaryIO | IO[bytes],
) -> None:
    """Write model, optimizer and iteration to a path or a binary file object."""
    save_training_state(model, optimizer, iteration, out)


def run_load_checkpoint(
    src: str | os.PathLike | BinaryIO | IO[bytes],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore model and optimizer from a path or a binary file object; return the iteration."""
    return load_training_state(src, model, optimizer)


def get_tokenizer(
    vocab: dict[int, bytes],
    merges: list[tuple[bytes, bytes]],
    special_tokens: list[str] | None = None,
) -> Any:
    """Return a tokenizer with the course's encode, decode and encode_iterable."""
    return CourseTokenizer(BPETokenizer(vocab, merges, special_tokens or []))


def run_train_bpe(
    input_path: str | os.PathLike, vocab_size: int, special_tokens: list[str], **kwargs: Any
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Train byte-pair encoding on a file; return the vocabulary and the merges in the order of their making.

    Keyword arguments go to `train_bpe_on_file` (pattern, progress).
    """
    tokenizer = train_bpe_on_file(
        Path(input_path), vocab_size=vocab_size, special_tokens=special_tokens, **kwargs
    )
    return tokenizer.vocab, tokenizer.merges


class CourseTokenizer:
    """Our tokenizer with the course's rule: special tokens in any text become their ids."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return self.tokenizer.encode(text, allowed_special="all")

    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]:
        """Yield the ids of the chunks' concatenation without holding it in memory."""
        return self.tokenizer.encode_iterable(iterable, allowed_special="all")

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.tokenizer.decode(ids)


class _GivenPositions(Position):
    """RoPE for tokens that stand where they are told, not at 0, 1, 2, ..."""

    def __init__(
        self, d_head: int, max_seq_len: int, theta: float, positions: Int[Tensor, "*batch time"]
    ) -> None:
        super().__init__(d_head, 1, d_head, max_seq_len)
        self.positions = positions.reshape(-1, 1, positions.shape[-1])  # the 1 is for the heads
        self.tables = [table.to(positions.device) for table in rope_tables(d_head, theta, max_seq_len)]

    def rotate(
        self, x: Float[Tensor, "batch heads time d_head"], start: int
    ) -> Float[Tensor, "batch heads time d_head"]:
        cos, sin = (table[self.positions] for table in self.tables)
        return rotate_pairs(x, cos, sin)


def _self_attention(
    d_model: int, num_heads: int, weights: dict[str, Tensor], x: Tensor, position: Position
) -> Tensor:
    config = ModelConfig(
        vocab_size=1,
        context_length=x.shape[-2],
        d_model=d_model,
        num_heads=num_heads,
        position={"name": "none"},
    )
    attention = _loaded(CausalSelfAttention(config), weights)
    return attention(x.reshape(-1, *x.shape[-2:]), position).reshape(x.shape)


def _attention_weights(q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> dict[str, Tensor]:
    return {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "output_proj.weight": o}


def _as_heads(x: Tensor) -> Tensor:
    return rearrange(x, "... T K -> 1 (...) T K")


def _loaded(module: torch.nn.Module, weights: dict[str, Tensor]) -> torch.nn.Module:
    """`module` with exactly these weights, on their device and in their number format."""
    module.to(next(iter(weights.values())))
    module.load_state_dict(weights)
    return module
