"""Four ways to average gradients, with 2 and 4 real processes: all equal one process that has all rows."""

import pytest
import torch
from together import run
from torch.nn import Parameter

from scratchlm.distributed.buckets import BUCKET_MB, fill_buckets, usual_bucket_mb
from scratchlm.distributed.ddp import DATA_PARALLEL

pytestmark = pytest.mark.distributed

MODEL = '''
import contextlib, json, sys
import torch
from torch import distributed
from torch.nn import Linear, Module, Parameter
from scratchlm.distributed import Processes
from scratchlm.distributed.ddp import DATA_PARALLEL

class Model(Module):
    """Tied, frozen, doubled and unused parameters, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Linear(8, 8), Linear(8, 8, bias=False)
        self.last.weight = self.first.weight
        self.frozen = Parameter(torch.randn(8), requires_grad=False)
        self.wide = Parameter(torch.randn(8, dtype=torch.float64))
        self.never_used, self.seldom_used = Parameter(torch.randn(3)), Parameter(torch.randn(8))
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x, extra):
        h = torch.tanh(self.first(x) * self.frozen + self.shift)
        h = h + self.wide.float()
        return self.last(h + self.seldom_used if extra else h)

def train(model, rows, extra, parts=1, synchronize=None, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        x = torch.randn(8, 8, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        pieces = [piece for piece in x[rows].chunk(parts)]
        for number, piece in enumerate(pieces):
            quiet = synchronize is not None and number + 1 < parts
            with model.no_synchronization() if quiet else contextlib.nullcontext():
                (model(piece, extra).square().mean() / parts).backward()
        if synchronize:
            synchronize()
        optimizer.step()
    module = getattr(model, "module", model)
    return {name: p.tolist() for name, p in module.state_dict().items()}, module.never_used.grad is None
'''

EVERY_WAY = (
    MODEL
    + """
processes = Processes.from_environment(timeout_seconds=60)
size = 8 // processes.world_size
mine = slice(processes.rank * size, (processes.rank + 1) * size)
calls = []
real = distributed.all_reduce
def counted(*arguments, **settings):
    calls.append(arguments[0].numel())
    return real(*arguments, **settings)
distributed.all_reduce = counted
results = {}
ways = [(name, {}) for name in DATA_PARALLEL.names()]
ways += [("bucketed", {"bucket_mb": size}) for size in (None, 0.0003)]
for name, settings in ways:
    for parts in (1, 2):
        torch.manual_seed(processes.rank)
        calls.clear()
        model = DATA_PARALLEL.build(name, Model(), **settings)
        weights, unused = train(model, mine, False, parts, model.finish_gradient_synchronization)
        results[f"{name} {settings} {parts}"] = {"weights": weights, "unused": unused, "calls": len(calls)}
torch.manual_seed(0)
alone, _ = train(Model(), slice(0, 8), False)
for name in DATA_PARALLEL.names():
    torch.manual_seed(0)
    model = DATA_PARALLEL.build(name, Model())
    model(torch.ones(2, 8), processes.rank == 1).sum().backward()
    model.finish_gradient_synchronization()
    results[name] = model.module.seldom_used.grad.tolist()
total = torch.tensor([float(processes.rank)])
distributed.all_reduce(total)

def attempt(model, *numbers, last=contextlib.nullcontext):
    model.zero_grad()
    try:
        for number in numbers[:-1]:
            model(torch.full((1, 2), number)).sum().backward()
        with last():
            model(torch.full((1, 2), numbers[-1])).sum().backward()
        model.finish_gradient_synchronization()
    except ValueError as error:
        model.start_batch()
        return str(error)
    return model.module.weight.grad.tolist()

late = {}
for name in DATA_PARALLEL.names():
    model = DATA_PARALLEL.build(name, Linear(2, 1, bias=False))
    late[name] = [attempt(model, 1.0, 10.0), attempt(model, 1.0, 10.0, last=model.no_synchronization)]
    model(torch.full((1, 2), 7.0)).sum().backward()  # no step follows
    late[name].append(attempt(model, 1.0))
    model.zero_grad()
    model(torch.full((1, 2), 7.0)).sum().backward()
    model.zero_grad()
    model.start_batch()
    late[name].append(attempt(model, 1.0))
    model = DATA_PARALLEL.build(name, Model())
    for used in (processes.rank == 1, False):  # one process sends buckets that the other one holds back
        model.zero_grad()
        model.start_batch()
        model(torch.ones(2, 8), used).sum().backward()
    model.finish_gradient_synchronization()
    late[name].append([p.grad is None for p in (model.module.seldom_used, model.module.first.weight)])
    mine = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item()
    norms = [mine, model.clip_gradients(0.5).item(), model.gradient_norm().item()]
    large = DATA_PARALLEL.build(name, Linear(2, 1, bias=False).half())
    (large.module.weight * 40000).sum().backward()
    large.finish_gradient_synchronization()
    late[name] += [norms, large.module.weight.grad.tolist()]
transposed = Linear(2, 3)
transposed.weight = Parameter(torch.full((2, 3), float(processes.rank)).t())
transposed = DATA_PARALLEL.build("flat", transposed).module.weight.tolist()
processes.barrier()
processes.close()
print(json.dumps({"results": results, "alone": alone, "sum": total.item(), "late": late,
                  "transposed": transposed}))
"""
)

