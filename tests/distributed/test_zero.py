"""Sharded state and gradients, with 2 and 4 real processes: every step equals that of one process."""

import pytest
import torch
from together import run
from torch.nn import Parameter

from scratchlm.distributed.zero import deal, shared_bytes

pytestmark = pytest.mark.distributed

SCRIPT = '''
import contextlib, json, time, weakref
import torch
from torch.nn import Linear, Module, Parameter
from scratchlm.distributed import Processes
from scratchlm.distributed.ddp import DATA_PARALLEL
from scratchlm.distributed import zero
from scratchlm.distributed.zero import ShardedGradients, ShardedOptimizer
from scratchlm.optim import OPTIMIZERS

class Model(Module):
    """Tied and frozen parameters, and one that nobody uses."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = Linear(8, 8), Linear(8, 8)
        self.last = Linear(8, 8, bias=False)
        self.last.weight = self.first.weight
        self.frozen = Parameter(torch.randn(8), requires_grad=False)
        self.never_used = Parameter(torch.randn(3))

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x) * self.frozen))))

def groups(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [{"params": others, "weight_decay": 0.0}, {"params": matrices, "lr": 0.03}]

def train(model, optimizer, rows, synchronize, first, last):
    for step in range(first, last):
        x = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (1 + step)
        optimizer.zero_grad(set_to_none=True)
        model(x[rows]).square().mean().backward()
        synchronize()
        grads.append(sum(p.grad.numel() for p in model.parameters() if p.grad is not None))
        optimizer.step()

def plain(state):
    return {
        str(place): {key: value.tolist() if isinstance(value, torch.Tensor) else value
                     for key, value in entries.items()}
        for place, entries in state["state"].items()
    }

processes = Processes.from_environment(timeout_seconds=60)
size = 8 // processes.world_size
mine = slice(processes.rank * size, (processes.rank + 1) * size)
nothing = lambda: None
results, grads = {}, []
for name, make in {
    "torch": (lambda params, **settings: torch.optim.AdamW(params, **settings)),
    "sgd": (lambda params, **settings: torch.optim.SGD(params, momentum=0.9, **settings)),
    "adamw": OPTIMIZERS.get("adamw"),
}.items():
    torch.manual_seed(0)
    alone = Model()
    optimizer = make(groups(alone), lr=0.1)
    train(alone, optimizer, slice(0, 8), nothing, 0, 4)
    result = {"alone": {k: v.tolist() for k, v in alone.state_dict().items()}}
    result["alone state"] = plain(optimizer.state_dict())
    for stage in (1, 2):
        torch.manual_seed(processes.rank)
        model = Model()
        sharded = ShardedOptimizer(groups(model), make, lr=0.1)
        if stage == 1:
            model = DATA_PARALLEL.build("flat", model)
        else:
            model = ShardedGradients(model, sharded, bucket_mb=0.0003)
        grads.clear()
        train(model, sharded, mine, model.finish_gradient_synchronization, 0, 2)
        saved = sharded.state_dict()
        again = ShardedOptimizer(groups(model.module), make, lr=0.1)
        again.load_state_dict(saved)
        train(model, again, mine, model.finish_gradient_synchronization, 2, 4)
        result[f"stage {stage}"] = {k: v.tolist() for k, v in model.module.state_dict().items()}
        result[f"state {stage}"] = plain(again.state_dict())
        result[f"grads {stage}"] = grads[-1]
    whole = make(groups(alone), lr=0.1)
    whole.load_state_dict(again.state_dict())
    result["loads without shards"] = len(whole.state) > 0
    results[name] = result
calls = []
def closure():
    calls.append(1)
    return torch.tensor(2.5)
returned = again.step(closure).item()
added = Parameter(torch.ones(3) * processes.rank)
again.add_param_group({"params": [added]})
added.grad = torch.ones(3)
again.step()
try:
    ShardedGradients(Linear(2, 2), again)
except ValueError as error:
    refused = str(error)
try:
    again.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]})
except ValueError as error:
    misfit = str(error)
loads = [sum(p.numel() for p, owner in again.owners.items() if owner == rank and p.requires_grad)
         for rank in range(processes.world_size)]

def deep():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*[Linear(50, 50, bias=False) for _ in range(12)])
    for parameter in layers.parameters():
        parameter.data *= 3**0.5  # activations keep their size
    return layers
x = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
alone = deep()
alone(x).square().mean().backward()
norms = [torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01).item()]
layers = deep()
share = ShardedOptimizer(layers.parameters(), torch.optim.SGD, lr=0.1)
wrapped = ShardedGradients(layers, share, bucket_mb=0.01)
def backward(rows=mine):
    wrapped(x[rows]).square().mean().backward()
attempts = []
for last in (contextlib.nullcontext, wrapped.no_synchronization):
    try:
        backward()
        with last():
            backward()
    except ValueError as error:
        attempts.append(str(error))
    wrapped.start_batch()
    wrapped.zero_grad()
backward(slice(0, 1))  # no step follows
wrapped.zero_grad()
wrapped.start_batch()

copies, held, makers = [], [], (torch.cat, torch.empty)
def num_copied():
    """Numbers in messages that have not become gradients."""
    gradients = {p.grad.untyped_storage().data_ptr() for p in layers.parameters() if p.grad is not None}
    alive = [copy() for copy in copies if copy() is not None]
    return sum(copy.numel() for copy in alive if copy.untyped_storage().data_ptr() not in gradients)
def watching(make):
    def watched(*arguments, **settings):
        copies.append(weakref.ref(found := make(*arguments, **settings)))
        held.append(num_copied())
        return found
    return watched
torch.cat, torch.empty = map(watching, makers)
zero.BUCKET_MB = 0.01
backward()
def num_copied_soon():
    time.sleep(0.02)  # gloo's own thread lets go of a message a moment after it has arrived
    return num_copied()
held_after = min(num_copied_soon() for _ in range(50))
held_after += sum(p.grad.numel() for p in layers.parameters() if p.grad is not None)
wrapped.finish_gradient_synchronization()
most = [max(held)]
norms += [wrapped.clip_gradients(0.01).item(), wrapped.gradient_norm().item()]
close = [torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-8)
         for p, q in zip(layers.parameters(), alone.parameters()) if p.grad is not None]
held.clear()
share.step()
most.append(max(held))
torch.cat, torch.empty = makers
torch.optim.SGD(alone.parameters(), lr=0.1).step()
moved = all(torch.allclose(p, q, atol=1e-6) for p, q in zip(layers.parameters(), alone.parameters()))

class Counting(torch.optim.SGD):
    """Changes its groups itself."""

    def step(self):
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
        super().step()

frozen = Parameter(torch.full((3,), float(processes.rank)), requires_grad=False)
counting = ShardedOptimizer([{"params": [frozen, Parameter(torch.zeros(3))], "steps": 0}], Counting, lr=0.1)
for _ in range(3):
    counting.step()
steps = [counting.param_groups[0]["steps"], counting.state_dict()["param_groups"][0]["steps"]]
processes.barrier()
processes.close()
print(json.dumps({"results": results, "calls": len(calls), "returned": returned, "refused": refused,
                  "misfit": misfit, "loads": loads, "added": added.tolist(), "attempts": attempts,
                  "norms": norms, "close": close, "moved": moved, "held after": held_after, "most": most,
                  "steps": steps, "frozen": frozen.tolist()}))
'''


