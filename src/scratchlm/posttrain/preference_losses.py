r"""Log-probabilities of a chosen and a rejected response come in; one loss per pair goes out: DPO, its kin.

    r(y)   = log p(y) - log q(y)            p the model, q the reference it started from; sums over tokens

    dpo:   -log s(b (r_c - r_r))                                    s the logistic function, b = beta
    ipo:   ((r_c - r_r) - 1 / (2 b))^2
    kto:   1 - s(b (r_c - max(0, r_r)))  +  1 - s(b (max(0, r_c) - r_r))
    simpo: -log s(b (log p(y_c) / |y_c| - log p(y_r) / |y_r|) - gamma)        |y| tokens; no reference

A reward model followed by reinforcement learning has one optimal model, in which b r(y) is the reward; put
into the likelihood of the preferences it leaves a loss of the model alone: dpo. Its gradient pushes a pair
apart by b s(-b (r_c - r_r)): hardly any more once the pair is far apart. ipo stops at a distance. kto judges
each response against a point that gets no gradient. simpo takes means instead of sums, so that longer
responses have no advantage, and asks for a distance.

The paper of kto takes one point for a whole batch, from responses paired with other prompts. Here it is the
other response of the same pair: a pair's loss depends on that pair alone, however many are computed together.

Source: DPO: Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; label smoothing of it: Mitchell
2023, https://ericmitchell.ai/cdpo.pdf; IPO: Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17;
KTO: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4, where it differs as said above;
SimPO: Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.registry import Family

PREFERENCE_LOSSES: "Family[PreferenceLoss]" = Family(
    "preference loss", package="scratchlm.posttrain.preference_losses"
)
"""Built with `PREFERENCE_LOSSES.build(name, **settings)`; the result maps `Pairs` to one loss per pair."""


class Pairs(NamedTuple):
    """Log-probabilities of responses given their prompts, in nats, summed over each response's tokens.

    In float32 or wider: bfloat16 holds a sum of 100 nats to half a nat.
    """

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    reference_chosen: Float[Tensor, " pairs"] | None = None
    """By the reference model; None where the loss needs none."""
    reference_rejected: Float[Tensor, " pairs"] | None = None
    chosen_tokens: Int[Tensor, " pairs"] | None = None
    """Tokens of the chosen response, at least 1; None where the loss does not look at lengths."""
    rejected_tokens: Int[Tensor, " pairs"] | None = None


class Rewards(NamedTuple):
    """What a preference loss takes for the reward of each response; chosen should be above rejected."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]

    @property
    def margins(self) -> Float[Tensor, " pairs"]:
        """By how much the chosen response is ahead."""
        return self.chosen - self.rejected

    @property
    def ahead(self) -> Float[Tensor, " pairs"]:
        """1 where it is ahead, 0 where it is behind, 1/2 where both are equal, as before the first step."""
        return (self.margins.sign() + 1) / 2

    @property
    def accuracy(self) -> Float[Tensor, ""]:
        """The share of pairs in which it is ahead."""
        return self.ahead.mean()


class PreferenceLoss(ABC):
    """From pairs to one loss per pair."""

    needs_reference: ClassVar[bool] = True
    """Whether the pairs must come with the reference model's log-probabilities."""

    @abstractmethod
    def rewards(self, pairs: Pairs) -> Rewards:
        """Return the reward that this loss implies for each response."""

    @abstractmethod
    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return each pair's loss."""


@PREFERENCE_LOSSES.register("dpo")
class DPO(PreferenceLoss):
    """Direct preference optimization: the likelihood of the preferences under the implied rewards."""

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        """Keep the settings.

        Args:
            beta: How dearly leaving the reference is paid; above 0, small lets the model go far.
            label_smoothing: Share of pairs that are labelled the wrong way round, in [0, 0.5).

        Raises:
            ValueError: A setting is outside its range.
        """
        self.beta, self.label_smoothing = _checked_beta("dpo", beta), label_smoothing
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"dpo: label_smoothing={label_smoothing}: the share of wrong labels must be in [0, 0.5)."
            )

    def rewards(self, pairs: Pairs) -> Rewards:
        """Return beta * log(p / q)."""
        return _scaled(self.beta, _log_ratios("dpo", pairs))

    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return each pair's loss.

        Example: log p -1 and -2, log q -1.5 for both, beta 0.1 -> -log s(0.1 * 1) = 0.6444.
        """
        margins = self.rewards(pairs).margins
        return (1 - self.label_smoothing) * _surprise(margins) + self.label_smoothing * _surprise(-margins)


@PREFERENCE_LOSSES.register("ipo")
class IPO(PreferenceLoss):
    """Identity preference optimization: pairs are moved to a set distance and no further."""

    def __init__(self, *, beta: float = 0.1) -> None:
        """Keep the settings.

        Args:
            beta: Pairs are moved 1 / (2 beta) nats apart; above 0.

        Raises:
            ValueError: beta is not above 0.
        """
        self.beta = _checked_beta("ipo", beta)

    def rewards(self, pairs: Pairs) -> Rewards:
        """Return beta * log(p / q): the margin that is aimed at is 1/2."""
        return _scaled(self.beta, _log_ratios("ipo", pairs))

    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return each pair's loss.

        Example: log p -1 and -2, log q -1.5 for both, beta 0.1 -> (1 - 5)^2 = 16.
        """
        return (_log_ratios("ipo", pairs).margins - 1 / (2 * self.beta)).square()


