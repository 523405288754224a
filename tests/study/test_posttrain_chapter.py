"""The report of a post-trained run: what changed, measured before and after, with answers side by side."""

import json
import math

import pytest
from synthetic_run import SUMMARY, write_rows
from test_report import page_of

from scratchlm.study import units
from scratchlm.study.posttrain_chapter import DUELS, posttrain_chapter
from scratchlm.study.run_record import read_run

FACTS = {
    "stage": "grpo",
    "base": "runs/demo-sft",
    "base_step": 300,
    "adapter": "full",
    "trainable_parameters": 1_624_320,
    "train_items": 4_000,
    "before": {"loss": 0.6, "accuracy": 0.4, "formatted": 0.95, "answer_tokens": 30.5, "base_loss": 0.6},
    "after": {"loss": 0.25, "accuracy": 0.75, "formatted": 1.0, "answer_tokens": 31.0, "base_loss": 0.63},
}


@pytest.fixture
def assistant(run_folder):
    """A run after reinforcement learning."""
    return become(run_folder, FACTS)


def become(folder, facts, **figures):
    """Make a run folder that of a post-trained run; its training rows have `figures`, too."""
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"posttrain": facts}), encoding="utf-8")
    write_rows(
        folder / "metrics.jsonl",
        [
            {
                "kind": "train",
                "step": step,
                "tokens": 100 * step,
                "loss": 0.1,
                "reward_mean": step / 10,
                "kl": 0.01,
                **figures,
            }
            for step in range(1, 8)
        ],
    )
    write_rows(
        folder / "samples.jsonl",
        [
            {"step": step, "prompt": question, "text": f" answer {step} <b>to</b> {question}", "tokens": []}
            for step in (0, 4, 8)
            for question in ("What is 2 + 3?", "Where is the kite?")
        ],
    )
    return folder


def test_a_pretrained_run_has_no_such_chapter(run_folder):
    assert posttrain_chapter(read_run(run_folder)) is None
    assert "what changed" not in page_of(run_folder).text.lower()


def test_before_and_after_stand_side_by_side(assistant):
    chapter = posttrain_chapter(read_run(assistant))
    found = {change.name: (change.before, change.after) for change in chapter.changes}
    assert found["accuracy"] == (units.percent(0.4), units.percent(0.75))
    assert found["length of an answer"] == ("30.5", "31.0")
    assert found["perplexity on the base's text"] == ("1.822", "1.878")
    assert not {"margin", "wrong answers"} & set(found)


def test_before_preferences_are_learnt_all_pairs_are_tied(run_folder):
    before, after = (
        {"accuracy": 0.0, "margin": 0.0, "likelier": 0.8},
        {"accuracy": 0.9, "margin": 2.0, "likelier": 0.95},
    )
    facts = FACTS | {"stage": "dpo", "before": before, "after": after}
    found = {c.name: c.before for c in posttrain_chapter(read_run(become(run_folder, facts))).changes}
    assert found["accuracy"] == "all tied"
    assert found["better answer is likelier"] == units.percent(0.8)


def test_forgetting_is_the_rise_of_perplexity(assistant):
    rise = math.exp(0.03) - 1
    meaning = posttrain_chapter(read_run(assistant)).changes[-1].meaning
    assert f"+{100 * rise:.1f} %" in meaning


def test_the_first_and_the_last_answers_to_each_question_are_shown(assistant):
    chapter = posttrain_chapter(read_run(assistant))
    assert (chapter.first_step, chapter.last_step) == (0, 8)
    assert [answers.question for answers in chapter.answers] == ["What is 2 + 3?", "Where is the kite?"]
    assert chapter.answers[1].before.startswith("answer 0")
    assert chapter.answers[1].after.startswith("answer 8")


def test_an_answer_need_not_state_anything(run_folder):
    row = {"step": 5, "prompt": "What is 1 + 1?", "text": "2", "tokens": []}
    row |= {"consistency": {"num_facts": 0, "num_consistent": 0}}
    missing = "It makes no statement that could be checked."
    write_rows(run_folder / "samples.jsonl", [row])
    assert missing in page_of(run_folder).text
    write_rows(become(run_folder, FACTS) / "samples.jsonl", [row])
    assert missing not in page_of(run_folder).text


def test_comparisons_with_others_are_shown_and_broken_ones_cost_nothing(assistant):
    estimate = {"value": 0.625, "low": 0.5, "high": 0.75}
    row = {"against": "base", "judges": ["both"], "questions": 1200, "wins": estimate, "controlled": estimate}
    path = assistant / DUELS
    path.write_text(json.dumps([row, "?", {"against": 3, "judges": 7}]), encoding="utf-8")
    duels = posttrain_chapter(read_run(assistant)).duels
    assert duels[0][:2] == ("what it began with", "both")
    assert duels[0].questions == "1,200"
    assert duels[0].controlled == f"{units.percent(0.625)} ({units.percent(0.5)} to {units.percent(0.75)})"
    assert duels[1].against == "3"
    assert "if both were as long" in page_of(assistant).text
    path.write_text("{", encoding="utf-8")
    assert posttrain_chapter(read_run(assistant)).duels == []


def test_only_figures_that_were_recorded_are_drawn(assistant):
    (panels,) = posttrain_chapter(read_run(assistant)).panels
    assert [panel.title for panel in panels] == ["reward", "KL to the base, nats per token"]


@pytest.mark.parametrize(
    ("stage", "title", "keys"),
    [
        ("sft", "loss of answers, nats per token", ("loss", "loss")),
        ("dpo", "preference loss of a pair", ("loss", "loss")),
        ("grpo", "share of answers that are right", ("accuracy", "accuracy")),
    ],
)
def test_the_learning_curves_say_what_they_show(run_folder, stage, title, keys):
    folder = become(run_folder, FACTS | {"stage": stage}, accuracy=0.5)
    learning = posttrain_chapter(read_run(folder)).learning
    assert (learning.title, learning.in_training, learning.in_validation) == (title, *keys)
    page = page_of(folder).text
    assert title in page
    assert "right next token" not in page


def test_a_learning_curve_without_rows_is_left_out(run_folder):
    folder = become(run_folder, FACTS | {"stage": "grpo"})  # its rows have no accuracy
    assert "share of answers that are right" not in page_of(folder).text


def test_the_page_says_what_changed_and_interprets_nothing_that_a_model_wrote(assistant):
    page = page_of(assistant)
    assert (page.open, page.mistakes) == ([], [])
    assert "Reinforcement learning: what changed" in page.text
    assert "runs/demo-sft at step 300" in page.text
    assert "<b>to</b>" in page.text
    assert "scratchlm chat" in page.text
    assert "trained from scratch" not in page.text
    assert "equally likely tokens" not in page.text


@pytest.mark.parametrize(
    "facts",
    [
        {"stage": "sft"},
        {"stage": "dpo", "before": {}, "after": {"loss": math.nan, "base_loss": 1e9}},
        {"stage": "grpo", "before": "?", "after": None, "base_step": "x", "trainable_parameters": None},
        {"stage": "sft", "before": {"base_loss": 0.0}, "after": {"base_loss": 1e9, "loss": math.inf}},
    ],
)
def test_missing_and_strange_figures_cost_their_line_alone(run_folder, facts):
    page = page_of(become(run_folder, facts))
    assert "what changed" in page.text
    assert (page.open, page.mistakes) == ([], [])


def test_an_unknown_stage_has_no_chapter(run_folder):
    assert posttrain_chapter(read_run(become(run_folder, {"stage": "other"}))) is None
