"""`scratchlm evaluate RUN --against OTHER`: whose answers to the same questions are better."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scratchlm.evaluate.win_rate import Player, WinRate
    from scratchlm.posttrain.held_out import Questions
    from scratchlm.train.folder import LoadedRun

BASE = "base"
"""The name of what a post-trained run began with."""
QUESTIONS = 100
"""Held-out questions by default: where 60 % is true, the interval leaves out 50 % in 54 cases of 100 (60 wins
do)."""


class AgainstOptions(NamedTuple):
    """With whom, by whom, about what."""

    against: str
    """A run folder, or "base"."""
    judges: Sequence[Path]
    """Run folders; both players where there is none."""
    questions: Path | None
    limit: int | None
    seed: int
    checkpoint: str | None
    """Of the other run; the newest where none is named."""
    context_length: int | None
    """Tokens that each model reads at least."""
    device: str
    as_json: bool
    save: Path | None


class Duel(NamedTuple):
    """What both said, and what the judges say of it."""

    questions: "Questions"
    answers: list[list[str]]
    scores: list[list[float]]
    found: "WinRate"


def evaluate_against(run: "LoadedRun", options: AgainstOptions) -> None:
    """Let two models answer, judge the answers and print who wins; or print JSON.

    Raises:
        ValueError: There is no such run, or nobody knows questions.
    """
    from scratchlm import runtime

    questions = _questions(run, options)
    other, other_step = _opponent(run, options)
    players = [_player_of(run), other]
    judges = [_player_of(_load(path, options)) for path in options.judges] or players
    runtime.set_threads()
    duel = _duel(players, judges, questions, max_new_tokens=run.config.sampling.max_new_tokens)
    row = _row(run, options, other_step, duel)
    if options.save is not None:
        runtime.write_text_atomically(options.save, _json(row | {"answers": _answers(duel)}))
    if options.as_json:
        print(_json(row), end="")
    else:
        _print(row)
    _keep(run.folder.path, row)


def _questions(run: "LoadedRun", options: AgainstOptions) -> "Questions":
    from scratchlm.posttrain.held_out import held_out_questions, is_post_trained, read_questions

    if options.questions is not None:
        return read_questions(options.questions, options.limit, seed=options.seed)
    for path in (run.folder.path, Path(options.against)):
        if is_post_trained(path):
            return held_out_questions(path, options.limit or QUESTIONS, seed=options.seed)
    raise ValueError(
        f"--against: neither {run.folder.path} nor {options.against} was post-trained, so nobody knows "
        "questions; name a file: --questions FILE.jsonl."
    )


def _opponent(run: "LoadedRun", options: AgainstOptions) -> "tuple[Player, int]":
    """The other run, or what this one began with; and its step."""
    from scratchlm.evaluate.win_rate import Player
    from scratchlm.model.config import reading_on
    from scratchlm.posttrain.held_out import base_of, is_post_trained

    if options.against != BASE or Path(BASE, "config.json").is_file():
        other = _load(Path(options.against), options, checkpoint=options.checkpoint or "newest")
        return _player_of(other), other.step
    if options.checkpoint is not None:
        raise ValueError(
            "--against base: what a run began with has one checkpoint; leave --against-checkpoint out."
        )
    if not is_post_trained(run.folder.path):
        raise ValueError(f"--against base: {run.folder.path} was not post-trained and has none; name a run.")
    base = base_of(run.folder.path)
    base = replace(base, settings=reading_on(base.settings, options.context_length or 0))
    return Player(base.reference(run.device), base.tokenizer, run.device, run.autocast), base.step


def _load(path: Path, options: AgainstOptions, *, checkpoint: str = "newest") -> "LoadedRun":
    from scratchlm.train.folder import load_run

    return load_run(path, device=options.device, checkpoint=checkpoint, context_length=options.context_length)


def _player_of(run: "LoadedRun") -> "Player":
    from scratchlm.evaluate.win_rate import Player

    return Player(run.model, run.tokenizer, run.device, run.autocast)


def _duel(
    players: "Sequence[Player]",
    judges: "Sequence[Player]",
    questions: "Questions",
    *,
    max_new_tokens: int,
) -> Duel:
    from scratchlm.cli.progress import Bar
    from scratchlm.evaluate.win_rate import answer_all, judge, win_rate

    asked = questions.asked
    rounds = 2 + 2 * len(judges)  # each goes over all questions
    answers, scores = [], []
    with Bar("comparing") as bar:

        def progress(number: int) -> Callable[[int], None]:
            return lambda done: bar.update(number * len(asked) + done, rounds * len(asked))

        for number, player in enumerate(players):
            answers.append(
                answer_all(player, asked, max_new_tokens=max_new_tokens, progress=progress(number))
            )
        for side, said in enumerate(answers):
            by_judge = [
                judge(one, asked, said, progress=progress(2 + side * len(judges) + number))
                for number, one in enumerate(judges)
            ]
            scores.append([sum(column) / len(column) for column in zip(*by_judge, strict=True)])
    lengths = [[len(answer.strip()) for answer in said] for said in answers]
    return Duel(questions, answers, scores, win_rate(*scores, *lengths))


def _row(run: "LoadedRun", options: AgainstOptions, other_step: int, duel: Duel) -> dict[str, Any]:
    found = duel.found
    characters = [sum(len(answer.strip()) for answer in said) / len(said) for said in duel.answers]
    return {
        "run": str(run.folder.path),
        "step": run.step,
        "against": options.against,
        "against_step": other_step,
        "judges": [str(path) for path in options.judges] or ["both"],
        "questions": found.num_questions,
        "all_questions": duel.questions.num_all,
        "seed": options.seed,
        "wins": found.wins._asdict(),
        "controlled": found.controlled._asdict(),
        "length_effect": found.length_effect,
        "overlap": found.overlap,
        "characters": characters,
    }


def _answers(duel: Duel) -> list[dict[str, Any]]:
    return [
        {
            "question": messages[-1]["content"],
            "answer": duel.answers[0][place],
            "other": duel.answers[1][place],
            # JSON has no infinity: an empty answer has no score
            "scores": [None if side[place] == -float("inf") else side[place] for side in duel.scores],
        }
        for place, messages in enumerate(duel.questions.asked)
    ]


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, indent=1, ensure_ascii=False) + "\n"


def _keep(folder: Path, row: dict[str, Any]) -> None:
    """Put the row in the place of an earlier one against the same."""
    from scratchlm.cli.console import err
    from scratchlm.runtime import write_text_atomically
    from scratchlm.study.posttrain_chapter import DUELS

    path = folder / DUELS
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kept = [one for one in rows if isinstance(one, dict) and one.get("against") != row["against"]]
        write_text_atomically(path, json.dumps([*kept, row], indent=1) + "\n")
    except (OSError, json.JSONDecodeError) as error:
        err().print(f"warning: {path} was not written, so the report does not show it: {error}")


def _print(row: dict[str, Any]) -> None:
    from scratchlm.cli.console import err, out, print_table, table

    judges = "both judge" if row["judges"] == ["both"] else f"judged by {', '.join(row['judges'])}"
    of_all = f" of {row['all_questions']:,}" if row["all_questions"] not in (None, row["questions"]) else ""
    out().print(
        f"{row['run']} at step {row['step']:,} against {row['against']} at step {row['against_step']:,}: "
        f"{row['questions']:,}{of_all} questions, {judges}",
        style="bold",
    )
    shown = table("", "value", "low", "high", numbers=("value", "low", "high"))
    for name, key in (("  its answer is likelier", "wins"), ("  ... if both were as long", "controlled")):
        shown.add_row(name, *(f"{100 * row[key][part]:.1f} %" for part in ("value", "low", "high")))
    print_table(shown)
    mine, other = row["characters"]
    out().print(
        f"  low to high: the true value, with 95 % confidence; {mine:,.0f} characters an answer against "
        f"{other:,.0f}",
        style="dim",
    )
    if row["overlap"] == 0:
        err().print(
            "warning: all answers of one side are longer: what is due to length cannot be told from what is "
            "not."
        )
