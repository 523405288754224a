r"""A run comes in, a GGUF file comes out that llama.cpp opens: sizes, tokenizer, chat template, weights.

    architecture   RoPE turns                  rows of queries and keys
    llama          adjacent pairs, as here     as here
    qwen3          halves, as Hugging Face     in the order of Hugging Face
    gpt2           learned positions           queries, keys and values in one matrix

llama.cpp puts the token between documents before a prompt (add_bos_token), as `generate` does, and takes it
away again where the chat template has it already. Vectors and learned positions stay float32.

What llama.cpp computes otherwise is refused before the work starts: other classes as in weights.py, GELU
without the approximation by tanh, and split patterns that are not built into it.

Source: https://github.com/ggml-org/llama.cpp: src/llama-model.cpp (names of tensors, kinds of RoPE),
conversion/llama.py, gguf-py/gguf/constants.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from scratchlm.interop.gguf import FILE_TYPES, write_gguf
from scratchlm.interop.hf import check_free
from scratchlm.interop.names import halves
from scratchlm.interop.weights import check_tokenizer, kind_of, whole_weights
from scratchlm.model.config import ModelConfig
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.base import check_name
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.chat import END, ChatTemplate
from scratchlm.tokenizer.formats import gguf_fields
from scratchlm.train.folder import LoadedRun

_PARTS = {
    "token_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "ln_final": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.output_proj": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "ffn.w1": "ffn_gate",
    "ffn.w3": "ffn_up",
    "ffn.w2": "ffn_down",
}
_TURNED = ("attn_q", "attn_k", "attn_q_norm", "attn_k_norm")

QUANTIZATION_VERSION = 2
"""Of ggml's blocks, since May 2023 (gguf-py/gguf/constants.py)."""


def export_gguf(run: LoadedRun, path: Path, *, format: str = "f16") -> dict[str, Any]:
    """Write the file; return its fields.

    Args:
        run: The run, read back.
        path: Must not exist.
        format: How matrices are written: "f32", "f16" or "q8_0".

    Raises:
        ValueError: The file exists, or llama.cpp would compute or split otherwise; the message says which
            setting.
    """
    config, tokenizer = run.model.config, check_tokenizer(run.tokenizer)
    kind = kind_of(config)
    if kind == "gpt2" and config.feedforward.settings.get("approximate", "none") != "tanh":
        raise ValueError(
            "this model cannot be exported: model.feedforward.approximate=none (llama.cpp computes GELU by "
            "tanh); export hf can."
        )
    check_name(format, FILE_TYPES, "format of numbers")
    check_free(path)
    fields = _fields(kind, config, run.config.name, format) | _tokenizer_fields(tokenizer)
    tensors = to_gguf(kind, whole_weights(run.model), d_head=config.d_head)
    write_gguf(path, fields, tensors, format=format)
    return fields


def to_gguf(
    kind: str, weights: dict[str, Float[Tensor, "..."]], *, d_head: int
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Rename and rearrange weights for llama.cpp; arguments as in `names.to_huggingface`."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        part, _, last = name.rpartition(".")
        if not part.startswith("layers."):
            found[f"{_PARTS[part]}.{last}"] = value
            continue
        _, layer, within = part.split(".", 2)
        theirs = _LAYER[within]
        if kind == "gpt2" and theirs in ("attn_q", "attn_k", "attn_v"):
            if theirs == "attn_q":
                joined = torch.cat([weights[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
                found[f"blk.{layer}.attn_qkv.{last}"] = joined
            continue
        if kind == "gpt2" and theirs == "ffn_gate":
            theirs = "ffn_up"
        if kind == "qwen3" and theirs in _TURNED:
            value = halves(value, d_head)
        found[f"blk.{layer}.{theirs}.{last}"] = value
    return {name: value.contiguous().numpy() for name, value in found.items()}


def _fields(kind: str, config: ModelConfig, name: str, format: str) -> dict[str, Any]:
    """What the file says of the model."""
    eps = float(config.norm.settings.get("eps", 1e-5))
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "block_count": config.num_layers,
        "feed_forward_length": config.inner_width,
        "attention.head_count": config.num_heads,
    }
    if kind == "gpt2":
        sizes["attention.layer_norm_epsilon"] = eps
    else:
        sizes |= {
            "attention.head_count_kv": config.kv_heads,
            "attention.layer_norm_rms_epsilon": eps,
            "attention.key_length": config.d_head,
            "attention.value_length": config.d_head,
            "rope.dimension_count": config.d_head,
            "rope.freq_base": float(config.position.settings.get("theta", 10000.0)),
        }
    general = {
        "architecture": kind,
        "name": name,
        "file_type": FILE_TYPES[format],
        "quantization_version": QUANTIZATION_VERSION,
        "alignment": 32,
    }
    return {f"general.{key}": value for key, value in general.items()} | {
        f"{kind}.{key}": value for key, value in sizes.items()
    }


def _tokenizer_fields(tokenizer: BPETokenizer) -> dict[str, Any]:
    """What the file says of the tokenizer and of conversations."""
    template, has_end = ChatTemplate(tokenizer), END_OF_TEXT in tokenizer.special_tokens
    roles = dict.fromkeys(("bos", "eos"), END_OF_TEXT) if has_end else {}
    fields = gguf_fields(tokenizer, roles=roles | ({"eot": END} if template.special else {}))
    begins = {"tokenizer.ggml.add_bos_token": has_end, "tokenizer.chat_template": template.jinja}
    return fields | begins
