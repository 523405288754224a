r"""Log-probabilities of sampled tokens and advantages come in, what to minimise goes out, token by token.

    ratio = exp(logp - old)             old: under the weights that sampled, never differentiated

    reinforce   -A logp                                        right only where the weights sampled themselves
    ratio       -A ratio                                       importance sampling, unbounded
    grpo        -min(ratio A, clip(ratio, 1 - e, 1 + e) A)     no gain from going further than e
    gspo        the same with one ratio for a whole answer: exp(mean over its tokens of (logp - old))
    cispo       -A min(ratio, 1 + e) logp                      the ratio is a weight, and every token learns

At logp = old the gradients of all five are that of `reinforce`. `aggregate` makes one number of a table of
token losses: the mean over answers of the mean over their tokens ("sequence"), or their sum over a constant
("constant"), in which long wrong answers are not held back less than short ones (Dr. GRPO). The KL estimate
    k3 = exp(ref - logp) - (ref - logp) - 1 >= 0
is unbiased for samples of the policy and keeps it near a reference.

Sources: REINFORCE: Williams 1992; clipping: Schulman et al. 2017, https://arxiv.org/abs/1707.06347,
equation 7; GRPO: Shao et al. 2024, https://arxiv.org/abs/2402.03300, equation 3, and 4 for k3; GSPO: Zheng et
al. 2025, https://arxiv.org/abs/2507.18071, equations 5 and 7; CISPO: MiniMax 2025,
https://arxiv.org/abs/2506.13585, equation 4; the clip's upper end apart: Yu et al. 2025 (DAPO),
https://arxiv.org/abs/2503.14476, section 3.1; k3: Schulman, http://joschu.net/blog/kl-approx.html.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scratchlm.registry import Family

Reweighting = Literal["none", "noclip", "grpo", "gspo"]
"""CS336's names: none is `reinforce`, noclip is `ratio`."""

Normalization = Literal["sequence", "constant"]


class TokenLosses(NamedTuple):
    """What a policy loss says."""

    losses: Float[Tensor, "batch time"]
    """What to minimise, of every token; those outside the mask mean nothing."""
    clipped: Bool[Tensor, "batch time"]
    """Where the clip decided: such a token (of gspo: its answer) has no gradient; of cispo, a bounded one."""


class PolicyLoss(ABC):
    """What is minimised for a sampled token."""

    @abstractmethod
    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return the losses of all tokens.

        Args:
            log_probs: Under the weights that learn.
            advantages: Of each answer, or of each token.
            old_log_probs: Under the weights that sampled.
            mask: True on the tokens of the answer.
        """


POLICY_LOSSES: Family[PolicyLoss] = Family("policy loss", package="scratchlm.posttrain.policy_losses")
"""Policy losses by name."""


@POLICY_LOSSES.register("reinforce")
class Reinforce(PolicyLoss):
    """-A logp: the gradient of the expected reward, where the weights sampled themselves."""

    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return -A logp."""
        return TokenLosses(-advantages * log_probs, torch.zeros_like(mask))


@POLICY_LOSSES.register("ratio")
class Ratio(PolicyLoss):
    """-A ratio: importance sampling without a bound."""

    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return -A exp(logp - old)."""
        ratio = (log_probs - _fixed(old_log_probs, mask, log_probs)).exp()
        return TokenLosses(-advantages * ratio, torch.zeros_like(mask))


@POLICY_LOSSES.register("grpo")
class ClippedRatio(PolicyLoss):
    """-min(ratio A, clip(ratio) A): nothing to gain outside the clip (PPO, GRPO)."""

    def __init__(self, *, clip: float = 0.2, clip_high: float | None = None) -> None:
        """Bound the ratio to [1 - clip, 1 + clip_high]; clip_high None: the same as `clip`.

        Raises:
            ValueError: A bound is not positive.
        """
        self.low, self.high = _bounds(clip, clip_high)

    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return the clipped losses; each token has its own ratio."""
        ratio = (log_probs - _fixed(old_log_probs, mask, log_probs)).exp()
        return _clipped(ratio, advantages, self.low, self.high)


