r"""A model and token ids come in; what went through its layers, and where each head looked, comes out.

    x_0            token embeddings (+ positions)          one row for each token
    x_l            after block l
    weights[l, h]  softmax(q k^T / sqrt(d_head) + ...)     row i: how token i shares its look at tokens 0..i

Forward hooks see each block's input and output and each attention's input. The weights are asked from the
reference attention with one-hot values: a weighted mean of unit vectors is the vector of its weights, so
masks, windows, soft-caps and ALiBi's slopes are those of the model without being written here again.

Source: attention maps as in Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, figures 3 to 5.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.engine import evaluating
from scratchlm.kernels.attention_reference import attention, softmax
from scratchlm.tokenizer import Tokenizer


class Streams(NamedTuple):
    """What hooks saw in one forward pass; empty lists for a model without blocks."""

    residual: list[Tensor]
    """x_0, x_1, ...: one more than there are blocks, [batch, time, d_model] each."""
    attention_input: list[tuple[Tensor, Module]]
    """Of each block: what its attention read, and the model's position part."""
    branches: list[tuple[Tensor, Tensor]]
    """Of each block: what attention and what feed-forward added."""


class TextPass(NamedTuple):
    """One text as the model met it."""

    ids: list[int]
    """End-of-text, then the text."""
    probabilities: Float[Tensor, "time vocab"]
    """Row i: what the model gives each token as the one after ids[i]."""
    residual: list[Float[Tensor, "time d_model"]]
    """The residual stream before the first block and after each one."""
    attention: Float[Tensor, "layers heads time time"]
    """No layers for a model without attention."""


@contextlib.contextmanager
def watching(model: Module) -> Iterator[Streams]:
    """Watch the model's blocks in this context; the lists are filled by a forward pass."""
    streams = Streams([], [], [])
    hooks = []

    def before(_: Module, arguments: tuple[Any, ...]) -> None:
        if not streams.residual:
            streams.residual.append(arguments[0])

    def after(_: Module, __: tuple[Any, ...], output: Tensor) -> None:
        streams.residual.append(output)

    def attended(_: Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        streams.attention_input.append((arguments[0], arguments[1]))
        streams.branches.append((output, output))

    def fed(_: Module, __: tuple[Any, ...], output: Tensor) -> None:
        streams.branches[-1] = (streams.branches[-1][0], output)

    for block in getattr(model, "layers", ()):
        hooks.append(block.register_forward_pre_hook(before))
        hooks.append(block.attn.register_forward_hook(attended))
        hooks.append(block.ffn.register_forward_hook(fed))
        hooks.append(block.register_forward_hook(after))
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pass_text(model: Module, tokenizer: Tokenizer, text: str, *, max_tokens: int | None = None) -> TextPass:
    """Run a text through the model and keep what can be shown.

    Args:
        model: Ids -> logits.
        tokenizer: The one it was trained with; special tokens in the text are plain text.
        text: Anything that is not empty.
        max_tokens: No more ids than this; the model's context length where None.

    Raises:
        ValueError: The text has no tokens.
    """
    ids = [tokenizer.end_of_text_id, *tokenizer.encode_ordinary(text)]
    if len(ids) == 1:
        raise ValueError("visualize: the text is empty; give a text of at least one character.")
    ids = ids[: min(max_tokens or len(ids), model.config.context_length)]
    device = next(model.parameters()).device
    with evaluating(model), watching(model) as streams:
        logits = model(torch.tensor([ids], device=device))[0].float()
    return TextPass(
        ids,
        softmax(logits).cpu(),
        [x[0].float() for x in streams.residual],
        _attention_weights(model, streams, len(ids)).cpu(),
    )


def _attention_weights(
    model: Module, streams: Streams, num_tokens: int
) -> Float[Tensor, "layers heads time time"]:
    found = []
    for block, (x, position) in zip(getattr(model, "layers", ()), streams.attention_input, strict=True):
        part = block.attn
        q_BHTK, k_BGTK, _ = part.project(x, position, 0)
        one_hot = torch.eye(num_tokens, dtype=q_BHTK.dtype, device=x.device)
        weights_BHTT = attention(
            q_BHTK,
            k_BGTK,
            one_hot.expand(1, part.num_kv_heads, -1, -1),
            window=part.window,
            softcap=part.softcap,
            slopes_H=position.slopes,
        )
        found.append(weights_BHTT[0].float())
    return torch.stack(found) if found else torch.zeros(0, 0, num_tokens, num_tokens)


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""A token as text: bytes that are no characters of their own as escapes, such as \xc3."""
    try:
        return tokenizer.token_bytes(token_id).decode("utf-8", "backslashreplace")
    except ValueError:  # vocabularies may have gaps, and an untrained model may point there
        return f"[id {token_id}]"


def likeliest(
    probabilities: Float[Tensor, " vocab"], tokenizer: Tokenizer, number: int = 5
) -> list[tuple[str, float]]:
    """The likeliest tokens with their probabilities, the first the likeliest."""
    top = probabilities.topk(min(number, len(probabilities)))
    return [(token_text(tokenizer, int(id)), float(p)) for p, id in zip(top.values, top.indices, strict=True)]


def looks_back(weights_TT: Float[Tensor, "time time"]) -> tuple[float, float]:
    """How many tokens back a head looks on average, and its share for the first token.

    The first token, which has nowhere else to look, is left out.
    Example: rows [1, 0], [0.5, 0.5] -> (0.5, 0.5).
    """
    places = torch.arange(len(weights_TT), dtype=weights_TT.dtype)
    rows = weights_TT[1:] if len(weights_TT) > 1 else weights_TT
    own = places[1:] if len(weights_TT) > 1 else places
    back = own - rows @ places
    return float(back.mean()), float(rows[:, 0].mean())


def loss_of(found: TextPass) -> Float[Tensor, " targets"]:
    """The loss of each token of the text but the first id, in nats."""
    targets: Int[Tensor, " targets"] = torch.tensor(found.ids[1:])
    return -found.probabilities[:-1].gather(1, targets[:, None])[:, 0].clamp(min=1e-30).log()
