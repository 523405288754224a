"""A model that is trained between texts: new weights are seen, logarithms are those of the training model."""

import pytest
import torch
from torch.nn.utils import parametrize

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner
from scratchlm.generate.runner_graph import GraphRunner
from scratchlm.generate.speculate import ModelDrafter, NgramDrafter
from scratchlm.loss import cross_entropy
from scratchlm.model import MODELS, ModelConfig
from scratchlm.optim.adamw import AdamW

RUNNERS = {"plain": PlainRunner, "fused": FusedRunner, "graph": GraphRunner}
SLOW = pytest.mark.slow
NAMES = [pytest.param("plain", marks=SLOW), "fused", pytest.param("graph", marks=SLOW)]


def build(**settings):
    torch.manual_seed(3)
    base = {"vocab_size": 61, "context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 4}
    return MODELS.build("transformer", ModelConfig(**{**base, "num_kv_heads": 2, **settings}))


def asked(seed=0, **settings):
    sampling = SamplingConfig(**{"max_new_tokens": 20, "seed": seed, **settings})
    return Request(prompt_ids=[1, 2, 3, 4, 5], sampling=sampling, stop_ids=())


def ids_of(result):
    return [token.token_id for token in result.choices[0].tokens]


def change(model, optimizer):
    """One step of training on made-up tokens."""
    ids = torch.randint(61, (2, 16))
    cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("runner", NAMES)
def test_an_idle_engine_sees_the_weights_of_each_training_step(runner):
    model = build().train()
    optimizer = AdamW(model.parameters(), lr=0.03)
    engine = Engine(model, None, runner=RUNNERS[runner](model, 3), drafter=NgramDrafter())
    texts = []
    for seed in range(3):
        texts.append(ids_of(engine.run([asked(temperature=0.0)])[0]))
        fresh = Engine(model, None, runner=RUNNERS[runner](model, 3))
        assert texts[-1] == ids_of(fresh.run([asked(temperature=0.0)])[0]), seed
        assert model.training
        change(model, optimizer)
    assert texts[0] != texts[1] != texts[2]


@pytest.mark.parametrize("runner", NAMES[1:])
def test_weights_that_moved_or_are_computed_are_taken_up(runner):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return weight * self.factor

    model, part = build(), Doubled()
    part.factor = 1.0
    engine = Engine(model, None, runner=RUNNERS[runner](model, 2))
    first = ids_of(engine.run([asked(temperature=0.0)])[0])
    with torch.no_grad():  # moved: another piece of memory
        model.layers[0].ffn.w2.weight.data = torch.randn_like(model.layers[0].ffn.w2.weight)
    moved = ids_of(engine.run([asked(temperature=0.0)])[0])
    parametrize.register_parametrization(model.layers[1].attn.output_proj, "weight", part)
    assert ids_of(engine.run([asked(temperature=0.0)])[0]) == moved
    part.factor = -3.0  # computed: the memory tells nothing
    computed = ids_of(engine.run([asked(temperature=0.0)])[0])
    assert first != moved != computed
    plain = Engine(model, None, runner=PlainRunner(model, 1)).run([asked(temperature=0.0)])[0]
    assert computed == ids_of(plain)


@pytest.mark.parametrize("runner", NAMES)
@pytest.mark.parametrize("drafter", [None, "model"])
def test_texts_under_way_go_on_with_the_new_weights(runner, drafter):
    model, after = build(), 6
    guess = None if drafter is None else ModelDrafter(model)
    engine = Engine(model, None, chunk=3, runner=RUNNERS[runner](model, 2), drafter=guess)
    numbers = [engine.submit(asked(seed=seed, temperature=0.0)) for seed in range(3)]  # one waits
    told = {number: [] for number in numbers}

    def step():
        for event in engine.step():
            told[event.request_id].append(event.token.token_id)

    for _ in range(after):
        step()
    before = {number: list(ids) for number, ids in told.items()}
    assert before[numbers[0]]
    assert not before[numbers[2]]
    with torch.no_grad():  # what was kept of the past is far from what it should be now
        for block in model.layers:
            block.attn.v_proj.weight.mul_(-4)
            block.attn.k_proj.weight.mul_(-4)
    engine.refresh()
    while engine.is_busy:
        step()
    model.eval()
    for number in numbers:
        ids = [1, 2, 3, 4, 5, *before[number]]
        while len(ids) < 25:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert told[number] == ids[5:]


@pytest.mark.parametrize("runner", NAMES)
def test_logarithms_are_those_of_the_training_models_own_pass(runner):
    model = build(qk_norm=True).train()
    engine = Engine(model, None, runner=RUNNERS[runner](model, 4), chunk=2)
    results = engine.run([asked(seed=seed, temperature=1.0) for seed in range(4)])
    ids = torch.tensor([[1, 2, 3, 4, 5, *ids_of(result)] for result in results])
    logits = model(ids[:, :-1])[:, 4:]
    expected = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 5:, None])[..., 0]
    told = torch.tensor([[token.logprob for token in result.choices[0].tokens] for result in results])
    # passes of other sizes round otherwise: a few units in the last place of logits of size 4
    torch.testing.assert_close(told, expected.detach(), atol=5e-6, rtol=0)
    drawn = torch.tensor([[t.drawn_logprob for t in result.choices[0].tokens] for result in results])
    torch.testing.assert_close(drawn, told, atol=1e-6, rtol=0)  # at temperature 1 nothing is between them
    (hot,) = engine.run([asked(seed=9, temperature=2.0)])
    hot_ids = torch.tensor([[1, 2, 3, 4, 5, *ids_of(hot)]])
    tempered = torch.log_softmax(model(hot_ids[:, :-1])[0, 4:] / 2.0, dim=-1)
    for row, token in zip(tempered, hot.choices[0].tokens, strict=True):
        assert token.drawn_logprob == pytest.approx(row[token.token_id].item(), abs=5e-6)


