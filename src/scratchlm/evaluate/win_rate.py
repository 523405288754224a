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
digit (of 100 questions, 70 wins: 69.98 %)."""
NEWTON_STEPS = 50
"""It takes less than ten; the loss is convex."""
CLOSE = 1e-12
"""A step of theta and phi that changes nothing any more."""

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
    """As if both were equally long, with the interval of theta by the normal distribution."""
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


def judge(player: Player, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
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
    theta, phi, error = _fit(wins, np.tanh(apart / spread) if spread else apart)
    rarer = min(int((apart > 0).sum()), int((apart < 0).sum()))
    same = int((apart == 0).sum())
    return WinRate(
        wins=share(float(wins.sum()), len(wins)),
        controlled=Estimate(*(_logistic(theta + sign * Z * error) for sign in (0, -1, 1))),
        length_effect=phi,
        overlap=(2 * rarer + same) / len(wins),
        num_questions=len(wins),
    )


def _fit(
    wins: Float[np.ndarray, " questions"], apart: Float[np.ndarray, " questions"]
) -> tuple[float, float, float]:
    """Return theta, phi and theta's standard error, by Newton's method."""
    terms = np.stack([np.ones_like(apart), apart], axis=1)
    values = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-terms @ values))
        gradient = terms.T @ (chances - wins) + RIDGE * values
        curvature = (terms * (chances * (1 - chances))[:, None]).T @ terms + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # where all chances are near 0 or 1 a whole step would leave the range of e^x
        step *= min(1.0, 4.0 / max(CLOSE, float(np.abs(step).max())))
        values = values - step
        if float(np.abs(step).max()) < CLOSE:
            break
    error = math.sqrt(float(np.linalg.inv(curvature)[0, 0]))
    return float(values[0]), float(values[1]), error


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
