"""Speculative decoding: guesses save passes and change nothing of what is written."""

import itertools

import pytest
import torch

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner
from scratchlm.generate.speculate import Drafter, ModelDrafter, NgramDrafter
from scratchlm.model import MODELS, ModelConfig


def build(seed=0, **settings):
    torch.manual_seed(seed)
    base = {"vocab_size": 23, "context_length": 48, "d_model": 32, "num_layers": 2, "num_heads": 4}
    return MODELS.build("transformer", ModelConfig(**{**base, **settings})).eval()


def requests(number=3, **settings):
    settings = {"temperature": 0.0, "max_new_tokens": 40, **settings}
    return [
        Request(
            prompt_ids=[1, 2 + i, 3, 4], sampling=SamplingConfig(**settings, seed=i), stop_ids=(), logprobs=1
        )
        for i in range(number)
    ]


def ids_of(results):
    return [[token.token_id for token in result.choices[0].tokens] for result in results]


class Stubborn(Drafter):
    """Always guesses the same."""

    def propose(self, ids, room):
        return [7, 7, 7][:room]


@pytest.mark.parametrize("runner", [pytest.param(PlainRunner, marks=pytest.mark.slow), FusedRunner])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("draft", ["n-gram", "model", "stubborn"])
def test_the_text_is_the_one_without_guesses(runner, temperature, draft):
    model = build()
    drafter = {"n-gram": NgramDrafter(longest=2), "stubborn": Stubborn()}.get(draft) or ModelDrafter(
        build(num_layers=1)
    )
    asked = requests(2, temperature=temperature, max_new_tokens=50)  # beyond the 48 tokens of the window
    expected = Engine(model, None, runner=runner(model, 2)).run(asked)
    engine = Engine(model, None, runner=runner(model, 2), drafter=drafter)
    found = engine.run(asked)
    assert ids_of(found) == ids_of(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one.choices[0].tokens, other.choices[0].tokens, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert engine.stats().drafted > 0
    assert engine.stats().new_tokens == 2 * 50


def test_right_guesses_save_passes():
    model = build()
    plain, guessed = Engine(model, None, slots=1), Engine(model, None, slots=1, drafter=ModelDrafter(model))
    assert ids_of(plain.run(requests(1))) == ids_of(guessed.run(requests(1)))
    stats = guessed.stats()
    assert stats.confirmed == stats.drafted > 25  # the model guesses for itself: every guess is right
    assert stats.steps < plain.stats().steps / 3


def test_a_stop_token_within_a_guess_ends_the_text():
    model = build()
    (free,) = Engine(model, None, slots=1).run(requests(1))
    sixth = ids_of([free])[0][5]
    length = ids_of([free])[0].index(sixth) + 1
    request = Request(prompt_ids=[1, 2, 3, 4], sampling=SamplingConfig(temperature=0.0), stop_ids=(sixth,))
    (stopped,) = Engine(model, None, slots=1, drafter=ModelDrafter(model)).run([request])
    assert stopped.choices[0].finish_reason == "stop"
    assert ids_of([stopped])[0] == ids_of([free])[0][:length]


@pytest.mark.slow
def test_draws_follow_the_model_whatever_is_guessed():
    model = build(vocab_size=5)
    sampling = SamplingConfig(max_new_tokens=2, seed=0)

    class Wrong(Drafter):
        def propose(self, ids, room):
            return [3][:room]

    count = 400
    engine = Engine(model, None, slots=1, drafter=Wrong())
    seen = torch.zeros(5)
    for first in range(0, count, 100):
        request = Request(
            prompt_ids=[1], sampling=sampling.model_copy(update={"seed": first}), n=100, stop_ids=()
        )
        for choice in engine.run([request])[0].choices:
            seen[choice.tokens[0].token_id] += 1
    expected = torch.softmax(model(torch.tensor([[1]]))[0, -1], dim=0).detach()
    torch.testing.assert_close(seen / count, expected, atol=0.1, rtol=0)  # four standard deviations


def test_n_grams_of_worked_examples():
    assert NgramDrafter(longest=2).propose([5, 6, 7, 8, 5, 6], 9) == [7, 8, 5, 6]
    assert NgramDrafter(longest=2).propose([5, 6, 7, 8, 5, 6], 2) == [7, 8]
    assert NgramDrafter(longest=2).propose([5, 6, 1, 6, 2, 5, 6], 1) == [1]  # the longer match wins
    assert NgramDrafter().propose([1, 2, 3], 4) == []
    assert NgramDrafter().propose([1], 4) == []


def test_n_grams_of_a_growing_text_are_those_of_the_text_as_a_whole():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, (80,), generator=generator).tolist()
    growing = NgramDrafter(longest=3, most=2)
    for end in range(1, len(ids) + 1):
        assert growing.propose(ids[:end], 9) == NgramDrafter(longest=3, most=2).propose(ids[:end], 9)
    growing.begin()
    assert growing.propose([1, 2, 3], 9) == []


def test_a_guess_reads_what_is_new_alone():
    class Counted(list):
        read = 0

        def __getitem__(self, place):
            found = super().__getitem__(place)
            Counted.read += len(found) if isinstance(place, slice) else 1
            return found

    drafter, ids = NgramDrafter(), Counted([1, 2, 3] * 2000)
    drafter.propose(ids, 4)
    Counted.read = 0
    for token_id in (1, 2, 3):
        ids.append(token_id)
        assert drafter.propose(ids, 2) == [token_id % 3 + 1, (token_id + 1) % 3 + 1]
    assert Counted.read < 60  # not thousands


@pytest.mark.parametrize("draft", ["n-gram", "model"])
def test_guesses_about_a_text_do_not_come_from_the_one_before(draft):
    model = build()
    engine = Engine(
        model, None, slots=1, drafter=NgramDrafter() if draft == "n-gram" else ModelDrafter(model)
    )
    counts = [(0, 0)]
    for number in (0, 1, 0):
        engine.run(requests(2)[number : number + 1])
        counts.append(engine.stats()[-2:])
    first, _, again = (
        tuple(b - a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(counts)
    )
    assert first == again
    assert first[1] > 0


@pytest.mark.parametrize("number", [1, 3])
def test_each_slot_has_a_draft_model_that_reads_each_token_once(number):
    model, small = build(), build(num_layers=1, seed=4)
    engine = Engine(model, None, slots=3, drafter=ModelDrafter(small))
    passes = []
    for drafter in engine._drafters:
        plain = drafter.runner.prefill
        drafter.runner.prefill = lambda slot, ids, plain=plain: (passes.append(len(ids)), plain(slot, ids))[1]
    engine.run(requests(number, max_new_tokens=40))
    assert max(passes) <= 6  # the prompt, or what was written since the last guess; never the text again


def test_drafters_need_something_to_guess():
    with pytest.raises(ValueError, match="NgramDrafter: longest=0"):
        NgramDrafter(longest=0)
    with pytest.raises(ValueError, match="ModelDrafter: most=0"):
        ModelDrafter(build(), most=0)