@pytest.mark.parametrize("runner", NAMES)
def test_continuations_of_one_prompt_compute_it_once(runner):
    model = build()
    request = Request(
        prompt_ids=list(range(1, 20)),
        sampling=SamplingConfig(max_new_tokens=20, seed=5),  # beyond the window of 32: the prompt slides out
        n=4,
        stop_ids=(),
        logprobs=1,
        echo=True,
    )
    engine = Engine(model, None, chunk=6, runner=RUNNERS[runner](model, 3))
    (shared,) = engine.run([request])
    assert engine.stats().prompt_tokens == 2 * 19 + 4 * 17  # again once nobody holds it, and for slid windows
    alone = [
        Engine(model, None, chunk=6, runner=RUNNERS[runner](model, 3)).run(
            [
                Request(
                    prompt_ids=request.prompt_ids,
                    sampling=request.sampling.model_copy(update={"seed": 5 + index}),
                    stop_ids=(),
                    logprobs=1,
                    echo=True,
                )
            ]
        )[0]
        for index in range(4)
    ]
    assert shared.choices == tuple(result.choices[0] for result in alone)
    assert {shared.prompt} == {result.prompt for result in alone}


@pytest.mark.parametrize("runner", NAMES)
def test_warming_up_changes_nothing(runner):
    model = build()
    cold = Engine(model, None, runner=RUNNERS[runner](model, 2)).run([asked()])
    engine = Engine(model, None, runner=RUNNERS[runner](model, 2), drafter=ModelDrafter(model))
    engine.warm_up()
    engine.submit(asked(seed=1))
    for _ in range(4):
        engine.step()
    engine.warm_up()
    assert engine.stats().new_tokens > 0
    while engine.is_busy:
        engine.step()
    assert ids_of(engine.run([asked()])[0]) == ids_of(cold[0])
    assert model.training


def test_a_slot_can_begin_with_what_another_one_holds():
    model = build()
    for runner in (PlainRunner(model, 2), PlainRunner(model, 2, use_cache=False), FusedRunner(model, 2)):
        runner.prefill(0, [1, 2, 3, 4])
        runner.prefill(1, [9, 9])
        runner.copy(0, 1, 3)
        expected = runner.logits(runner.prefill(1, [7])[-1:])
        runner.clear(0)
        runner.prefill(0, [1, 2, 3])
        torch.testing.assert_close(runner.logits(runner.prefill(0, [7])[-1:]), expected)
    full = model.make_cache(2)
    other = model.make_cache()
    model(torch.tensor([[1, 2, 3]]), cache=other)
    with pytest.raises(ValueError, match="length=3; copy 0 to 2 tokens"):
        full.copy_from(other, 3)


def test_a_prompt_is_computed_once_while_somebody_holds_it():
    engine = Engine(build(), None, slots=8)
    engine.run(
        [Request(prompt_ids=[*range(20)], sampling=SamplingConfig(max_new_tokens=5), n=8, stop_ids=())]
    )
    assert engine.stats().prompt_tokens == 20
