"""A post-trained run's record comes in, what changed between its base and the assistant comes out.

    summary.json    posttrain.before, posttrain.after      the same held-out items and the base's own text
    samples.jsonl   the first and the last answers         to the same questions, side by side
    metrics.jsonl   reward, accuracy, KL, entropy, ...     over the tokens seen
    win_rate.json   comparisons of answers                 that `scratchlm evaluate --against` made

Every stage measures and answers before its first step, so the first row of each pair is the base. Runs that
were pretrained have none of this and get no chapter.
"""

import json
import math
import shlex
from pathlib import Path
from typing import NamedTuple

from scratchlm.study import units
from scratchlm.study.chapters import Command, Headline, Learning, loss_of, shown
from scratchlm.study.plots import Curve, Panel
from scratchlm.study.run_record import Row, RunRecord, column, number, section

STAGES = {
    "sft": "Supervised fine-tuning",
    "distill": "Distillation",
    "dpo": "Learning from preferences",
    "grpo": "Reinforcement learning",
}
ANSWERS = ("loss of answers", "nats per token of what the assistant says in held-out conversations")
LOSSES = {
    "sft": ANSWERS,
    "distill": ANSWERS,
    "dpo": ("preference loss", "mean over held-out pairs; DPO's is ln 2 = 0.693 before the first step"),
    "grpo": ("wrong answers", "1 - accuracy, on held-out problems"),
}
"""Stage -> name and meaning of what its validation minimises."""

FIGURES = {
    "accuracy": ("accuracy", "held-out problems that are solved"),
    "likelier": ("better answer is likelier", "held-out pairs; to the model itself, without its base"),
    "token_accuracy": ("right next tokens", "of held-out answers, given what stands before"),
    "formatted": ("answers in the asked form", "right or wrong"),
    "margin": ("margin", "how far the better answer is ahead of the worse one, as the loss sees it"),
    "reward_chosen": (
        "reward of the better answers",
        "implied by the model; falls if they became less likely",
    ),
    "answer_tokens": ("length of an answer", "tokens"),
    "kl": ("distance from the base", "KL, nats per token"),
}
"""Key of a figure -> its name and what it means; in the order of the table."""

PAIRS = "held-out pairs whose better answer is ahead, as the loss sees it"
"""What accuracy means where preferences are learnt."""

SHARES = ("accuracy", "likelier", "token_accuracy", "formatted")
CURVES = {
    "reward_mean": "reward",
    "accuracy": "accuracy",
    "answer_tokens": "tokens per answer",
    "entropy": "entropy, nats per token",
    "kl": "KL to the base, nats per token",
    "margin": "margin",
    "reward_chosen": "reward of the better answer",
    "reward_rejected": "reward of the worse answer",
    "divergence": "divergence from the teacher",
}
"""Key of a training row -> title of its plot, in the order in which they are drawn."""

DUELS = "win_rate.json"
"""Where a run keeps how often its answers were better than another's; one row each other."""
TIED = "all tied"
"""Before a run from preferences nothing is ahead of anything: the model is its own reference."""
BASE_TEXT = "perplexity on the base's text"
PANELS_IN_A_ROW = 3
MOST_ANSWERS = 6
"""Questions of which the answers are shown."""


class Change(NamedTuple):
    """One line of the table."""

    name: str
    meaning: str
    before: str
    after: str


class Answers(NamedTuple):
    """What the base said to a question, and what the assistant says."""

    question: str
    before: str
    after: str


class Duel(NamedTuple):
    """How often this run's answers were better than another's."""

    against: str
    judges: str
    wins: str
    controlled: str
    questions: str


class PosttrainChapter(NamedTuple):
    """What the report says about post-training."""

    title: str
    lead: str
    learning: Learning
    headlines: list[Headline]
    """The figures of the header that take the places of loss and bits per byte."""
    changes: list[Change]
    duels: list[Duel]
    panels: list[list[Panel]]
    """Small plots, row by row."""
    first_step: int
    last_step: int
    answers: list[Answers]


def posttrain_chapter(record: RunRecord) -> PosttrainChapter | None:
    """Return the chapter of a post-trained run; None for any other."""
    facts = section(record.summary, "posttrain")
    stage = str(facts.get("stage", ""))
    if stage not in STAGES:
        return None
    before, after = section(facts, "before"), section(facts, "after")
    steps, changes = sorted({row["step"] for row in record.samples}), _changes(stage, before, after)
    return PosttrainChapter(
        STAGES[stage],
        _lead(facts),
        _learning(stage, record),
        [_headline(change) for change in _most_telling(changes)],
        changes,
        _duels(record.folder / DUELS),
        _panels(record),
        steps[0] if steps else 0,
        steps[-1] if steps else 0,
        _answers(record.samples),
    )


def _learning(stage: str, record: RunRecord) -> Learning:
    """What the learning curves show: where rewards teach, what was solved, for a policy loss says nothing."""
    name, meaning = LOSSES[stage]
    about = f"The {name}, {meaning}."
    note = "The faint line is what each step's batch had, one at a time."
    if stage == "grpo":
        last = next((number(row, "accuracy") for row in reversed(record.valid)), None)
        about = "How many problems are solved: the right answers that rewards taught."
        note += " Training answers are drawn by chance, held-out ones take the likeliest token each time."
        title, solved = "share of answers that are right", units.percent(last)
        return Learning(title, "accuracy", "accuracy", solved, about, note)
    last = units.decimal(loss_of(record))
    if stage == "dpo":
        return Learning("preference loss of a pair", "loss", "loss", last, about, note)
    key = "data_loss" if any("data_loss" in row for row in record.train) else "loss"
    return Learning("loss of answers, nats per token", key, "loss", last, about, note)


