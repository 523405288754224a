"""Continuous batching: neighbours change nothing, slots are free again, each gets what it asked for."""

import math

import pytest
import torch

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner
from scratchlm.model import MODELS, ModelConfig

RUNNERS = {"plain": PlainRunner, "fused": FusedRunner}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=257, context_length=24, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2
    )
    model = MODELS.build("transformer", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "ffn" in name:
                parameter.mul_(3)  # large enough that the text depends on the past
    return model


@pytest.fixture(params=["fused", pytest.param("plain", marks=pytest.mark.slow)])
def engine(request, model, tokenizer):
    """Makes engines over one kind of runner."""

    def make(slots=4, chunk=4):
        return Engine(model, tokenizer, chunk=chunk, runner=RUNNERS[request.param](model, slots))

    return make


def asks(number, **settings):
    """Request number i: its own prompt, length, seed and sampler."""
    sampling = SamplingConfig(
        temperature=(0.0, 0.7, 1.3)[number % 3],
        top_k=(None, 20)[number % 2],
        top_p=(None, None, 0.9)[number % 3],
        repetition_penalty=(1.0, 1.2)[number % 2],
        frequency_penalty=(0.0, 0.0, 0.0, 0.5)[number % 4],
        max_new_tokens=5 + 3 * number,  # the longer ones slide over the 24 tokens
        seed=number,
    )
    prompt = [0, *(1 + (7 * number + 3 * i) % 256 for i in range(1 + 3 * number))]
    return Request(prompt_ids=prompt, sampling=sampling, stop_ids=(), **{"logprobs": 2, **settings})


def plain(ids, **settings):
    return Request(prompt_ids=ids, sampling=SamplingConfig(**{"temperature": 0.0, **settings}), stop_ids=())


def test_a_result_does_not_depend_on_its_neighbours(engine):
    requests = [asks(number) for number in range(7)]
    alone = [engine().run([request])[0] for request in requests]
    together = engine().run(requests)  # seven in four slots: some wait, and slots are used again
    assert together == alone  # every token, every logarithm, bit for bit
    assert engine().run(requests[::-1])[::-1] == alone
    assert len({choice.text for result in alone for choice in result.choices}) == 7


def test_what_a_slot_held_before_leaves_no_trace(engine):
    expected = engine(slots=2).run([asks(3)])
    used = engine(slots=2)
    used.run([asks(6), asks(5), asks(4)])
    for keys, values in used.runner.memory():
        keys.fill_(math.nan)
        values.fill_(math.nan)
    assert used.run([asks(3)]) == expected


def test_a_cancelled_request_frees_its_slots_and_disturbs_nobody(engine):
    expected = engine(slots=3).run([asks(2)])[0].choices[0].tokens
    used, events = engine(slots=3), []
    kept = used.submit(asks(2))
    others = [used.submit(asks(6, n=2)), used.submit(asks(5)), used.submit(asks(4))]
    for steps, other in enumerate(others):
        for _ in range(steps):  # before it has a slot, in the middle of its prompt, later
            events += used.step()
        assert used.cancel(other)
        assert not used.cancel(other)
    while used.is_busy:
        events += used.step()
    tokens = [event.token for event in events if event.request_id == kept]
    ends = [event.finish_reason for event in events if event.finish_reason]
    assert tuple(tokens) == expected
    assert sorted(ends) == ["cancelled"] * 4 + ["length"]
    assert used.stats().running == used.stats().waiting == 0
    assert used.stats().finished == 5


def test_a_hundred_cancelled_requests_leave_all_slots(engine):
    used = engine(slots=2)
    for number in range(100):
        request_id = used.submit(asks(number % 7))
        used.step()
        used.cancel(request_id)
    used.step()
    assert used.stats()[1:4] == (0, 0, 100)
    assert not used.cancel(12345)


def test_a_long_prompt_is_computed_in_chunks_one_a_step(engine, model):
    used = engine(slots=2, chunk=3)
    first, second = used.submit(plain([0, 5, 6, 7, 8])), used.submit(plain([0, 9, 10]))
    seen = []
    for _ in range(4):
        before = used.stats().prompt_tokens
        events = used.step()
        seen.append((used.stats().prompt_tokens - before, sorted({event.request_id for event in events})))
    assert seen == [(3, []), (2, [first]), (3, [first, second]), (0, [first, second])]


def test_short_prompts_go_through_together_up_to_a_chunks_tokens(engine):
    used = engine(slots=3, chunk=6)
    for length in (2, 3, 4):
        used.submit(plain([0, *range(5, 4 + length)]))
    totals = []
    for _ in range(3):
        used.step()
        totals.append(used.stats().prompt_tokens)
    assert totals == [5, 9, 9]


def test_each_continuation_has_its_own_seed(engine):
    settings = {"temperature": 1.0, "max_new_tokens": 6}
    (many,) = engine().run([Request(prompt_ids=[0, 9], sampling=SamplingConfig(**settings), n=3)])
    apart = [
        engine().run([Request(prompt_ids=[0, 9], sampling=SamplingConfig(**settings, seed=seed))])[0]
        for seed in range(3)
    ]
    assert many.choices == tuple(result.choices[0] for result in apart)
    assert len({choice.tokens for choice in many.choices}) == 3


def test_logarithms_are_those_of_the_model(engine, model):
    prompt = [0, 9, 200, 31, 7, 77]
    request = Request(
        prompt_ids=prompt,
        sampling=SamplingConfig(temperature=0.5, top_k=2, max_new_tokens=4, seed=5),
        logprobs=3,
        echo=True,
        stop_ids=(),
    )
    (result,) = engine().run([request])
    infos = (*result.prompt, *result.choices[0].tokens)
    ids = torch.tensor([[info.token_id for info in infos]])
    expected = torch.log_softmax(model(ids)[0], dim=-1)
    assert [info.token_id for info in result.prompt] == prompt
    assert infos[0].logprob is None
    for place, info in enumerate(infos[1:]):
        assert info.logprob == pytest.approx(expected[place, info.token_id].item(), abs=1e-4)
        values, best = expected[place].topk(3)
        assert [i for i, _ in info.alternatives] == best.tolist()
        assert [v for _, v in info.alternatives] == pytest.approx(values.tolist(), abs=1e-4)


def test_echo_changes_nothing_of_the_continuation(engine):
    assert engine().run([asks(4, echo=True)])[0].choices == engine().run([asks(4)])[0].choices


def test_a_prompt_can_be_scored_without_writing_anything(engine):
    sampling = SamplingConfig(max_new_tokens=0)
    scored, echoed, nothing = engine().run(
        [
            Request(prompt_ids=[0, 5, 6], sampling=sampling, echo=True, logprobs=0),
            Request(prompt_ids=[0, 5, 6], sampling=sampling, echo=True),
            Request(prompt_ids=[0, 5, 6], sampling=sampling),
        ]
    )
    assert [info.logprob is None for info in scored.prompt] == [True, False, False]
    assert [info[1:3] for info in echoed.prompt] == [(None, ())] * 3
    assert nothing.prompt == ()
    assert {result.choices[0].finish_reason for result in (scored, echoed, nothing)} == {"length"}


def test_a_full_window_ends_the_text_where_that_is_asked_for(engine):
    request = Request(
        prompt_ids=[0] * 20,
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=50),
        full="stop",
        stop_ids=(),
    )
    (result,) = engine().run([request])
    assert len(result.choices[0].tokens) == 5  # the window has 24 places; the fifth token needs none
    assert result.choices[0].finish_reason == "length"
    with pytest.raises(ValueError, match="the prompt has 25 tokens and the model sees 24"):
        engine().submit(Request(prompt_ids=[0] * 25, full="stop"))