@PREFERENCE_LOSSES.register("kto")
class KTO(PreferenceLoss):
    """KTO-style: each response alone is good or bad, in comparison with a point that gets no gradient."""

    def __init__(self, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> None:
        """Keep the settings.

        Args:
            beta: How soon the value of a response saturates, as in DPO; above 0.
            desirable: Weight of the chosen response, at least 0.
            undesirable: Weight of the rejected response, at least 0.

        Raises:
            ValueError: A setting is outside its range.
        """
        self.beta, self.desirable, self.undesirable = _checked_beta("kto", beta), desirable, undesirable
        if min(desirable, undesirable) < 0 or desirable + undesirable == 0:
            raise ValueError(
                f"kto: desirable={desirable}, undesirable={undesirable}: weights are at least 0, one above."
            )

    def rewards(self, pairs: Pairs) -> Rewards:
        """Return beta * log(p / q)."""
        return _scaled(self.beta, _log_ratios("kto", pairs))

    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return each pair's loss.

        Example: log p -1 and -2, log q -1.5 for both, beta 0.1: r = 0.5 and -0.5, the points 0 and 0.5
        -> (1 - s(0.05)) + (1 - s(0.1)) = 0.4875 + 0.4750 = 0.9625.
        """
        ratios = _log_ratios("kto", pairs)
        bad_point, good_point = (ratio.detach().clamp(min=0) for ratio in ratios)
        good = torch.sigmoid(-self.beta * (ratios.chosen - good_point))  # 1 - s(x) = s(-x), exact near 1
        bad = torch.sigmoid(-self.beta * (bad_point - ratios.rejected))
        return self.desirable * good + self.undesirable * bad


@PREFERENCE_LOSSES.register("simpo")
class SimPO(PreferenceLoss):
    """Simple preference optimization: mean log-probabilities, a target margin, no reference."""

    needs_reference = False

    def __init__(self, *, beta: float = 2.0, gamma: float = 1.0) -> None:
        """Keep the settings.

        Args:
            beta: Scale of the mean log-probabilities; above 0, the paper takes 2 to 2.5.
            gamma: The margin that is asked for, at least 0; the paper takes 0.3 to 1.6.

        Raises:
            ValueError: A setting is outside its range.
        """
        self.beta, self.gamma = _checked_beta("simpo", beta), gamma
        if not gamma >= 0:
            raise ValueError(f"simpo: gamma={gamma}: the margin must be at least 0.")

    def rewards(self, pairs: Pairs) -> Rewards:
        """Return beta * log p / tokens."""
        if pairs.chosen_tokens is None or pairs.rejected_tokens is None:
            raise ValueError("simpo: the pairs come without their numbers of tokens; it takes means.")
        means = Rewards(pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens)
        return _scaled(self.beta, means)

    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return each pair's loss.

        Example: log p -4 in 4 tokens and -4 in 2, beta 2, gamma 1 -> -log s(2 * (-1 + 2) - 1) = 0.3133.
        """
        return _surprise(self.rewards(pairs).margins - self.gamma)


def _surprise(margins: Tensor) -> Tensor:
    """-log s(x) = log(1 + e^-x), which overflows nowhere."""
    return torch.logaddexp(torch.zeros_like(margins), -margins)


def _log_ratios(loss: str, pairs: Pairs) -> Rewards:
    """log(p / q) of both responses."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError(f"{loss}: the pairs come without the reference model's log-probabilities.")
    return Rewards(pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected)


def _scaled(beta: float, rewards: Rewards) -> Rewards:
    return Rewards(beta * rewards.chosen, beta * rewards.rejected)


def _checked_beta(loss: str, beta: float) -> float:
    if not beta > 0:
        raise ValueError(f"{loss}: beta={beta}: must be above 0.")
    return beta