def _lead(facts: Row) -> str:
    """What was trained, and from where on."""
    trained, items = number(facts, "trainable_parameters"), number(facts, "train_items")
    words = f"This run went on from {facts.get('base', 'its base')}"
    step = number(facts, "base_step")
    words += f" at step {step:,.0f}" if step is not None else ""
    adapter = str(facts.get("adapter", "full"))
    how = "all parameters" if adapter in ("full", "none") else f"an adapter ({adapter})"
    words += f"; {how}, {units.count(trained)} numbers, were trained" if trained is not None else ""
    return words + (f" on {items:,.0f} items." if items is not None else ".")


def _changes(stage: str, before: Row, after: Row) -> list[Change]:
    rows = []
    losses = {} if stage == "grpo" and "accuracy" in after else {"loss": LOSSES[stage]}  # it is 1 - accuracy
    for key, (name, meaning) in {**losses, **FIGURES}.items():
        values = number(before, key), number(after, key)
        if any(value is not None for value in values):
            shown = [_shown(key, value) for value in values]
            if stage == "dpo" and key == "accuracy" and number(before, "margin") == 0:
                shown[0] = TIED
            pairs = stage == "dpo" and key == "accuracy"
            rows.append(Change(name, PAIRS if pairs else meaning, *shown))
    values = number(before, "base_loss"), number(after, "base_loss")
    if any(value is not None for value in values):
        shown = [units.decimal(None if value is None else _perplexity(value)) for value in values]
        rows.append(Change(BASE_TEXT, _forgetting(*values), *shown))
    return rows


def _shown(key: str, value: float | None) -> str:
    if key in SHARES:
        return units.percent(value)
    return units.decimal(value, 1 if key == "answer_tokens" else 3)


def _most_telling(changes: list[Change]) -> list[Change]:
    """What was to be learned, and what of the old was forgotten."""
    learned = [change for change in changes if change.name == FIGURES["accuracy"][0]] or changes
    kept = [change for change in changes if change.name == BASE_TEXT]
    return [*learned[:1], *(change for change in kept if change not in learned[:1])]


def _headline(change: Change) -> Headline:
    title = change.name[:1].upper() + change.name[1:]
    return Headline(title, change.after, "", f"before: {change.before}", f"{change.meaning}.")


def posttrain_commands(folder: Path) -> list[Command]:
    """What to try with the assistant in a run folder, ready to be copied."""
    place = shlex.quote(shown(folder))
    return [
        Command("Talk to it", f"scratchlm chat {place}"),
        Command("Talk to it in a browser, and look at its tokens", f"scratchlm serve {place}"),
        Command("Measure it", f"scratchlm evaluate {place}"),
        Command("Put what happens inside the model into this page", f"scratchlm report {place} --inside"),
        Command("Take it elsewhere", f"scratchlm export hf {place} exported"),
    ]


def _duels(path: Path) -> list[Duel]:
    """The comparisons that a file holds; what is no comparison is left out."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [
        Duel(
            "what it began with" if row.get("against") == "base" else str(row.get("against")),
            ", ".join(map(str, row["judges"])) if isinstance(row.get("judges"), list) else "",
            _between(section(row, "wins")),
            _between(section(row, "controlled")),
            f"{number(row, 'questions') or 0:,.0f}",
        )
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]


def _between(estimate: Row) -> str:
    """A share with its interval: "63 % (53 % to 72 %)"."""
    value, low, high = (units.percent(number(estimate, key)) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _forgetting(before: float | None, after: float | None) -> str:
    """What the model forgot of what it could before."""
    if before is None or after is None:
        return "what it could before"
    change = _perplexity(after - before) - 1
    return f"what it could before: {100 * change:+z.1f} %"


def _panels(record: RunRecord) -> list[list[Panel]]:
    tokens = column(record.train, "tokens")
    panels = [Panel(title, Curve(tokens, column(record.train, key))) for key, title in CURVES.items()]
    drawn = [panel for panel in panels if len(panel.curve.finite().tokens) > 1]
    rows = -(-len(drawn) // PANELS_IN_A_ROW)
    return [drawn[len(drawn) * row // rows : len(drawn) * (row + 1) // rows] for row in range(rows)]


def _answers(samples: list[Row]) -> list[Answers]:
    """The questions that were asked at the first and at the last time, with both answers."""
    steps = sorted({row["step"] for row in samples})
    if len(steps) < 2:
        return []
    first, last = (
        {_question(row): row for row in samples if row["step"] == step} for step in (steps[0], steps[-1])
    )
    shared = [question for question in first if question in last][:MOST_ANSWERS]
    return [Answers(question, _text(first[question]), _text(last[question])) for question in shared]


def _question(row: Row) -> str:
    return str(row.get("prompt") or "")


def _text(row: Row) -> str:
    return str(row.get("text") or "").strip()
