r"""A model comes in; its weights go out, all multipliers worked in, and which known class computes the same.

    llama   rmsnorm, rope, swiglu                    the class LlamaForCausalLM
    qwen3   the same with qk_norm                    Qwen3ForCausalLM
    gpt2    layernorm, learned positions, gelu       GPT2LMHeadModel

Other programs have no setting for maximal update parametrisation (model/width.py), gains that are left out,
or offsets that only some parts have. All of these are numbers, so they become weights: logits that are
divided, a head that is smaller; scores that are multiplied, queries that are larger; no gain, a gain of 1; no
offset, an offset of 0. What is another formula (squared ReLU, capped scores, ALiBi, ...) is refused, by the
name of the setting and before anything is computed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scratchlm.model.config import ModelConfig
from scratchlm.model.transformer import TransformerLM
from scratchlm.tokenizer.bpe import BPETokenizer


def kind_of(config: ModelConfig) -> str:
    """Return the class that computes what the model computes: "llama", "qwen3" or "gpt2".

    Raises:
        ValueError: None does; the message names every setting that is in the way.
    """
    problems = list(_problems(config))
    if problems:
        raise ValueError(f"this model cannot be exported: {'; '.join(problems)}.")
    if config.position.name == "learned":
        return "gpt2"
    return "qwen3" if config.qk_norm else "llama"


def check_tokenizer(tokenizer: Any) -> BPETokenizer:
    """Return the tokenizer if other programs can have it.

    Raises:
        ValueError: It is no byte-pair encoding.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise ValueError(
            f"this model cannot be exported: its tokenizer is a {type(tokenizer).__name__}, and only "
            "byte-pair encodings are known to others; train with tokenizer=bpe."
        )
    return tokenizer


def is_tied(model: TransformerLM) -> bool:
    """Return whether the head is the embedding table, also for a program that divides no logits."""
    return model.config.tied and model.logit_divisor == 1


@torch.no_grad()
def whole_weights(model: TransformerLM) -> dict[str, Float[Tensor, "..."]]:
    """Return the weights by our names, in float32 on the CPU, as a program without multipliers needs them.

    lm_head.weight is there only if it differs from the embedding table. Norms have gains; layernorms, and all
    projections of a gpt2, have offsets.
    """
    config, kind = model.config, kind_of(model.config)
    tensors = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    if model.logit_divisor != 1:
        tensors["lm_head.weight"] = model.head_weight.detach().float().cpu()
    for layer, block in enumerate(model.layers):
        factor, before = block.attn.score_factor, f"layers.{layer}.attn."
        names = ["q_norm.weight"] if config.qk_norm else ["q_proj.weight", "q_proj.bias"]
        for name in names:
            if factor != 1 and before + name in tensors:
                tensors[before + name] = tensors[before + name] * factor
    norms = [f"layers.{layer}.{name}" for layer in range(config.num_layers) for name in ("ln1", "ln2")]
    for name in [*norms, "ln_final"]:
        tensors.setdefault(f"{name}.weight", torch.ones(config.d_model))
        if kind == "gpt2":
            tensors.setdefault(f"{name}.bias", torch.zeros(config.d_model))
    if kind == "gpt2":
        for name in [name for name in tensors if name.endswith(("_proj.weight", "w1.weight", "w2.weight"))]:
            tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensors[name])))
    return tensors


def _problems(config: ModelConfig) -> Iterator[str]:
    """Every setting that no known class has, in words."""
    if config.name != "transformer":
        yield f"model={config.name} is no transformer"
        return
    if config.placement != "pre":
        yield f"model.placement={config.placement} (pre is known to others)"
    for name in ("window", "softcap", "logit_softcap"):
        if getattr(config, name) is not None:
            yield f"model.{name}={getattr(config, name)}"
    wanted = {"rope": ("rmsnorm", "swiglu"), "learned": ("layernorm", "gelu")}.get(config.position.name)
    if wanted is None:
        yield f"model.position={config.position.name} (rope and learned are known to others)"
        wanted = ("rmsnorm", "swiglu")
    for setting, other in zip(("norm", "feedforward"), wanted, strict=True):
        if getattr(config, setting).name != other:
            yield (
                f"model.{setting}={getattr(config, setting).name} "
                f"(with position={config.position.name}, {other} is known to others)"
            )
    if config.position.name == "learned":
        if config.qk_norm:
            yield "model.qk_norm=true together with learned positions"
        if config.kv_heads != config.num_heads:
            yield f"model.num_kv_heads={config.kv_heads} together with learned positions"
    elif config.qk_norm and config.bias:
        yield "model.bias=true together with qk_norm"