@pytest.fixture(scope="module", params=[2, 4])
def everyone(request):
    return run(SCRIPT, world_size=request.param)


@pytest.mark.parametrize("stage", [1, 2])
def test_each_stage_equals_one_process_also_after_saving_and_loading(everyone, stage):
    for name, result in everyone[0]["results"].items():
        for key, expected in result["alone"].items():
            found = torch.tensor(result[f"stage {stage}"][key])
            if key != "never_used":  # each process draws its own; that of process 0 counts
                torch.testing.assert_close(
                    found, torch.tensor(expected), rtol=2e-5, atol=2e-5, msg=f"{name}: {key}"
                )


def test_all_processes_hold_the_same_bits(everyone):
    for other in everyone[1:]:
        for name, result in everyone[0]["results"].items():
            for stage in (1, 2):
                assert other["results"][name][f"stage {stage}"] == result[f"stage {stage}"]
                assert other["results"][name][f"state {stage}"] == result[f"state {stage}"]


def test_the_whole_state_is_that_of_the_optimizer_without_shards(everyone):
    for name, result in everyone[0]["results"].items():
        assert result["loads without shards"]
        for stage in (1, 2):
            found, expected = result[f"state {stage}"], result["alone state"]
            assert found.keys() == expected.keys(), name
            for place, entries in expected.items():
                assert found[place].keys() == entries.keys()
                for key, value in entries.items():
                    torch.testing.assert_close(
                        torch.tensor(found[place][key]), torch.tensor(value), rtol=1e-4, atol=1e-5
                    )


