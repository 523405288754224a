"""Random submits, cancels, steps and refreshes: no slot is lost, every text is the one that it is alone."""

import random

import pytest
import torch

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.runner_fused import FusedRunner
from scratchlm.generate.speculate import NgramDrafter
from scratchlm.model import MODELS, ModelConfig

SLOTS = 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=257, context_length=16, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1
    )
    return MODELS.build("transformer", config).eval()


def some_request(choose):
    """A request of any kind, its prompt from one token to more than the window."""
    sampling = SamplingConfig(
        temperature=choose.choice([0.0, 0.8, 1.5]),
        top_k=choose.choice([None, 5]),
        top_p=choose.choice([None, 0.9]),
        repetition_penalty=choose.choice([1.0, 1.3]),
        presence_penalty=choose.choice([0.0, 0.5]),
        logit_bias=choose.choice([{}, {7: 3.0}]),
        max_new_tokens=choose.choice([0, 1, 3, 12, 25]),
        stop=choose.choice([(), ("a", "bc")]),
        seed=choose.randrange(1000),
    )
    prompt = [choose.randrange(257) for _ in range(choose.choice([1, 2, 9, 15, 16]))]
    return Request(
        prompt_ids=prompt * choose.choice([1, 1, 1, 2]) if len(prompt) > 9 else prompt,
        sampling=sampling,
        n=choose.choice([1, 1, 1, 4]),
        logprobs=choose.choice([None, 0, 2]),
        stop_ids=choose.choice([(), None, (7,)]),
    )


def play(engine, rounds, choose, *, refreshes):
    """Do random things, then run on to the end; return requests, events by request, what was cancelled."""
    asked, told, cancelled = {}, {}, set()

    def step():
        for event in engine.step():
            told[event.request_id].append(event)
        stats = engine.stats()
        assert stats.running <= SLOTS
        assert stats.finished + stats.running + stats.waiting == sum(r.n for r in asked.values())

    for _ in range(rounds):
        action = choose.choices(["submit", "step", "cancel", "refresh"], [4, 10, 1, 1])[0]
        if action == "submit":
            request = some_request(choose)
            request_id = engine.submit(request)
            asked[request_id], told[request_id] = request, []
        elif action == "cancel" and asked:
            request_id = choose.choice(list(asked))
            over = sum(event.finish_reason is not None for event in told[request_id])
            if engine.cancel(request_id):
                assert over < asked[request_id].n
                cancelled.add(request_id)
        elif action == "step":
            step()
        elif action == "refresh" and refreshes:  # what is computed again is rounded otherwise
            engine.refresh()
    while engine.is_busy:
        step()
    return asked, told, cancelled


@pytest.mark.parametrize(
    ("seed", "rounds"), [(0, 60), *(pytest.param(seed, 300, marks=pytest.mark.slow) for seed in range(1, 7))]
)
@pytest.mark.parametrize("draft", [False, True])
def test_random_use_loses_no_slot_and_no_text(model, tokenizer, seed, rounds, draft):
    choose = random.Random(seed)
    engine = Engine(
        model,
        tokenizer,
        chunk=choose.choice([1, 4, 16]),
        runner=FusedRunner(model, SLOTS),
        drafter=NgramDrafter() if draft else None,
    )
    asked, told, cancelled = play(engine, rounds, choose, refreshes=draft)
    assert engine.stats()[1:3] == (0, 0)
    alone = Engine(model, tokenizer, chunk=engine.chunk, runner=FusedRunner(model, SLOTS))
    assert len(asked) >= rounds // 12
    for request_id, request in asked.items():
        mine = [[e for e in told[request_id] if e.index == index] for index in range(request.n)]
        for events in mine:
            assert [event.finish_reason is not None for event in events] == [False] * (len(events) - 1) + [
                True
            ]
        if request_id in cancelled:
            continue
        (expected,) = alone.run([request])
        for events, choice in zip(mine, expected.choices, strict=True):
            tokens = tuple(event.token for event in events if event.token is not None)
            assert [token.token_id for token in tokens] == [token.token_id for token in choice.tokens]
            assert events[-1].finish_reason == choice.finish_reason
            assert "".join(event.text for event in events) == choice.text
            if not draft:  # guesses are confirmed in passes of another size, which round otherwise
                assert tokens == choice.tokens
