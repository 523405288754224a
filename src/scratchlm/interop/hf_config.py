r"""Hugging Face's config.json <-> the settings of a model.

    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, ...}

Everything that the program could fill in by itself is written out, because its defaults are others (an eps
of 1e-6, tokens 1 and 2 for the beginning and the end). What is read must mean what we compute: every field
that changes the arithmetic is looked at, and a value that we do not have is refused by its name, never
ignored. `rope_theta` stands alone for transformers 4 and inside `rope_parameters` for 5.

Source: https://github.com/huggingface/transformers, configuration_llama.py, configuration_qwen3.py,
configuration_gpt2.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchlm.model.config import ModelConfig, ModelSettings
from scratchlm.tokenizer.formats.reading import shown

CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}

MAX_SIZE = 1 << 24
"""No size in a configuration is larger: beyond, a hostile file would ask for memory without end."""


def config_table(
    kind: str, config: ModelConfig, *, tied: bool, dtype: str, end: int | None
) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        kind: As `weights.kind_of` says.
        config: The model's.
        tied: Whether the head is the embedding table.
        dtype: Name of the numbers' format, such as "float32".
        end: The token between documents, if there is one.
    """
    common = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    eps = config.norm.settings.get("eps", 1e-5)
    if kind == "gpt2":
        tanh = config.feedforward.settings.get("approximate", "none") == "tanh"
        return common | {
            "n_embd": config.d_model,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.inner_width,
            "n_positions": config.context_length,
            "activation_function": "gelu_new" if tanh else "gelu",
            "layer_norm_epsilon": eps,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        }
    theta = config.position.settings.get("theta", 10000.0)
    table = common | {
        "hidden_size": config.d_model,
        "intermediate_size": config.inner_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": eps,
        "attention_bias": config.bias,
        "attention_dropout": 0.0,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
    more = {"mlp_bias": config.bias} if kind == "llama" else {"use_sliding_window": False}
    return table | more


def settings_from(table: Mapping[str, Any], path: Path) -> tuple[str, ModelSettings, int]:
    """Return kind, settings and number of embedding rows of the model that a config.json describes.

    Args:
        table: The file's content.
        path: The file, for the messages.

    Raises:
        ValueError: Not one of the classes, a size is missing, or a setting has a value that we do not have.
    """
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(
            f"{path}: model_type={shown(kind)}: not known; {', '.join(CLASSES)} can be imported."
        )
    fields = Fields(table, path)
    for name in ("quantization_config", "auto_map"):
        fields.must_be(name, None, None)
    rows = fields.size("vocab_size", 50257 if kind == "gpt2" else None)
    settings = _gpt2(fields) if kind == "gpt2" else _llama(fields, kind)
    tied = fields.flag("tie_word_embeddings", kind == "gpt2")
    return kind, ModelSettings(**settings, tied=tied, dropout=0.0), rows


class Fields:
    """The fields of a config.json, each checked as it is read."""

    def __init__(self, table: Mapping[str, Any], path: Path) -> None:
        self.table, self.path = table, path

    def size(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0; a default takes the place of a missing one or null."""
        value = self.table.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise ValueError(
                f"{self.path}: {name}={shown(value)}: expected a whole number, 1 to {MAX_SIZE:,}."
            )
        return value

    def number(self, name: str, default: float) -> float:
        """Return a number above 0."""
        value = self.table.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{self.path}: {name}={shown(value)}: expected a number above 0.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.table.get(name, default)
        if type(value) is not bool:
            raise ValueError(f"{self.path}: {name}={shown(value)}: expected true or false.")
        return value

    def must_be(self, name: str, default: Any, *allowed: Any) -> Any:
        """Return a value that is one of those we compute, or refuse it by name."""
        value = self.table.get(name, default)
        if value not in allowed:
            can = " or ".join(str(one) for one in allowed)
            raise ValueError(f"{self.path}: {name}={shown(value)}: cannot be imported; {can} can.")
        return value


def _llama(fields: Fields, kind: str) -> dict[str, Any]:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if width % heads:
        raise ValueError(
            f"{fields.path}: hidden_size={width} is not divisible by num_attention_heads={heads}."
        )
    if kind == "qwen3" or fields.table.get("head_dim") is not None:
        fields.must_be("head_dim", 128, width // heads)
    fields.must_be("hidden_act", "silu", "silu")
    fields.must_be("partial_rotary_factor", 1.0, 1.0)
    if kind == "qwen3":
        fields.must_be("use_sliding_window", False, False)
        layers = fields.table.get("layer_types")
        if layers is not None and (
            not isinstance(layers, list) or set(map(str, layers)) - {"full_attention"}
        ):
            raise ValueError(f"{fields.path}: layer_types={shown(layers)}: only full_attention is known.")
        fields.must_be("attention_bias", False, False)
    bias = kind == "llama" and fields.flag("attention_bias", False)
    if kind == "llama":
        fields.must_be("mlp_bias", False, bias)
    return {
        "d_model": width,
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "num_layers": fields.size("num_hidden_layers"),
        "d_ff": fields.size("intermediate_size"),
        "context_length": fields.size("max_position_embeddings", 2048),
        "bias": bias,
        "qk_norm": kind == "qwen3",
        "norm": {"name": "rmsnorm", "eps": fields.number("rms_norm_eps", 1e-6)},
        "position": {"name": "rope", "theta": _theta(fields)},
        "feedforward": {"name": "swiglu"},
    }


def _theta(fields: Fields) -> float:
    """The base of RoPE's angles; every other rule for them is refused."""
    found = fields.number("rope_theta", 10000.0)
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.table.get(name)
        if rope is None:
            continue
        inner = Fields(rope if isinstance(rope, dict) else {"rope_type": rope}, fields.path)
        inner.must_be("rope_type", inner.table.get("type", "default"), "default")
        unknown = set(inner.table) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if unknown:
            raise ValueError(f"{fields.path}: {name}: {shown(sorted(unknown)[0])} is not known.")
        inner.must_be("partial_rotary_factor", 1.0, 1.0)
        found = inner.number("rope_theta", found)
    return found


def _gpt2(fields: Fields) -> dict[str, Any]:
    fields.must_be("scale_attn_weights", True, True)
    fields.must_be("scale_attn_by_inverse_layer_idx", False, False)
    fields.must_be("add_cross_attention", False, False)
    act = fields.must_be("activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh", "gelu")
    width = fields.size("n_embd", 768)
    return {
        "d_model": width,
        "num_heads": fields.size("n_head", 12),
        "num_layers": fields.size("n_layer", 12),
        "d_ff": fields.size("n_inner", 4 * width),
        "context_length": fields.size("n_positions", 1024),
        "bias": True,
        "norm": {"name": "layernorm", "eps": fields.number("layer_norm_epsilon", 1e-5)},
        "position": {"name": "learned"},
        "feedforward": {"name": "gelu", "approximate": "none" if act == "gelu" else "tanh"},
    }
