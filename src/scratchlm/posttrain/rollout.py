r"""Problems and a model come in; the answers that it draws to them go out, with rewards and advantages.

    problems of a cycle -> group_size answers each -> rewards -> advantages          (one `Rollout`)

A rollout is a function of (seed, cycle, weights): problem numbers and random numbers follow from seed and
cycle, so one that was broken off is drawn again just so. The answers are drawn by generate.Engine with the
weights that are trained, from the softmax at `temperature` without any filter: what is learnt from is what
the policy itself would say. Optimizer steps on one rollout come one after the other; where there are several,
the rollout is part of the checkpoint, with the log-probabilities that its answers had when they were drawn.

Source: the loop of Shao et al. 2024, https://arxiv.org/abs/2402.03300, algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from scratchlm.config import Config
from scratchlm.data.permutation import mix
from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Request, Result, gather
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.posttrain.rewards import Attempt
from scratchlm.posttrain.tasks.exercise import Exercise, Problem
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.trainer import StepAbandonedError, StepImpossibleError, never

SEED_BITS = 62
"""Seeds of answers: the engine adds an answer's number, and torch takes 63 bits."""


class RolloutConfig(Config):
    """How answers are drawn."""

    temperature: float = Field(default=1.0, gt=0)
    """The policy is softmax(logits / temperature), in drawing and in learning."""
    max_new_tokens: int = Field(default=128, ge=1)
    """An answer is cut after so many tokens."""
    slots: int = Field(default=32, ge=1)
    """Answers that are written at once."""


class Answer(NamedTuple):
    """One drawn answer."""

    prompt_ids: list[int]
    ids: list[int]
    """What the model wrote, the token that ended it included: at least one."""
    log_probs: list[float]
    """ln of the probability with which each was drawn."""


class Scored(NamedTuple):
    """Answers as tensors, padded on the right; a row is an answer."""

    inputs: Int[Tensor, "rows time"]
    """Prompt and answer without the last token."""
    targets: Int[Tensor, "rows time"]
    """The same without the first token."""
    mask: Bool[Tensor, "rows time"]
    """True where the target is of the answer."""
    drawn: Float[Tensor, "rows time"]
    """ln of the probability with which the target was drawn; 0 elsewhere."""


@dataclass(frozen=True)
class Rollout:
    """The answers of one cycle; group_size answers to a problem stand one behind the other."""

    cycle: int
    answers: list[Answer]
    advantages: Float[Tensor, " answers"]
    figures: dict[str, float] = field(default_factory=dict)
    old: list[Tensor] | None = None
    """Log-probabilities of the tokens of each answer when it was drawn, as the trainer computes them."""
    reference: list[Tensor] | None = None
    """The same under the reference."""


class Drawn(NamedTuple):
    """Answers before they are judged."""

    answers: list[Answer]
    attempts: list[Attempt]
    num_skipped: int
    """Problems whose prompt leaves no room for an answer."""


class Drawer:
    """Asks a model and keeps what it says."""

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        exercise: Exercise,
        *,
        max_tokens: int,
        abandon: Callable[[], bool] = never,
    ) -> None:
        """Keep the parts.

        Args:
            engine: Has the model's weights.
            template: How a problem is put to it.
            exercise: Checks the answers.
            max_tokens: Tokens of prompt and answer together.
            abandon: Asked at every token; True breaks the drawing off.
        """
        self.engine, self.template, self.exercise = engine, template, exercise
        self.max_tokens, self.abandon = max_tokens, abandon

    def draw(
        self,
        problems: Sequence[Problem],
        sampling: SamplingConfig,
        *,
        group_size: int,
        seeds: Sequence[int],
        to_the_end: bool = False,
    ) -> Drawn:
        """Return `group_size` answers to each problem; number i of a group is drawn with its seed + i.

        Args:
            problems: What is asked.
            sampling: How answers are drawn.
            group_size: Answers to each problem.
            seeds: One for each problem.
            to_the_end: Do not ask `abandon`: a validation is no step that could be given up.

        Raises:
            StepAbandonedError: `abandon` said so.
            StepImpossibleError: No prompt leaves room for an answer, or the model's logits are no numbers.
        """
        asked: list[tuple[Problem, Request]] = []
        for problem, seed in zip(problems, seeds, strict=True):
            ids = self.template.render([{"role": "user", "content": problem.prompt}])
            room = self.max_tokens - len(ids)
            if room < 1:
                continue
            settings = sampling.model_copy(
                update={"seed": seed, "max_new_tokens": min(room, sampling.max_new_tokens)}
            )
            asked.append((problem, ask(ids, self.template, settings, n=group_size)))
        if not asked:
            raise StepImpossibleError(
                f"no prompt of these {len(problems)} problems leaves room for an answer in {self.max_tokens} "
                "tokens; take shorter problems or a base with a longer context."
            )
        abandon = never if to_the_end else self.abandon
        results = self._run([request for _, request in asked], abandon)
        answers, attempts = [], []
        for (problem, request), result in zip(asked, results, strict=True):
            for choice in result.choices:
                if choice.error is not None:
                    raise StepImpossibleError(f"rollout: {choice.error}")
                tokens = choice.tokens
                answers.append(
                    Answer(
                        list(request.prompt_ids),
                        [token.token_id for token in tokens],
                        [token.drawn_logprob or 0.0 for token in tokens],
                    )
                )
                verdict = self.exercise.check(choice.text, problem.answer)
                finished = choice.finish_reason == "stop"
                attempts.append(Attempt(problem, choice.text, len(tokens), finished, verdict))
        return Drawn(answers, attempts, len(problems) - len(asked))

    def _run(self, requests: list[Request], abandon: Callable[[], bool]) -> list[Result]:
        """Run the engine to the end, or cancel all."""
        ids = [self.engine.submit(request) for request in requests]
        events = {(i, k): [] for i, r in zip(ids, requests, strict=True) for k in range(r.n)}
        while self.engine.is_busy:
            if abandon():
                for i in ids:
                    self.engine.cancel(i)
                while self.engine.is_busy:
                    self.engine.step()
                raise StepAbandonedError
            for event in self.engine.step():
                events[event.request_id, event.index].append(event)
        return [gather([events[i, k] for k in range(r.n)]) for i, r in zip(ids, requests, strict=True)]


