"""The win rate with length control: hand-made cases whose answer is known, and a judge that is recomputed."""

import math

import pytest
import torch

from scratchlm.evaluate.win_rate import Player, answer_all, judge, win_rate
from scratchlm.model import ModelConfig
from scratchlm.model.transformer import TransformerLM
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chat import CHAT_TOKENS, ChatTemplate

QUESTIONS = [({"role": "user", "content": text},) for text in ("Say a cat.", "Why?", "Say a mat.")]


def duel(*groups):
    """A comparison of (number, wins, length of A, length of B)."""
    scores, lengths, others = [], [], []
    for number, wins, length, other in groups:
        scores += [1.0] * wins + [-1.0] * (number - wins)
        lengths += [length] * number
        others += [other] * number
    return win_rate(scores, [0.0] * len(scores), lengths, others)


def test_a_longer_answer_of_equal_quality_wins_half():
    # the judge takes the longer one nine times of ten, and A is longer four times of five
    found = duel((800, 720, 30, 20), (200, 20, 20, 30))
    assert found.wins.value == pytest.approx(0.74)
    assert found.controlled.value == pytest.approx(0.5, abs=1e-3)
    assert found.length_effect == pytest.approx(math.log(9) / math.tanh(1), rel=1e-3)


def test_quality_is_found_beneath_the_length():
    # theta = 1, phi tanh(1) = 2: chances 1 / (1 + e^-3) and 1 / (1 + e^1)
    longer, shorter = (round(2000 / (1 + math.exp(-value))) for value in (3, -1))
    found = duel((2000, longer, 30, 20), (2000, shorter, 20, 30))
    assert found.controlled.value == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-3)


@pytest.mark.parametrize("wins", [0, 1, 35, 50, 99, 100])
def test_of_equal_lengths_nothing_is_taken_away(wins):
    found = duel((100, wins, 20, 20))
    assert found.controlled.value == pytest.approx(found.wins.value, abs=0.02)
    for name in ("low", "high"):
        assert getattr(found.controlled, name) == pytest.approx(getattr(found.wins, name), abs=0.02)


def test_sides_may_be_changed():
    scores, others = [0.3, 0.1, -2.0, 0.5, 0.0, -math.inf], [0.1, 0.2, -2.0, -math.inf, 0.4, -math.inf]
    lengths, other_lengths = [5, 9, 3, 4, 7, 0], [6, 2, 3, 0, 1, 0]
    one = win_rate(scores, others, lengths, other_lengths)
    two = win_rate(others, scores, other_lengths, lengths)
    assert one.wins.value == pytest.approx(0.5)
    assert one.controlled.value + two.controlled.value == pytest.approx(1.0)
    assert one.controlled.low + two.controlled.high == pytest.approx(1.0)


def test_where_all_answers_of_one_side_are_longer_the_interval_says_that_nothing_is_known():
    found = duel((100, 90, 30, 20))
    assert found.overlap == 0.0
    assert found.controlled.low < 0.1
    assert found.controlled.high > 0.9
    assert duel((50, 40, 30, 20), (50, 10, 20, 30)).overlap == 1.0


def test_comparisons_of_nothing_are_refused():
    for given in ([[], [], [], []], [[1.0], [2.0, 3.0], [1], [1]]):
        with pytest.raises(ValueError, match="two scores and two lengths for each"):
            win_rate(*given)


@pytest.mark.parametrize("special", [True, False])
def test_the_judge_says_the_mean_log_probability_of_an_answers_tokens(special):
    names = (END_OF_TEXT, *(CHAT_TOKENS if special else ()))
    tokenizer = train_bpe(["a cat sat on a mat. Why? Say it."] * 3, vocab_size=290, special_tokens=names)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, context_length=48, d_model=16, num_layers=1, num_heads=2
    )
    player = Player(TransformerLM(config).eval(), tokenizer, torch.device("cpu"))
    answers = ["A cat.", "  ", "on a mat"]
    found = judge(player, QUESTIONS, answers)
    assert found[1] == -math.inf
    template = ChatTemplate(tokenizer)
    for place in (0, 2):
        context = template.render(QUESTIONS[place])
        said = tokenizer.encode_ordinary(answers[place] if special else f" {answers[place]}")
        log_p = player.model(torch.tensor([context + said]))[0].log_softmax(dim=-1)
        wanted = [log_p[len(context) - 1 + i, token].item() for i, token in enumerate(said)]
        assert found[place] == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
    written = answer_all(player, QUESTIONS, max_new_tokens=4)
    for question, text in zip(QUESTIONS, written, strict=True):
        context, said = template.render(question), []
        while len(said) < 4 and (not said or said[-1] not in template.stop_ids):
            said.append(int(player.model(torch.tensor([context + said]))[0, -1].argmax()))
        assert text == tokenizer.decode([token for token in said if token not in template.stop_ids])
