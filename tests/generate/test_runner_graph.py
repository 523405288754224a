"""The runner for GPUs: the model's logits, slots that do not see each other; on a GPU as recorded graphs."""

import math

import pytest
import torch
from test_runner_fused import PARTS, build

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.runner_fused import FusedRunner, fastest_runner
from scratchlm.generate.runner_graph import GraphRunner

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def requests(number):
    return [
        Request(
            prompt_ids=[1 + i, *range(3 + 5 * i)],
            sampling=SamplingConfig(temperature=0.9 * (i % 2), max_new_tokens=12, seed=i),
            stop_ids=(),
            logprobs=1,
        )
        for i in range(number)
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(parts) or "default")
def test_logits_are_those_of_the_model(parts, device):
    model = build(**parts).to(device)
    ids = torch.randint(97, (30,)).tolist()
    runner = GraphRunner(model, 3)
    rows = [runner.logits(runner.prefill(1, ids[:7])), runner.logits(runner.prefill(1, ids[7:11]))]
    rows += [runner.decode([1], [token_id]) for token_id in ids[11:]]
    expected = model(torch.tensor([ids], device=device))[0].detach().cpu()
    torch.testing.assert_close(torch.cat(rows), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_change_nothing_and_nothing_stays_in_a_slot(device):
    model = build(num_kv_heads=2).to(device)
    engine = Engine(model, None, chunk=4, runner=GraphRunner(model, 3))
    asked = requests(4)
    together = engine.run(asked)
    for keys, values in engine.runner.memory():
        keys.fill_(math.nan)
        values.fill_(math.nan)
    alone = [engine.run([request])[0] for request in asked]
    assert together == alone


def test_it_writes_what_the_other_runners_write():
    model = build(num_kv_heads=2, qk_norm=True, window=7)
    runners = (GraphRunner(model, 2), FusedRunner(model, 2), PlainRunner(model, 2))
    found = [Engine(model, None, runner=runner).run(requests(3)) for runner in runners]
    texts = [[[token.token_id for token in r.choices[0].tokens] for r in results] for results in found]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.gpu
def test_a_gpu_gets_recorded_graphs_that_follow_the_weights():
    model = build().to("cuda")
    runner = fastest_runner(model, 2)
    assert isinstance(runner, GraphRunner)
    engine = Engine(model, None, runner=runner)
    engine.warm_up()
    graph = runner._graph
    first = engine.run(requests(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.3)
    changed = engine.run(requests(1))
    assert runner._graph is graph  # in place: the graph reads the same memory
    assert changed != first
    assert changed == Engine(model, None, runner=GraphRunner(model, 2)).run(requests(1))
