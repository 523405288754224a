r"""Where a token stands: RoPE, ALiBi, learned and sinusoidal position vectors, or nothing.

Attention alone cannot tell an early token from a late one. A position part may speak at three places, and
does nothing at the ones that it leaves out:

    add(x, start)             to the embeddings, before the first layer        learned, sinusoidal
    rotate(x, start)          queries and keys, in every layer                 rope
    angles(start, num_tokens) by what rotate turns, for kernels that do it     rope
    arrange(weight)           the order of a head's numbers that rotate takes  rope
    slopes                    the attention scores, in every layer             alibi

`start` is the position of the first token: 0 in training, the number of cached tokens while generating.

    rope:        (x[2k], x[2k+1]) turned by the angle  position * theta^(-2k / d_head), adjacent pairs;
                 arranged: x[0], x[2], ... x[1], x[3], ..., so that the pairs are two contiguous halves
    alibi:       score += -slope_h * (query position - key position)
    sinusoidal:  p[2k] = sin(position * 10000^(-2k / d_model)), p[2k+1] = cos(of the same)

Sources: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34; Press et al. 2021,
https://arxiv.org/abs/2108.12409, section 3; Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section
3.5. As in the sources; the sinusoids are multiplied by `scale` so that they do not drown small embeddings.
A score is a sum over a head's numbers, so queries and keys that are arranged alike give the same scores; the
rows of two weights are moved instead of all tokens' numbers.
"""

import math
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.kernels import choose
from scratchlm.kernels.project_heads import Angles
from scratchlm.model.linear import Embedding
from scratchlm.registry import Family

POSITIONS: Family["Position"] = Family("position", package="scratchlm.model")
"""Position encodings: built from (d_model, num_heads, d_head, context_length)."""


class Position(Module):
    """The position part that does nothing; others override the one place where they act."""

    endless: ClassVar[bool] = True
    """Whether a model may read on beyond the context length that it was trained with."""
    slopes: Float[Tensor, " heads"] | None
    """What each head's score loses per token of distance; None for nothing."""

    def __init__(self, d_model: int, num_heads: int, d_head: int, context_length: int) -> None:
        super().__init__()
        self.context_length = context_length
        self.register_buffer("slopes", None, persistent=False)

    def add(self, x: Float[Tensor, "batch time d_model"], start: int) -> Float[Tensor, "batch time d_model"]:
        """Return the embeddings with their positions added; the first one stands at `start`."""
        return x

    def rotate(
        self, x: Float[Tensor, "batch heads time d_head"], start: int
    ) -> Float[Tensor, "batch heads time d_head"]:
        """Return arranged queries or keys with their positions worked in; the first stands at `start`."""
        return x

    def angles(self, start: int, num_tokens: int) -> Angles | None:
        """Return what `rotate` turns the halves of queries and keys by; None where it is no such rotation."""
        return None

    def arrange(self, rows: Float[Tensor, "num_rows ..."]) -> Float[Tensor, "num_rows ..."]:
        """Return the rows of a query or key projection in the order that `rotate` takes, head by head."""
        return rows


@POSITIONS.register("none")
class NoPosition(Position):
    """No position information: the causal mask alone tells early from late (NoPE)."""