def test_stop_tokens_and_stop_texts_end_a_continuation(engine):
    (free,) = engine().run([plain([0, 9], max_new_tokens=8)])
    third = free.choices[0].tokens[2].token_id
    assert third not in [token.token_id for token in free.choices[0].tokens[:2]]
    (stopped,) = engine().run(
        [
            Request(
                prompt_ids=[0, 9],
                sampling=SamplingConfig(temperature=0.0, max_new_tokens=8),
                stop_ids=(third,),
            )
        ]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].tokens == free.choices[0].tokens[:3]
    text = bytes([third - 1]).decode("utf-8", errors="replace")
    (stopped,) = engine().run([plain([0, 9], max_new_tokens=8, stop=(text,))])
    assert stopped.choices[0].finish_reason == "stop"
    assert text not in stopped.choices[0].text


def test_biases_force_and_forbid(engine):
    (free,) = engine().run([plain([0, 9], max_new_tokens=6)])
    first = free.choices[0].tokens[0].token_id
    forced, forbidden = engine().run(
        [
            plain([0, 9], max_new_tokens=6, logit_bias={77: 1000.0}),
            plain([0, 9], max_new_tokens=6, logit_bias={first: -1000.0}),
        ]
    )
    assert {token.token_id for token in forced.choices[0].tokens} == {77}
    assert first not in {token.token_id for token in forbidden.choices[0].tokens}
    assert forced.choices[0].tokens[0].logprob < -1  # as the model gave it, without the bias


def test_numbers_that_are_none_end_one_request_only(tokenizer, model):
    expected = Engine(model, tokenizer, runner=PlainRunner(model, 2)).run([asks(1)])[0]

    class Poisoned(PlainRunner):
        def decode(self, slots, ids):
            logits = super().decode(slots, ids)
            return torch.where(torch.tensor(slots)[:, None] == 0, math.nan, logits)

    broken = Engine(model, tokenizer, runner=Poisoned(model, 2))
    result, unharmed = broken.run([asks(2), asks(1)])
    assert result.choices[0].finish_reason == "error"
    assert "no numbers" in result.choices[0].error
    assert unharmed == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_ids": []}, "prompt_ids: empty"),
        ({"prompt_ids": [0, 257]}, "prompt_ids: there is no token 257; ids are 0 to 256"),
        ({"prompt_ids": [-1]}, "no token -1"),
        ({"prompt_ids": [0], "n": 0}, "n=0: ask for 1 to 128"),
        ({"prompt_ids": [0], "n": 10**9}, "n=1000000000"),
        ({"prompt_ids": [0], "logprobs": 258}, "logprobs=258: ask for 0 to 257"),
        ({"prompt_ids": [0], "stop_ids": (999,)}, "stop_ids: there is no token 999"),
        ({"prompt_ids": [0], "sampling": SamplingConfig(logit_bias={300: 1.0})}, "logit_bias: .* 300"),
        ({"prompt_ids": [0] * 25, "echo": True, "logprobs": 1}, "echo with logprobs: the prompt has 25"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing(model, tokenizer, settings, message):
    engine = Engine(model, tokenizer, slots=1)
    with pytest.raises(ValueError, match=message):
        engine.submit(Request(**settings))
    assert not engine.is_busy


def test_an_engine_at_work_does_not_run_others(model, tokenizer):
    engine = Engine(model, tokenizer, slots=1)
    engine.submit(asks(1))
    with pytest.raises(ValueError, match="use submit and step"):
        engine.run([asks(2)])
    with pytest.raises(ValueError, match="slots=0; it must be at least 1"):
        Engine(model, tokenizer, slots=0)
