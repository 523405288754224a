"""Choosing for all rows at once: bit for bit what the naive twin chooses for each row alone."""

import itertools
import math

import pytest
import torch

from scratchlm.generate.choosing import Chooser, choose, describe, keep_top_p_by_value
from scratchlm.generate.sampling import SamplingConfig, bias, keep_top_p, sample

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.3, "top_k": 20},
    {"top_p": 0.9},
    {"top_p": 0.6, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 5, "top_p": 0.6},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"repetition_penalty": 1.3, "min_p": 0.02},
]


def choosers(settings, vocab_size):
    return [
        Chooser(SamplingConfig(**setting), row, [1, 2, row], vocab_size)
        for row, setting in enumerate(settings)
    ]


@pytest.mark.parametrize("vocab_size", [23, 4099])
def test_each_row_gets_what_the_twin_gives_it_alone(vocab_size):
    rows = choosers(SETTINGS, vocab_size)
    generators = [torch.Generator().manual_seed(row) for row in range(len(SETTINGS))]
    written = [[1, 2, row] for row in range(len(SETTINGS))]
    for _ in range(5):
        logits = torch.randn(len(rows), vocab_size) * 3
        found = choose(logits, rows, [None] * len(rows))
        for row, (token, setting) in enumerate(zip(found, SETTINGS, strict=True)):
            previous = torch.tensor([written[row]])
            expected = sample(logits[row : row + 1], SamplingConfig(**setting), generators[row], previous)
            assert token.token_id == int(expected)
            rows[row].note(token.token_id)
            written[row].append(token.token_id)


@pytest.mark.parametrize("vocab_size", [23, pytest.param(4096, marks=pytest.mark.slow), 4099])
def test_a_row_does_not_see_its_neighbours(vocab_size):
    logits = torch.randn(len(SETTINGS), vocab_size) * 3
    counts = [row % 3 or None for row in range(len(SETTINGS))]
    together = choose(logits, choosers(SETTINGS, vocab_size), counts)
    for first, last in itertools.combinations(range(len(SETTINGS) + 1), 2):
        part = choosers(SETTINGS, vocab_size)[first:last]
        assert choose(logits[first:last], part, counts[first:last]) == together[first:last]
    backwards = choose(logits.flip(0), choosers(SETTINGS, vocab_size)[::-1], counts[::-1])
    assert backwards[::-1] == together


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_top_p_by_value_is_top_p(p):
    logits = torch.randn(8, 2000) * torch.tensor([[0.1], [1.0], [2.0], [4.0], [6.0], [8.0], [9.0], [20.0]])
    logits[6:] = logits[6:].round()  # many equal tokens, at the border, too
    probabilities = torch.softmax(logits, dim=-1)
    assert torch.equal(keep_top_p_by_value(probabilities, p), keep_top_p(probabilities, p))
    few = torch.softmax(logits[:, :300], dim=-1)
    assert torch.equal(keep_top_p_by_value(few, p), keep_top_p(few, p))


def test_penalties_and_biases_are_those_of_the_twin():
    config = SamplingConfig(presence_penalty=0.7, frequency_penalty=0.3, logit_bias={4: -2.0, 9: 1.5})
    chooser, counts = Chooser(config, 0, [4], 20), {}
    for token_id in (3, 3, 9, 3, 5):
        chooser.note(token_id)
        counts[token_id] = counts.get(token_id, 0) + 1
    logits = torch.randn(20)
    torch.testing.assert_close(chooser.adjust(logits), bias(logits, config, counts))
    untouched = Chooser(SamplingConfig(), 0, [4], 20)
    untouched.note(3)
    assert untouched.adjust(logits) is logits


def test_the_probability_of_the_draw_is_told():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    chances = {0: 0.0, 1: 0.625, 2: 0.375}
    seen = set()
    for seed in range(20):
        (token,) = choose(logits, [Chooser(SamplingConfig(top_k=2), seed, [0], 3)], [None])
        assert math.exp(token.drawn_logprob) == pytest.approx(chances[token.token_id])
        assert math.exp(token.logprob) == pytest.approx([0.2, 0.5, 0.3][token.token_id])
        seen.add(token.token_id)
    assert seen == {1, 2}
    (greedy,) = choose(logits, [Chooser(SamplingConfig(temperature=0.0), 0, [0], 3)], [None])
    assert (greedy.token_id, greedy.drawn_logprob) == (1, 0.0)


def test_alternatives_are_the_likeliest_with_their_logarithms():
    logits = torch.randn(3, 50)
    found = describe(logits, torch.tensor([5, 6, 7]), [None, 2, 4])
    expected = torch.log_softmax(logits, dim=-1)
    assert [len(token.alternatives) for token in found] == [0, 2, 4]
    for row, token in enumerate(found):
        assert token.logprob == pytest.approx(expected[row, token.token_id].item(), abs=1e-6)
        for token_id, logprob in token.alternatives:
            assert logprob == pytest.approx(expected[row, token_id].item(), abs=1e-6)
        best = expected[row].topk(len(token.alternatives))[1].tolist() if token.alternatives else []
        assert [token_id for token_id, _ in token.alternatives] == best
