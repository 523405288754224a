r"""A model comes in; its initial values and multipliers become those of its width (maximal update).

    r = d_model / mup_width            a model r times as wide as one whose settings are known to be good

                     usual                       with mup_width
    logits           head(x)                     head(x) / r
    head             N(0, 2 / (d_model + V))     N(0, 2 / (mup_width + V))
    tied table       N(0, 1 / d_model)           N(0, 1 / mup_width)
    attention        q k^T / sqrt(d_head)        q k^T sqrt(d_0) / d_head        d_0: d_head at mup_width
    matrices         N(0, 2 / (in + out))        the same: it shrinks with the width already

    rates            lr                          lr / r for the blocks' matrices      optim/width.py

In the usual form every part is right at the start of training, at any width; but a step of the same length
then changes the logits of a wider model more, so each width has its own best learning rate. Here each part
changes by as much at any width: what was tuned on a narrow model is good for a wide one. At r = 1 both forms
are the same model, number by number. Inner widths (d_ff) shall grow with d_model, as they do by default.

Source: Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
Transfer", https://arxiv.org/abs/2203.03466, table 8 (multipliers and initial values), definition 4.1 (1 /
d_head, since queries and keys are alike after training, not independent), appendix B.1 (the base width).
"""

import math
from typing import TYPE_CHECKING

import torch

from scratchlm.model.linear import Linear, glorot_std

if TYPE_CHECKING:
    from scratchlm.model.transformer import TransformerLM


@torch.no_grad()
def fit_width_(model: "TransformerLM") -> None:
    """Scale the initial values that depend on the width otherwise; the embeddings were drawn as they should.

    With model.init_std, which is the same at any width, it is the other way round: the head is right, and the
    blocks' matrices become smaller as 1 / sqrt(r).
    """
    config = model.config
    if config.init_std is None and model.lm_head is not None:
        wanted = glorot_std(config.mup_width or config.d_model, config.vocab_size)
        model.lm_head.weight.mul_(wanted / glorot_std(config.d_model, config.vocab_size))
    if config.init_std is not None:
        for part in model.layers.modules():
            if isinstance(part, Linear):
                part.weight.mul_(config.width_ratio**-0.5)


def score_factor(d_head: int, base: int) -> float:
    """Return what scores that were divided by sqrt(d_head) are multiplied by: sqrt(base / d_head)."""
    return math.sqrt(base / d_head)