@POLICY_LOSSES.register("gspo")
class ClippedSequenceRatio(PolicyLoss):
    """As grpo with one ratio for the whole answer: the geometric mean of its tokens' ratios (GSPO)."""

    def __init__(self, *, clip: float = 3e-4, clip_high: float | None = None) -> None:
        """Bound the ratio to [1 - clip, 1 + clip_high]; a mean over tokens moves far less than a token.

        Raises:
            ValueError: A bound is not positive.
        """
        self.low, self.high = _bounds(clip, clip_high)

    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return the clipped losses, the same at every token of an answer where the advantage is."""
        apart = log_probs - _fixed(old_log_probs, mask, log_probs)
        ratio = masked_mean(apart, mask, dim=1, empty=0.0).exp()[:, None].expand_as(log_probs)
        return _clipped(ratio, advantages, self.low, self.high)


@POLICY_LOSSES.register("cispo")
class ClippedWeight(PolicyLoss):
    """-A min(ratio, 1 + clip_high) logp, the ratio not differentiated: every token keeps a gradient."""

    def __init__(self, *, clip_high: float = 0.2) -> None:
        """Bound the weight from above.

        Raises:
            ValueError: The bound is not positive.
        """
        self.high = _bounds(clip_high, None)[1]

    def __call__(
        self,
        log_probs: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch _"],
        old_log_probs: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> TokenLosses:
        """Return the weighted losses."""
        ratio = (log_probs - _fixed(old_log_probs, mask, log_probs)).detach().exp()
        losses = -advantages * ratio.clamp(max=self.high) * log_probs
        return TokenLosses(losses, ratio > self.high)


def compute_policy_gradient_loss(
    raw_rewards_or_advantages: Float[Tensor, "batch _"],
    policy_log_probs: Float[Tensor, "batch time"],
    *,
    importance_reweighting_method: Reweighting = "none",
    old_log_probs: Float[Tensor, "batch time"] | None = None,
    cliprange: float | None = None,
    response_mask: Bool[Tensor, "batch time"] | None = None,
) -> TokenLosses:
    """Return token losses by CS336's names for them.

    Args:
        raw_rewards_or_advantages: Of each answer, or of each token.
        policy_log_probs: Under the weights that learn.
        importance_reweighting_method: none, noclip, grpo or gspo.
        old_log_probs: Under the weights that sampled; all methods but none need them.
        cliprange: The clip of grpo and gspo; None: what POLICY_LOSSES has.
        response_mask: True on the tokens of the answer; None: all are.

    Raises:
        ValueError: The method is not known, or lacks old_log_probs.
    """
    method = importance_reweighting_method
    names = {"none": "reinforce", "noclip": "ratio", "grpo": "grpo", "gspo": "gspo"}
    if method not in names:
        raise ValueError(f"importance_reweighting_method={method!r}: must be one of {', '.join(names)}.")
    if old_log_probs is None and method != "none":
        raise ValueError(f"importance_reweighting_method={method!r} needs old_log_probs.")
    settings = {"clip": cliprange} if cliprange is not None and method in ("grpo", "gspo") else {}
    mask = torch.ones_like(policy_log_probs, dtype=torch.bool) if response_mask is None else response_mask
    old = policy_log_probs.detach() if old_log_probs is None else old_log_probs
    loss = POLICY_LOSSES.build(names[method], **settings)
    return loss(policy_log_probs, raw_rewards_or_advantages, old, mask)


def aggregate(
    token_losses: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    normalization: Normalization = "sequence",
    constant: float | int | None = None,
) -> Float[Tensor, ""]:
    """Return one number: the mean over answers of their tokens' mean, or the sum over `constant`.

    An answer without tokens has loss 0 and counts as an answer.

    Raises:
        ValueError: The normalisation is not known, or needs a constant.
    """
    weights = answer_weights(mask.sum(dim=1), normalization=normalization, constant=constant)
    return (masked_sum(token_losses, mask, dim=1) * weights).sum()


def answer_weights(
    lengths: Int[Tensor, " batch"],
    *,
    normalization: Normalization = "sequence",
    constant: float | int | None = None,
) -> Float[Tensor, " batch"]:
    """Return what the sum of an answer's token losses is multiplied with, so that a step's loss is their sum.

    The weights of a whole step are known before its first micro-batch: then micro-batches of any size add up
    to the whole, and an answer of advantage 0 may be left out.

    Args:
        lengths: Tokens of all of the step's answers.
        normalization: sequence: 1 / (answers * length); constant: 1 / constant.
        constant: What the sum is divided by.

    Raises:
        ValueError: The normalisation is not known, or needs a constant.
    """
    if normalization == "sequence":
        return 1.0 / (len(lengths) * lengths.clamp(min=1).float())
    if normalization != "constant":
        raise ValueError(f"normalization={normalization!r}: must be sequence or constant.")
    if constant is None or not constant > 0:
        raise ValueError(f"normalization='constant' needs a constant above 0, not {constant}.")
    return torch.full(lengths.shape, 1.0 / constant, device=lengths.device)


def kl_estimate(
    log_probs: Float[Tensor, "batch time"], reference_log_probs: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return k3 of each sampled token: how far the policy is from the reference, at least 0.

    Example: logp = ln 0.5, ref = ln 0.25 -> 0.5 + ln 2 - 1 = 0.193.
    """
    apart = reference_log_probs.detach() - log_probs
    return apart.exp() - apart - 1.0


def compute_entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Return -sum p ln p of each row, in nats; large logits do not overflow.

    Example: two equal logits -> ln 2 = 0.693.
    """
    logits = logits - logits.detach().amax(dim=-1, keepdim=True)  # the sum of large ones would lose digits
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    # p is 0 where log p is -inf, and 0 * -inf is no number
    return -(log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p)).sum(dim=-1)


def masked_sum(
    tensor: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Return the sum where the mask is True; what is outside may be NaN. dim None: over everything."""
    kept = torch.where(mask, tensor, 0.0)
    return kept.sum() if dim is None else kept.sum(dim=dim)


def masked_mean(
    tensor: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    dim: int | None = None,
    empty: float = math.nan,
) -> Float[Tensor, "..."]:
    """Return the mean where the mask is True; `empty` where it is True nowhere. dim None: over everything."""
    num = mask.sum() if dim is None else mask.sum(dim=dim)
    mean = masked_sum(tensor, mask, dim=dim) / num.clamp(min=1)
    return torch.where(num > 0, mean, empty)


def _fixed(old: Tensor, mask: Tensor, log_probs: Tensor) -> Tensor:
    """The old numbers as constants; outside the mask the ratio is 1, whatever padding holds."""
    return torch.where(mask, old.detach(), log_probs.detach())


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> TokenLosses:
    free, bound = ratio * advantages, ratio.clamp(low, high) * advantages
    return TokenLosses(-torch.minimum(free, bound), bound < free)


def _bounds(clip: float, clip_high: float | None) -> tuple[float, float]:
    high = clip if clip_high is None else clip_high
    if not (clip > 0 and high > 0):
        raise ValueError(f"clip={clip}, clip_high={clip_high}: must be above 0; 0.2 is usual for grpo.")
    return 1.0 - clip, 1.0 + high