def ask(
    prompt_ids: Sequence[int], template: ChatTemplate, sampling: SamplingConfig, *, n: int = 1
) -> Request:
    """Return the request for `n` answers to a conversation, each the assistant's turn."""
    stop = (*sampling.stop, *template.stop_texts)
    return Request(
        prompt_ids=prompt_ids,
        sampling=sampling.model_copy(update={"stop": stop}),
        n=n,
        stop_ids=tuple(template.stop_ids),
        full="stop",
    )


def seeds_of(seed: int, cycle: int, count: int) -> list[int]:
    """Return the seeds of the answers to each of a cycle's problems."""
    return [mix(seed, cycle, number) % 2**SEED_BITS for number in range(count)]


def collate(answers: Sequence[Answer]) -> Scored:
    """Return answers as tensors.

    Example: prompt (1, 2), answer (3, 4) -> inputs (1, 2, 3), targets (2, 3, 4), mask (no, yes, yes).
    """
    length = max((len(a.prompt_ids) + len(a.ids) - 1 for a in answers), default=0)
    shape = (len(answers), length)
    inputs, targets = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask, drawn = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, answer in enumerate(answers):
        ids = torch.tensor(answer.prompt_ids + answer.ids)
        said = slice(len(answer.prompt_ids) - 1, len(ids) - 1)
        inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        mask[row, said] = True
        drawn[row, said] = torch.tensor(answer.log_probs)
    return Scored(inputs, targets, mask, drawn)


def spread(values: Sequence[Tensor], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows time"]:
    """Return a number for each token of each answer where the mask is True, 0 elsewhere."""
    table = torch.zeros(mask.shape)
    if len(values):
        table[mask] = torch.cat(list(values))
    return table


def to_tensors(rollout: Rollout) -> dict[str, Tensor]:
    """Return a rollout as flat tensors for a checkpoint."""
    answers = rollout.answers
    tensors = {
        "prompt_lengths": torch.tensor([len(a.prompt_ids) for a in answers]),
        "lengths": torch.tensor([len(a.ids) for a in answers]),
        "prompt_ids": torch.tensor([i for a in answers for i in a.prompt_ids]),
        "ids": torch.tensor([i for a in answers for i in a.ids]),
        "log_probs": torch.tensor([x for a in answers for x in a.log_probs], dtype=torch.float64),
        "advantages": rollout.advantages,
    }
    for name in ("old", "reference"):
        values = getattr(rollout, name)
        if values is not None:
            tensors[name] = torch.cat(values)
    return tensors


def from_tensors(tensors: dict[str, Tensor], plain: dict[str, Any]) -> Rollout:
    """Return the rollout that `to_tensors` took apart; `plain` has its cycle and its figures."""
    lengths, prompt_lengths = tensors["lengths"].tolist(), tensors["prompt_lengths"].tolist()
    prompts = [part.tolist() for part in tensors["prompt_ids"].split(prompt_lengths)]
    ids = [part.tolist() for part in tensors["ids"].split(lengths)]
    log_probs = [part.tolist() for part in tensors["log_probs"].split(lengths)]
    kept = {name: list(tensors[name].split(lengths)) for name in ("old", "reference") if name in tensors}
    answers = [Answer(*fields) for fields in zip(prompts, ids, log_probs, strict=True)]
    return Rollout(int(plain["cycle"]), answers, tensors["advantages"], dict(plain["figures"]), **kept)
