"""A model and a task's questions come in, figures with intervals come out, and each single answer.

    for each question:  prefix + prompt  ->  scores of its answers, or a text  ->  0 or 1 by each metric
    for each metric:    the share of ones with its Wilson interval (intervals.py)
    chance              the share that guessing gets; an interval that holds it shows no knowledge

With `chat` each prompt is a user's message in the form that the tokenizer has for conversations, as a model
expects it that was trained to answer.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch

from scratchlm.evaluate.intervals import Estimate, perplexity, share
from scratchlm.evaluate.questions import Asked
from scratchlm.evaluate.scoring import Pair, encode_pair, score
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, Task, WrittenTask, choose
from scratchlm.evaluate.writing import write_all
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.chat import ChatTemplate

Progress = Callable[[int, int], None]
"""Called with how many of how many answers are known."""


class Answer(NamedTuple):
    """What became of one question."""

    number: int
    """Which of the file's questions it is, counted from 0."""
    group: str
    metrics: dict[str, float]
    said: str
    """What the model chose or wrote."""
    num_cut: int
    """Tokens of the beginning that the model could not read."""


class Group(NamedTuple):
    """A part of a task."""

    num_questions: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A model's figures on one task."""

    task: str
    metrics: dict[str, Estimate]
    chance: float | None
    """Share of questions that guessing gets; None where there is nothing to guess from."""
    num_questions: int
    num_all: int
    """How many there were to draw from."""
    shots: int
    num_cut: int
    """Questions that were longer than what the model reads at once: their beginning was cut off."""
    seconds: float
    groups: dict[str, Group] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()

    def as_json(self, *, answers: bool) -> dict[str, Any]:
        """The same in lists and dictionaries, with or without the single answers."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        kept["metrics"] = _named(self.metrics)
        kept["groups"] = {
            name: {"num_questions": group.num_questions, "metrics": _named(group.metrics)}
            for name, group in self.groups.items()
        }
        kept["answers"] = [answer._asdict() for answer in self.answers]
        return kept if answers else {name: value for name, value in kept.items() if name != "answers"}


def run_task(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    task: Task,
    asked: Asked,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None = None,
    chat: bool = False,
    progress: Progress | None = None,
) -> TaskResult:
    """Ask a model the questions of a task.

    Args:
        model: Token ids -> logits, with `config`, `hidden`, `head` and `make_cache`.
        tokenizer: The one that the model was trained with.
        task: The task.
        asked: Its questions.
        device: Where the model's parameters are.
        autocast: Called around each forward pass to lower its precision, or None.
        chat: Whether each prompt is a message of a conversation.
        progress: Called with how many of how many answers are known.

    Raises:
        ValueError: The task has no questions for a chat, or the model's logits are no numbers.
    """
    if chat and not task.is_asked:
        raise ValueError(f"{task.name}: compares texts and asks nothing; it cannot be put into a chat.")
    started = time.perf_counter()
    if isinstance(task, ChoiceTask):
        answers = _chosen(model, tokenizer, task, asked, device, autocast, chat, progress)
    else:
        assert isinstance(task, WrittenTask), task
        answers = _written(model, tokenizer, task, asked, chat, progress)
    sizes = [len(question.answers) for question in asked.questions]
    groups = sorted({answer.group for answer in answers} - {""})
    return TaskResult(
        task=task.name,
        metrics=_estimates(task, answers),
        chance=sum(1 / size for size in sizes) / len(sizes) if min(sizes) > 1 else None,
        num_questions=len(answers),
        num_all=asked.num_all,
        shots=asked.shots,
        num_cut=sum(answer.num_cut > 0 for answer in answers),
        seconds=time.perf_counter() - started,
        groups={group: _group(task, [a for a in answers if a.group == group]) for group in groups},
        answers=tuple(answers),
    )


def _chosen(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    task: ChoiceTask,
    asked: Asked,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None,
    chat: bool,
    progress: Progress | None,
) -> list[Answer]:
    """Score all answers of all questions together, so that rows of one length are computed together."""
    total = sum(len(question.answers) for question in asked.questions)
    template = ChatTemplate(tokenizer) if chat else None
    pairs = (
        _pair(tokenizer, asked.prefixes[question.group] + before, answer, template)
        for question in asked.questions
        for before, answer in question.pairs
    )
    scores = score(
        model,
        pairs,
        context_length=model.config.context_length,
        device=device,
        autocast=autocast,
        progress=None if progress is None else lambda done: progress(done, total),
    )
    answers, first = [], 0
    for number, question in zip(asked.numbers, asked.questions, strict=True):
        mine = scores[first : first + len(question.answers)]
        first += len(mine)
        said = _said(question, choose([found.logprob for found in mine]))
        cut = max(found.num_cut for found in mine)
        answers.append(Answer(number, question.group, task.judge(question, mine), said, cut))
    return answers


def _written(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    task: WrittenTask,
    asked: Asked,
    chat: bool,
    progress: Progress | None,
) -> list[Answer]:
    texts = [asked.prefixes[question.group] + question.prompt for question in asked.questions]
    stop, stop_ids = task.stop, None
    if chat:
        template = ChatTemplate(tokenizer)
        stop, stop_ids = (*stop, *template.stop_texts), tuple(template.stop_ids)
        prompts = [template.render([{"role": "user", "content": text}]) for text in texts]
    else:
        prompts = [[tokenizer.end_of_text_id, *tokenizer.encode_ordinary(text)] for text in texts]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=task.max_new_tokens, stop=stop)
    tell = None if progress is None else lambda done: progress(done, len(prompts))
    found = write_all(model, tokenizer, prompts, sampling, stop_ids=stop_ids, progress=tell)
    return [
        Answer(number, question.group, task.judge(question, written.text), written.text, written.num_cut)
        for number, question, written in zip(asked.numbers, asked.questions, found, strict=True)
    ]


def _pair(tokenizer: Tokenizer, before: str, answer: str, template: ChatTemplate | None) -> Pair:
    if template is None:
        return encode_pair(tokenizer, before, answer)
    context = template.render([{"role": "user", "content": before}])
    # after a special token an answer begins without a blank, after the word "Assistant:" with one
    blank = "" if template.special else " "
    return Pair(context, tokenizer.encode_ordinary(f"{blank}{answer.strip()}"))


def _said(question: Question, place: int) -> str:
    before, answer = question.pairs[place]
    return f"{before}{answer}" if question.prompts else answer.strip()


def _estimates(task: Task, answers: Sequence[Answer]) -> dict[str, Estimate]:
    found = {}
    for name in task.metrics:
        values = [answer.metrics[name] for answer in answers]
        found[name] = perplexity(values) if name == "perplexity" else share(sum(values), len(values))
    return found


def _group(task: Task, answers: Sequence[Answer]) -> Group:
    return Group(len(answers), _estimates(task, answers))


def _named(metrics: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: estimate._asdict() for name, estimate in metrics.items()}