DIFFERENT = (
    MODEL
    + """
processes = Processes.from_environment(timeout_seconds=60)
messages = []
for difference in ("more", "order", "frozen", "buffer"):
    model = Model()
    if processes.rank == 1:
        if difference == "more":
            model.extra = Parameter(torch.zeros(3))
        if difference == "order":
            model._parameters["frozen"] = model._parameters.pop("frozen")
        if difference == "frozen":
            model.wide.requires_grad_(False)
        if difference == "buffer":
            model.register_buffer("shift", torch.zeros(9))
    try:
        DATA_PARALLEL.build("flat", model)
    except ValueError as error:
        messages.append(str(error))
processes.barrier()
processes.close()
print(json.dumps(messages))
"""
)


@pytest.fixture(scope="module", params=[2, 4])
def everyone(request):
    return run(EVERY_WAY, world_size=request.param)


def test_every_way_equals_one_process_with_all_rows(everyone):
    alone = everyone[0]["alone"]
    trained = {name for name in everyone[0]["results"] if " " in name}
    assert len(trained) == 2 * (len(DATA_PARALLEL.names()) + 2)
    for name in trained:
        for key, expected in alone.items():
            found = torch.tensor(everyone[0]["results"][name]["weights"][key])
            torch.testing.assert_close(found, torch.tensor(expected), msg=f"{name}: {key}")


def test_all_processes_hold_the_same_bits(everyone):
    for result in everyone[1:]:
        assert result["results"] == everyone[0]["results"]


def test_accumulating_sends_once_a_step(everyone):
    results = everyone[0]["results"]
    for name in [name for name in results if name.endswith(" 1")]:
        assert results[name]["calls"] == results[name[:-1] + "2"]["calls"], name


def test_each_way_makes_as_many_calls_as_it_says(everyone):
    calls = {
        name.removesuffix(" 1"): r["calls"] // 3
        for name, r in everyone[0]["results"].items()
        if name.endswith(" 1")
    }
    parameters = 5  # the shared weight once; the frozen one is not sent
    assert calls["per_parameter {}"] == calls["overlapped {}"] == parameters
    assert calls["flat {}"] == 2  # float32 and float64
    assert calls["bucketed {}"] == calls["bucketed {'bucket_mb': None}"] == 2
    assert calls["bucketed {'bucket_mb': 0.0003}"] == 3  # 32 + 256, 32 + 12, and 64 bytes of another format


def test_a_gradient_of_one_process_counts_as_zero_on_the_others_and_none_stays_none(everyone):
    world_size = len(everyone)
    for name in DATA_PARALLEL.names():
        grads = [torch.tensor(result["results"][name]) for result in everyone]
        assert all(torch.equal(grad, grads[0]) for grad in grads)
        assert grads[0].abs().sum() > 0
    assert all(r["unused"] for name, r in everyone[0]["results"].items() if " " in name)
    assert everyone[0]["sum"] == sum(range(world_size)), "all_reduce must add up"