@POSITIONS.register("rope")
class RoPE(Position):
    """Turn adjacent pairs of queries and keys by angles that grow with the position."""

    def __init__(
        self, d_model: int, num_heads: int, d_head: int, context_length: int, *, theta: float = 10000.0
    ) -> None:
        super().__init__(d_model, num_heads, d_head, context_length)
        self.d_head = d_head
        if d_head % 2:
            raise ValueError(
                f"position=rope turns pairs, so d_head must be even; d_head={d_head} "
                f"(d_model={d_model} / num_heads={num_heads}). Choose another num_heads."
            )
        cos, sin = rope_tables(d_head, theta, context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.turn = choose("rotate").function

    def rotate(
        self, x: Float[Tensor, "batch heads time d_head"], start: int
    ) -> Float[Tensor, "batch heads time d_head"]:
        """Return x with pair k, (x[k], x[k + d_head / 2]), turned by position * theta^(-2k / d_head)."""
        return self.turn(x, *self.angles(start, x.shape[-2]))

    def angles(self, start: int, num_tokens: int) -> Angles:
        """Return the cosines and sines of num_tokens positions from `start` on."""
        return Angles(self.cos[start : start + num_tokens], self.sin[start : start + num_tokens])

    def arrange(self, rows: Float[Tensor, "num_rows ..."]) -> Float[Tensor, "num_rows ..."]:
        """Return the first of every pair of a head, then the second of every pair: 0 2 4 ... 1 3 5 ..."""
        return rearrange(rows, "(H pairs two) ... -> (H two pairs) ...", two=2, pairs=self.d_head // 2)


@POSITIONS.register("alibi")
class ALiBi(Position):
    """Lower the score of a key in proportion to its distance, each head with its own slope."""

    def __init__(self, d_model: int, num_heads: int, d_head: int, context_length: int) -> None:
        super().__init__(d_model, num_heads, d_head, context_length)
        self.slopes = torch.tensor(alibi_slopes(num_heads))


@POSITIONS.register("learned")
class LearnedPosition(Position):
    """Add a learned vector for each position up to the context length (GPT-2), where they end."""

    endless = False

    def __init__(self, d_model: int, num_heads: int, d_head: int, context_length: int) -> None:
        super().__init__(d_model, num_heads, d_head, context_length)
        # 0.02 as GPT-2: small beside the token embeddings, so that tokens speak first
        self.weight = Embedding(context_length, d_model, std=0.02).weight

    def add(self, x: Float[Tensor, "batch time d_model"], start: int) -> Float[Tensor, "batch time d_model"]:
        """Return x plus the vectors of positions start, start + 1, ..."""
        return x + self.weight[start : start + x.shape[1]]


@POSITIONS.register("sinusoidal")
class SinusoidalPosition(Position):
    """Add fixed sines and cosines of many wavelengths (the original transformer)."""

    def __init__(
        self, d_model: int, num_heads: int, d_head: int, context_length: int, *, scale: float = 0.1
    ) -> None:
        super().__init__(d_model, num_heads, d_head, context_length)
        num_pairs = (d_model + 1) // 2
        angles = torch.outer(torch.arange(context_length).float(), frequencies(num_pairs, d_model, 10000.0))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[:, :d_model]
        self.register_buffer("table", scale * table, persistent=False)

    def add(self, x: Float[Tensor, "batch time d_model"], start: int) -> Float[Tensor, "batch time d_model"]:
        """Return x plus the sinusoids of positions start, start + 1, ..."""
        return x + self.table[start : start + x.shape[1]]


def frequencies(num_pairs: int, width: int, theta: float) -> Float[Tensor, " pairs"]:
    """Return theta^(-2k / width) for k = 0, 1, ...: radians per position of each pair."""
    return theta ** (-2 * torch.arange(num_pairs).float() / width)


def rope_tables(
    d_head: int, theta: float, context_length: int
) -> tuple[Float[Tensor, "time pairs"], Float[Tensor, "time pairs"]]:
    """Return the cosines and sines of every position's angles, one column for each pair."""
    angles = torch.outer(torch.arange(context_length).float(), frequencies(d_head // 2, d_head, theta))
    return angles.cos(), angles.sin()


def rotate_pairs(
    x: Float[Tensor, "*batch time d_head"],
    cos: Float[Tensor, "*#batch time pairs"],
    sin: Float[Tensor, "*#batch time pairs"],
) -> Float[Tensor, "*batch time d_head"]:
    """Turn each adjacent pair (a, b) of x into (a cos - b sin, a sin + b cos).

    Example: x = [1, 0], angle pi / 2 -> [0, 1].
    """
    a, b = rearrange(x, "... (pairs two) -> ... pairs two", two=2).unbind(dim=-1)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return rearrange(turned, "... pairs two -> ... (pairs two)").to(x.dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return ALiBi's slope of each head.

    A power of two: 2^(-8 / n), 2^(-16 / n), ...; otherwise those of the power below, then every second one
    of the power above, as the paper's code does. Example: 8 -> [1/2, 1/4, ..., 1/256].
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    between = [2.0 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    return slopes + between[: num_heads - below]
