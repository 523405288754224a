"""Beam search: equal to its naive twin, exact where it is wide enough, and ordered by what was asked for."""

import itertools

import pytest
import torch

from scratchlm.generate.beam import BeamConfig, beam_search, beam_search_reference
from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Request
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.model import MODELS, ModelConfig

RUNNERS = {"fused": FusedRunner, "plain": PlainRunner}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    config = ModelConfig(
        vocab_size=11, context_length=16, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2
    )
    model = MODELS.build("transformer", config)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # sharp enough that some texts end and some do not
    return model


@pytest.mark.parametrize("runner", ["fused", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("penalty", [-0.5, 1.0, 2.0])
@pytest.mark.parametrize(("beams", "stop_ids"), [(3, (3, 5)), (5, ()), (8, (3,))])
def test_it_is_the_search_that_keeps_nothing(model, runner, penalty, beams, stop_ids):
    config = BeamConfig(beams=beams, length_penalty=penalty, max_new_tokens=9)
    expected = beam_search_reference(model, [1, 2], config, stop_ids=stop_ids)
    slots = RUNNERS[runner](model, beams + 1)  # one more than needed
    found = beam_search(model, [1, 2], config, stop_ids=stop_ids, runner=slots)
    assert [beam.token_ids for beam in found] == [beam.token_ids for beam in expected]
    assert [beam.finished for beam in found] == [beam.finished for beam in expected]
    assert [beam.score for beam in found] == pytest.approx([beam.score for beam in expected], abs=1e-5)
    assert len(found) == beams


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_search_wide_enough_finds_the_best_of_all_texts(penalty):
    torch.manual_seed(0)
    model = MODELS.build(
        "transformer", ModelConfig(vocab_size=4, context_length=8, d_model=16, num_layers=1, num_heads=2)
    )
    texts = [(*ids[: ids.index(0)], 0) if 0 in ids else ids for ids in itertools.product(range(4), repeat=3)]
    scores = {}
    for ids in set(texts):
        logprobs = torch.log_softmax(model(torch.tensor([[1, *ids]]))[0], dim=-1)
        total = sum(logprobs[place, token].item() for place, token in enumerate(ids))
        scores[ids] = total / len(ids) ** penalty
    best = sorted(scores, key=scores.get, reverse=True)
    config = BeamConfig(beams=16, length_penalty=penalty, max_new_tokens=3)
    found = beam_search(model, [1], config, stop_ids=(0,))
    assert [beam.token_ids for beam in found] == best[:16]
    assert [beam.score for beam in found] == pytest.approx([scores[ids] for ids in best[:16]], abs=1e-5)


def test_one_beam_takes_the_likeliest_token_each_time(model):
    (beam,) = beam_search(model, [1, 2], BeamConfig(beams=1, max_new_tokens=8))
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=8)
    (result,) = Engine(model, None, slots=1).run([Request(prompt_ids=[1, 2], sampling=greedy)])
    assert beam.token_ids == tuple(token.token_id for token in result.choices[0].tokens)
    assert beam.logprob == pytest.approx(sum(t.logprob for t in result.choices[0].tokens), abs=1e-4)


def test_a_wider_search_finds_likelier_texts(model):
    one, eight = (
        beam_search(model, [1, 2], BeamConfig(beams=beams, length_penalty=0.0, max_new_tokens=6))[0].logprob
        for beams in (1, 8)
    )
    assert eight > one + 0.1


def test_the_room_ends_a_search_and_impossible_ones_are_refused(model):
    (beam,) = beam_search(model, [1] * 13, BeamConfig(beams=1))
    assert (len(beam.token_ids), beam.finished) == (4, False)
    with pytest.raises(ValueError, match="the prompt has 17 tokens; 1 to 16 are possible"):
        beam_search(model, [1] * 17, BeamConfig())
    with pytest.raises(ValueError, match="4 beams and 2 slots"):
        beam_search(model, [1], BeamConfig(beams=4), runner=FusedRunner(model, 2))
    with pytest.raises(ValueError, match="beams"):
        BeamConfig(beams=0)
