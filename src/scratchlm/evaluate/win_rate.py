r"""Two models' answers to the same questions come in; how often the one's are better comes out, length aside.

    s      mean ln p(token of the answer | question, tokens before it) under a judge, a language model; with
           several judges the mean of theirs
    w_i  = 1 where s(answer of A) > s(answer of B), 0 where it is below, 1/2 where both are equal
    d_i  = tanh((length of A - length of B) / r),    r = sqrt(mean (length of A - length of B)^2)
    P(w_i = 1) = 1 / (1 + e^-(theta + phi * d_i))    theta, phi: logistic regression

    win rate                        mean of w
    length-controlled win rate      1 / (1 + e^-theta): what would be if both were equally long

Judges favour long answers or short ones, whatever they say: late tokens are easier to guess than early ones.
The regression gives that part of the wins to phi, which the length explains. Where A's answers are all longer
than B's, nothing can tell the two apart: `overlap` is 0 then and the interval wide. A model that judges its
own answers finds them likely, so the judge should be a third one, or both: then neither gains.

Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", https://arxiv.org/abs/2404.04475, section 3. There
the judge is asked for its opinion, lengths are spread around their mean, and a third term knows how hard each
question is, which needs more than two models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from scratchlm.evaluate.intervals import Estimate, Z, share
from scratchlm.evaluate.scoring import Pair, score
from scratchlm.evaluate.writing import write_all
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.chat import ChatTemplate

RIDGE = 0.01
"""Weight of (theta^2 + phi^2) / 2: where one side wins all, theta stays finite; else it shows in the third
digit (70 wins of 100: 69.99 %)."""
FARTHEST = 40.0
"""theta and phi are looked for between its negative and this: the ridge alone keeps both far inside."""
CLOSE = 1e-6
"""How exactly they are found."""

Question = Sequence[Mapping[str, str]]
"""A conversation that ends with the user."""


class Player(NamedTuple):
    """A model that answers or judges."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]] | None = None


class WinRate(NamedTuple):
    """How often A's answers are better than B's."""

    wins: Estimate
    """As they are, with Wilson's interval."""
    controlled: Estimate
    """As if both were equally long, with the interval of theta by the likelihood."""
    length_effect: float
    """phi: above 0 the judge prefers the longer answer."""
    overlap: float
    """Share of questions with the rarer sign of the difference, times 2: 0 where A's are all longer."""
    num_questions: int


def answer_all(
    player: Player,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer all questions, always with the likeliest token; return the texts in their order.

    Raises:
        ValueError: The model's logits are no numbers.
    """
    template = ChatTemplate(player.tokenizer)
    prompts = [template.render(question) for question in questions]
    stop = tuple(template.stop_texts)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens, stop=stop)
    ends = tuple(template.stop_ids)
    found = write_all(player.model, player.tokenizer, prompts, sampling, stop_ids=ends, progress=progress)
    return [written.text for written in found]


def judge(
    player: Player,
    questions: Sequence[Question],
    answers: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the mean log-probability per token of each answer behind its question; -inf of an empty one."""
    template = ChatTemplate(player.tokenizer)
    # after a special token an answer begins without a blank, after the word "Assistant:" with one
    blank = "" if template.special else " "
    places = [place for place, answer in enumerate(answers) if answer.strip()]
    pairs = [
        Pair(
            template.render(questions[place]),
            player.tokenizer.encode_ordinary(f"{blank}{answers[place].strip()}"),
        )
        for place in places
    ]
    found = score(
        player.model,
        pairs,
        context_length=player.model.config.context_length,
        device=player.device,
        autocast=player.autocast,
        progress=progress,
    )
    scores = [-math.inf] * len(answers)
    for place, one in zip(places, found, strict=True):
        scores[place] = one.logprob / one.num_tokens
    return scores


def win_rate(
    scores: Sequence[float],
    other_scores: Sequence[float],
    lengths: Sequence[int],
    other_lengths: Sequence[int],
) -> WinRate:
    """Compare A's scores with B's, question by question.

    Args:
        scores: What the judges say of A's answers.
        other_scores: And of B's.
        lengths: How long A's answers are, in any unit.
        other_lengths: And B's.

    Raises:
        ValueError: There is no question, or the numbers are not as many of each.
    """
    if not scores or len({len(scores), len(other_scores), len(lengths), len(other_lengths)}) > 1:
        raise ValueError("win rate: give two scores and two lengths for each of at least one question.")
    wins = np.array([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(scores, other_scores, strict=True)])
    apart = np.array(lengths, dtype=np.float64) - np.array(other_lengths, dtype=np.float64)
    spread = math.sqrt(float(np.mean(apart**2)))
    theta, phi = _fit(wins, np.tanh(apart / spread) if spread else apart)
    rarer = min(int((apart > 0).sum()), int((apart < 0).sum()))
    same = int((apart == 0).sum())
    return WinRate(
        wins=share(float(wins.sum()), len(wins)),
        controlled=Estimate(*map(_logistic, theta)),
        length_effect=phi,
        overlap=(2 * rarer + same) / len(wins),
        num_questions=len(wins),
    )


def _fit(
    wins: Float[np.ndarray, " questions"], apart: Float[np.ndarray, " questions"]
) -> tuple[Estimate, float]:
    """Return theta with its interval, and phi.

    The interval holds each theta that some phi makes about as likely as the best: the loss is at most
    Z^2 / 2 higher. Unlike theta +- Z times its standard error it is right where one side wins nearly all.
    """
    theta = _least(lambda value: _given(value, wins, apart)[0], -FARTHEST, FARTHEST)
    best, phi = _given(theta, wins, apart)
    ends = []
    for end in (-FARTHEST, FARTHEST):
        inside, outside = theta, end
        while abs(outside - inside) > CLOSE:
            middle = (inside + outside) / 2
            if _given(middle, wins, apart)[0] - best <= Z * Z / 2:
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    return Estimate(theta, *ends), phi


def _given(
    theta: float, wins: Float[np.ndarray, " questions"], apart: Float[np.ndarray, " questions"]
) -> tuple[float, float]:
    """Return the least loss with this theta, and the phi that has it."""

    def loss(phi: float) -> float:
        values = theta + phi * apart
        ridge = RIDGE * (theta * theta + phi * phi) / 2
        return float((np.logaddexp(0.0, values) - wins * values).sum()) + ridge

    phi = _least(loss, -FARTHEST, FARTHEST)
    return loss(phi), phi


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where a convex function is least, by the golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [loss(place) for place in inner]
    while high - low > CLOSE:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = loss(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = loss(inner[1])
    return (low + high) / 2


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
