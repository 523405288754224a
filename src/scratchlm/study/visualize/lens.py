r"""The residual stream comes in; what each layer would say if it were the last comes out: the logit lens.

    p_l = softmax(head(ln_final(x_l)))         x_0 the embeddings, x_L what the model really uses

Every block only adds to the residual stream, so the head can read it after any of them. Early layers
usually say something near the token itself, late ones the next token; where the guess settles shows what
the layers between are for. A post-norm model's stream is normalised in each block and is read as it is.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; Belrose et al. 2023,
https://arxiv.org/abs/2303.08112, section 2, which also shows where it misleads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.kernels.attention_reference import softmax
from scratchlm.study.visualize.passes import TextPass, likeliest
from scratchlm.tokenizer import Tokenizer


class Guess(NamedTuple):
    """What one layer would say after one token."""

    text: str
    probability: float
    right: bool
    """Whether it is the token that came."""
    others: list[tuple[str, float]]
    """The five likeliest, this one among them."""


class Depth(NamedTuple):
    """One layer of the lens."""

    name: str
    guesses: list[Guess]
    loss: float
    """Mean loss of the text, had the model ended here, in nats per token."""


@torch.no_grad()
def logit_lens(model: Module, tokenizer: Tokenizer, found: TextPass, *, max_tokens: int) -> list[Depth]:
    """Read the residual stream after each layer; empty for a model without layers.

    Args:
        model: With `ln_final` and `head`, as `TransformerLM`.
        tokenizer: To write the guesses.
        found: The text's pass.
        max_tokens: Tokens for which guesses are kept; the loss is over the whole text.
    """
    depths = []
    targets = torch.tensor(found.ids[1:])
    for number, x in enumerate(found.residual):
        probabilities = softmax(model.head(model.ln_final(x)).float()).cpu()
        losses = -probabilities[:-1].gather(1, targets[:, None]).clamp(min=1e-30).log()
        name = "embeddings" if number == 0 else f"block {number}"
        depths.append(
            Depth(name, _guesses(probabilities, tokenizer, found, max_tokens), float(losses.mean()))
        )
    return depths


def _guesses(
    probabilities: Float[Tensor, "time vocab"], tokenizer: Tokenizer, found: TextPass, max_tokens: int
) -> list[Guess]:
    guesses = []
    for place, came in enumerate(found.ids[1 : max_tokens + 1]):
        others = likeliest(probabilities[place], tokenizer)
        best = int(probabilities[place].argmax())
        guesses.append(Guess(others[0][0], others[0][1], best == came, others))
    return guesses
