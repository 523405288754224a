"""The live view: what is drawn from events."""

from dataclasses import replace

import pytest
from rich.console import Console

from scratchlm.cli.live import LiveView, PlainView, watch
from scratchlm.cli.run_state import MAX_POINTS, RunState, figures, sparkline
from scratchlm.train.events import (
    Finished,
    Message,
    PhaseEnded,
    PhaseProgress,
    PhaseStarted,
    Sampled,
    Saved,
    StepEnded,
    Validated,
)


def step(number, loss, total=10):
    return StepEnded(number, total, loss, 1e-3, 0.5, number * 100, number / 4, 2000.0, None, 75.0)


EVENTS = [
    PhaseStarted("tokenizer", "bpe on stories"),
    PhaseProgress("tokenizer", 5, 10, "merges"),
    PhaseEnded("tokenizer", 2.5, {"vocab_size": 1536}),
    Message("1,000 parameters, 2 tokens."),
    step(1, 7.0),
    step(5, 3.0),
    Validated(5, 2.5, 1.25, 0.5, True),
    Sampled(5, "", "Once there\x1b[2J was a dog.", (("Once", 0.5),)),
    Saved(5, None),
]


@pytest.fixture
def drawn():
    def draw(events, *, width=80, height=30, finished=True, encoding="utf-8"):
        import io

        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(
            file=file, width=width, height=height, highlight=False, markup=False, color_system=None
        )
        state = RunState("demo")
        view = LiveView(state, console)
        for event in events:
            state.take(event)
        view.finished = finished
        with console.capture() as capture:
            console.print(view.render())
        return capture.get()

    return draw


def test_the_panel_shows_phases_loss_floor_speed_and_sample(drawn):
    text = drawn([*EVENTS, replace(step(6, 2.0), tokens_per_parameter=0.125)])
    assert "\u2713 tokenizer    1,536 entries" in text
    assert "2.5 s" in text
    assert "loss         2.000" in text
    assert "validation   2.500   1.250 bits per byte at step 5, the best so far" in text
    assert "floor        0.500   no model can beat it; 2.000 nats per token to go" in text
    assert "tokens/s" in text
    assert "seen         600 tokens, 1.50 epochs, 100 a step, 0.125 a parameter" in text
    assert "after step 5 it writes:" in text


def test_after_rewards_their_curve_leads_and_what_is_told_fits_in_the_line(drawn):
    told = {
        "reward_mean": 0.5,
        "reward_std": 0.1,
        "accuracy": 0.25,
        "finished": 1.0,
        "entropy": 0.75,
        "kl": 0.01,
    }
    told |= {"answer_tokens": 20.0, "reward_failures": 0.0}
    steps = [replace(step(number, 0.1), figures=told) for number in (1, 2)]
    text = drawn([*steps, Validated(2, 0.75, None, None, True)])
    assert "reward       0.500   \u2581\u2581" in text
    assert "validation   0.750   not solved at step 2, the best so far" in text
    line = next(line for line in text.splitlines() if "this step" in line)
    assert "accuracy 0.25, KL 0.01, entropy 0.75, tokens an answer 20" in line
    assert "\u2026" not in line
    text = drawn([replace(step(3, 0.1), figures=told | {"reward_failures": 0.5})])
    assert "failed rewards 0.5, accuracy 0.25, KL 0.01" in text


def test_a_sample_cannot_steer_the_terminal(drawn):
    text = drawn(EVENTS)
    assert "\x1b" not in text
    assert "was a dog." in text


def test_no_line_is_wider_than_the_terminal(drawn):
    for width in (30, 50, 80, 200):
        lines = drawn([*EVENTS, Sampled(6, "", "a long story " * 90, ())], width=width).splitlines()
        assert max(map(len, lines)) <= width


def test_a_long_sample_leaves_the_panel_in_sight_while_it_runs(drawn):
    text = drawn([*EVENTS, Sampled(6, "", "a long story " * 900, ())], height=24, finished=False)
    assert text.count("\n") <= 24
    assert "tokenizer" in text


def test_a_phase_in_progress_has_a_bar(drawn):
    text = drawn(EVENTS[:2], finished=False)
    assert "\u25cf tokenizer    " + "\u2501" * 15 + "\u2500" * 15 in text


def test_the_plan_stands_there_until_the_first_step(drawn):
    assert "1,000 parameters" in drawn(EVENTS[:4], finished=False)
    assert "1,000 parameters" not in drawn(EVENTS, finished=False)


def test_a_terminal_with_ascii_only_gets_ascii(drawn):
    text = drawn(EVENTS, encoding="ascii")
    assert "x tokenizer" in text
    assert text.replace("\ufffd", "?").isascii()


def test_a_sparkline_goes_from_full_to_low():
    assert sparkline([3.0, 2.0, 1.0], 3) == "\u2588\u2585\u2581"
    assert sparkline([4.0, 2.0], 2, floor=0.0) == "\u2588\u2585"
    assert sparkline([1.0, 1.0], 2) == "\u2581\u2581"
    assert sparkline([], 5) == ""
    assert len(sparkline([float(number) for number in range(1000)], 40)) == 40


def test_losses_are_thinned_and_keep_their_shape():
    state = RunState("x")
    for number in range(1, 5000):
        state.take(step(number, 5000.0 - number, total=5000))
    assert len(state.losses) <= MAX_POINTS
    assert state.losses == sorted(state.losses, reverse=True)
    assert state.losses[0] > 4900
    assert state.losses[-1] < 100


def test_figures_are_words():
    assert figures({"documents": 2000, "bytes_per_token": 4.123}) == "2,000 documents, 4.12 bytes per token"


def test_without_a_terminal_there_are_plain_lines(capsys):
    with watch("demo") as on_event:
        for event in [*EVENTS, step(10, 1.5), Finished({})]:
            on_event(event)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo"
    assert "tokenizer: done in 2.5 s, 1,536 entries" in lines
    assert "step 10/10: loss 1.500, 2,000 tokens/s, 1 min 15 s left" in lines
    assert "step 5: validation loss 2.500, 1.250 bits per byte, 2.000 above the floor of 0.500" in lines


def test_plain_lines_say_how_many_problems_are_not_solved(capsys):
    PlainView("demo").take(Validated(5, 0.75, None, None, True))
    assert capsys.readouterr().out.splitlines() == ["demo", "step 5: validation 0.750 not solved"]


def test_plain_lines_are_few(capsys):
    view = PlainView("demo")
    for number in range(1, 1000):
        view.take(step(number, 1.0, total=1000))
    assert len(capsys.readouterr().out.splitlines()) <= 3