def test_another_model_on_one_process_is_refused_by_name():
    for messages in run(DIFFERENT):
        more, order, frozen, buffer = (
            message.removeprefix("process 1 has another model than process 0: ") for message in messages
        )
        assert more.startswith("parameter extra (3,) torch.float32 requires_grad=True where process 0 has ")
        assert order.startswith("parameter wide (8,) torch.float64 ")
        assert "where process 0 has parameter frozen (8,) torch.float32 requires_grad=False;" in order
        assert frozen.startswith("parameter wide (8,) torch.float64 requires_grad=False where process 0 has ")
        assert buffer.startswith("buffer shift (9,) torch.float32 where process 0 has buffer shift (8,)")
        assert all("build the same model, with the same settings" in message for message in messages)


AT_ONCE = {"per_parameter": True, "flat": True, "bucketed": False, "overlapped": False}


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_gradient_that_comes_after_it_was_sent_counts_or_is_an_error(everyone, name):
    for result in everyone:
        two, quiet, unfinished, *_ = result["late"][name]
        if AT_ONCE[name]:
            assert two == quiet == [[11.0, 11.0]]
            assert unfinished == [[1.0, 1.0]]
            continue
        for message in (two, quiet, unfinished):
            assert message.startswith("weight: a gradient came after this batch's was sent.")
            assert "no_synchronization()" in message
            assert "call model.start_batch() on every process" in message


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_skipped_step_leaves_nothing_after_start_batch(everyone, name):
    for result in everyone:
        assert result["late"][name][3] == [[1.0, 1.0]]
        assert result["late"][name][4] == [True, False], "the batch that was dropped is still there"


@pytest.mark.parametrize("name", AT_ONCE)
def test_norms_and_clipping_agree_with_torch(everyone, name):
    for result in everyone:
        expected, before, after = result["late"][name][5]
        assert before == pytest.approx(expected, rel=1e-6)
        assert before > 0.5
        assert after == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", AT_ONCE)
def test_the_mean_of_large_float16_gradients_is_finite(everyone, name):
    assert all(result["late"][name][6] == [[40000.0, 40000.0]] for result in everyone)


def test_a_transposed_weight_begins_as_on_process_0(everyone):
    assert all(result["transposed"] == [[0.0] * 2] * 3 for result in everyone)


def test_buckets_are_filled_from_the_last_parameter_on():
    first, second, third = (Parameter(torch.zeros(n * 1000)) for n in (1, 2, 3))
    parameters = [first, second, third]
    assert sizes(fill_buckets(parameters, 0.02)) == [[3000, 2000], [1000]]
    assert sizes(fill_buckets(parameters, 0)) == [[3000], [2000], [1000]]
    assert sizes(fill_buckets(parameters, None)) == [[3000, 2000, 1000]]
    with_first = [Parameter(torch.zeros(100_000)) for _ in range(40)]  # 16 MB: sqrt(16 0.6) = 3.1
    assert [len(bucket) for bucket in fill_buckets(with_first, "auto")] == [2, 7, 7, 7, 7, 7, 3]
    assert usual_bucket_mb([torch.zeros(1, 1).expand(10**5, 10**5)]) == BUCKET_MB
    half = Parameter(torch.zeros(10, dtype=torch.float16))
    assert sizes(fill_buckets([first, half, second], None)) == [[10], [2000, 1000]]


def sizes(buckets):
    return [[parameter.numel() for parameter in bucket] for bucket in buckets]


def test_without_a_process_group_it_says_what_to_do():
    with pytest.raises(ValueError, match="start several processes with torchrun"):
        DATA_PARALLEL.build("flat", torch.nn.Linear(2, 2))


def test_a_negative_bucket_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: None)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, mine: found.__setitem__(0, mine)
    )
    with pytest.raises(ValueError, match=r"bucket_mb=-1\.0: must be at least 0"):
        DATA_PARALLEL.build("bucketed", torch.nn.Linear(2, 2), bucket_mb=-1)