def test_in_stage_2_each_gradient_is_kept_by_its_owner_only(everyone):
    for name in everyone[0]["results"]:
        all_grads = everyone[0]["results"][name]["grads 1"]
        assert all_grads == 64 + 8 + 64 + 8
        shares = [result["results"][name]["grads 2"] for result in everyone]
        assert sum(shares) == all_grads
        assert max(shares) <= 64 + 8


def test_closures_groups_that_come_later_and_errors(everyone):
    for result in everyone:
        assert (result["calls"], result["returned"]) == (1, 2.5)
        assert result["added"] == everyone[0]["added"]
        assert "does not have weight, bias; give it every parameter that is trained" in result["refused"]
        assert "the saved optimizer has groups of [1] parameters, this one of" in result["misfit"]
        assert max(result["loads"]) - min(result["loads"]) <= 64


def test_in_stage_2_copies_of_gradients_do_not_outlive_their_journey(everyone):
    layer, layers = 50 * 50, 12
    for result in everyone:
        own = layers // len(everyone) * layer
        assert result["held after"] <= own + 2 * (layer + 1)
        # two on their way, one that is being made, one that gloo's own thread still holds
        assert result["most"][0] <= 4 * (layer + 1)


def test_parameters_travel_two_buckets_at_a_time(everyone):
    assert all(result["most"][1] <= 4 * 50 * 50 for result in everyone), "as above"


def test_a_second_backward_pass_is_refused_and_a_skipped_one_forgotten(everyone):
    for result in everyone:
        assert len(result["attempts"]) == 2
        assert all("a gradient came after this batch's was sent" in message for message in result["attempts"])
        assert result["moved"]


def test_clipping_sees_the_gradients_of_all_owners(everyone):
    for result in everyone:
        expected, before, after = result["norms"]
        assert before == pytest.approx(expected, rel=1e-5)
        assert before > 0.011
        assert after == pytest.approx(0.01, rel=1e-3)
        assert len(result["close"]) == 12 // len(everyone)
        assert all(result["close"])


def test_settings_that_the_optimizer_changes_hold_and_frozen_parameters_stay(everyone):
    for rank, result in enumerate(everyone):
        assert result["steps"] == [3, 3]
        assert result["frozen"] == [float(rank)] * 3


def test_parameters_go_to_the_process_that_has_the_least():
    sizes = [5, 3, 1, 2]
    parameters, owners, loads = [Parameter(torch.zeros(n)) for n in sizes], {}, [0, 0]
    deal(parameters, owners, loads)
    assert ([owners[p] for p in parameters], loads) == ([0, 1, 1, 1], [5, 6])


def test_bytes_follow_the_formula_of_the_source():
    parameters = [Parameter(torch.zeros(1000)) for _ in range(8)]
    assert shared_bytes(parameters, 1) == dict.fromkeys(("data parallel", "stage 1", "stage 2"), 16 * 8000)
    found = shared_bytes(parameters, 4)
    assert found == {"data parallel": 16 * 8000, "stage 1": 10 * 8000, "stage 2": (4 + 3) * 8000}
