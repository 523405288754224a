r"""A configuration in; parameters, floating-point operations and memory out, by formula.

    attention         = D H K + 2 D G K + H K D      weights per layer: queries, keys and values, output
    feedforward       = m D F                        weights per layer; biases and norms come on top
    embeddings        = V D                          the head as many again, unless tied
    learned positions = T D

    forward FLOPs per token  = 2 (L (attention + feedforward) + V D) + 4 L H K S
    training FLOPs per token = 3 * forward           the backward pass has two products for each one forward

D d_model, L num_layers, K d_head, H num_heads, G num_kv_heads, F d_ff, V vocab_size, T context_length; m the
matrices of the feed-forward: 3 for swiglu, else 2; S the mean number of keys that a query sees: (T + 1) / 2
where no window is set, so the causal half is counted as half.

A product of (a, b) and (b, c) counts 2 a b c; element-wise work is not counted (below 1 % of a large model,
more of a tiny one), nor is anything that is computed twice.

Source: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1; factor 3 and counting without
recomputation: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B (which counts S = T).
"""

from scratchlm.model.config import ModelConfig
from scratchlm.model.feedforward import FEEDFORWARDS


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each component; their sum is what the built model has.

    Example: gpt2-small -> token_embeddings 38,597,376 of 124,439,808 in all.
    """
    if config.name == "bigram":
        return {"token_embeddings": config.vocab_size**2}
    layers, d_model, d_ff = config.num_layers, config.d_model, config.inner_width
    norm = _norm_parameters(config)
    num_norms = 2 * layers + (config.placement == "pre")
    bias = int(config.bias)
    num_matrices = FEEDFORWARDS.get(config.feedforward.name).num_matrices
    return {
        "token_embeddings": config.vocab_size * d_model,
        "position_embeddings": config.context_length * d_model * (config.position.name == "learned"),
        "attention": layers * (attention_matrices(config) + bias * _attention_biases(config)),
        "qk_norm": layers * 2 * config.d_head * config.qk_norm,
        "feedforward": layers
        * (num_matrices * d_model * d_ff + bias * ((num_matrices - 1) * d_ff + d_model)),
        "norms": num_norms * norm,
        "head": 0 if config.tied else config.vocab_size * d_model,
    }


def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters."""
    return sum(count_parameters(config).values())


def forward_flops(config: ModelConfig, num_tokens: int) -> dict[str, int]:
    """Return the floating-point operations of one forward pass over one row of `num_tokens`, by component."""
    if config.name == "bigram":
        return {"attention_projections": 0, "attention_scores": 0, "feedforward": 0, "head": 0}
    layers, d_model = config.num_layers, config.d_model
    num_matrices = FEEDFORWARDS.get(config.feedforward.name).num_matrices
    return {
        "attention_projections": 2 * num_tokens * layers * attention_matrices(config),
        "attention_scores": 4 * layers * config.num_heads * config.d_head * num_pairs(config, num_tokens),
        "feedforward": 2 * num_tokens * layers * num_matrices * d_model * config.inner_width,
        "head": 2 * num_tokens * d_model * config.vocab_size,
    }


def flops_per_token(config: ModelConfig, num_tokens: int) -> float:
    """Return the floating-point operations of training per token, in rows of `num_tokens`: 3 x forward."""
    return 3 * sum(forward_flops(config, num_tokens).values()) / num_tokens


def num_pairs(config: ModelConfig, num_tokens: int) -> int:
    """Return how many (query, key) pairs attention needs in one row: the past and itself, within the window.

    Example: 4 tokens -> 1 + 2 + 3 + 4 = 10; with window=2 -> 1 + 2 + 2 + 2 = 7.
    """
    seen = min(config.window or num_tokens, num_tokens)
    return seen * (seen + 1) // 2 + (num_tokens - seen) * seen


def training_memory(
    config: ModelConfig,
    num_rows: int,
    num_tokens: int,
    *,
    optimizer_states: int = 2,
    activation_bytes: int = 4,
    logit_tokens: int | None = None,
) -> int:
    """Return the bytes of tensors that training needs at its peak, by formula; the framework's own not.

    Weights, gradients and `optimizer_states` copies (2 for AdamW) in float32, and `activation_memory`.
    train/memory.py counts the same exactly, in a second instead of at once.

    Args:
        config: The model.
        num_rows: Rows computed at once.
        num_tokens: Tokens in a row.
        optimizer_states: Numbers that the optimizer keeps per parameter.
        activation_bytes: Bytes per activation, 2 under bfloat16 autocast.
        logit_tokens: As in `activation_memory`.
    """
    return 4 * (2 + optimizer_states) * num_parameters(config) + activation_memory(
        config, num_rows, num_tokens, activation_bytes=activation_bytes, logit_tokens=logit_tokens
    )


def activation_memory(
    config: ModelConfig,
    num_rows: int,
    num_tokens: int,
    *,
    activation_bytes: int = 4,
    logit_tokens: int | None = None,
) -> int:
    """Return the bytes that the backward pass needs of the forward pass, at its beginning.

        activation_bytes * L (R T (8 D + 3 F) + 2 R H T^2) + N V (activation_bytes + 16)

    About 8 vectors of d_model and 3 of d_ff per token and layer and the scores twice; the logits of N tokens
    as computed, and four times in float32 while the loss works on them.

    Args:
        config: The model.
        num_rows: Rows computed at once (R).
        num_tokens: Tokens in a row (T).
        activation_bytes: Bytes per activation, 2 under bfloat16 autocast.
        logit_tokens: Tokens whose logits are held at once (N); all of them by default.
    """
    held = num_rows * num_tokens if logit_tokens is None else logit_tokens
    logits = held * config.vocab_size * (activation_bytes + 16)
    if config.name == "bigram":
        return logits
    vectors = num_rows * num_tokens * (8 * config.d_model + 3 * config.inner_width)
    scores = 2 * num_rows * config.num_heads * num_tokens**2
    return logits + config.num_layers * activation_bytes * (vectors + scores)


def cache_memory(config: ModelConfig, num_rows: int, num_tokens: int, *, activation_bytes: int = 4) -> int:
    """Return the bytes of the keys and values of `num_rows` texts of `num_tokens` tokens."""
    if config.name == "bigram":
        return 0
    return 2 * config.num_layers * num_rows * config.kv_heads * num_tokens * config.d_head * activation_bytes


def attention_matrices(config: ModelConfig) -> int:
    """Return the number of weights in one layer's four projections."""
    width, kv_width = config.num_heads * config.d_head, config.kv_heads * config.d_head
    return config.d_model * (2 * width + 2 * kv_width)


def _attention_biases(config: ModelConfig) -> int:
    return config.num_heads * config.d_head + 2 * config.kv_heads * config.d_head + config.d_model


def _norm_parameters(config: ModelConfig) -> int:
    if config.placement == "none" or config.norm.name == "none":
        return 0
    settings = config.norm.settings
    if config.norm.name == "rmsnorm":
        return config.d_model * bool(settings.get("gain", True))
    return config.d_model * (1 + bool(settings.get("bias", True)))
