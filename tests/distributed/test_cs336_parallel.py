"""CS336, assignment 2: its adapters for several processes, called as the course's tests call them."""

import pytest
from together import run

pytestmark = pytest.mark.distributed

SCRIPT = """
import copy, json, os, warnings
import torch
from torch import distributed, nn
from scratchlm.cs336 import systems

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
distributed.init_process_group("gloo")
warnings.simplefilter("error")

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.ln = nn.Linear(10, 10, bias=False), nn.LayerNorm(10)
        self.fc2, self.fc3 = nn.Linear(10, 50, bias=False), nn.Linear(50, 5, bias=False)
        self.no_grad_fixed_param = nn.Parameter(torch.tensor([2.0, 2.0]), requires_grad=False)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(self.ln(torch.relu(self.fc1(x))))))

class ToyWithTiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
        self.fc3 = nn.Linear(10, 5, bias=False)
        self.fc2.weight = self.fc1.weight

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

def weights(name, model):
    if name == "fsdp":
        return systems.fsdp_gather_full_params(model)
    return dict(model.module.named_parameters())

torch.manual_seed(0)
x, y = torch.randn(20, 10), torch.randn(20, 5)
own = slice(rank * 20 // size, (rank + 1) * 20 // size)
ways = {"ddp": (systems.get_ddp, systems.ddp_on_after_backward, None),
        "individual": (systems.get_ddp_individual_parameters,
                       systems.ddp_individual_parameters_on_after_backward, None)}
for mb in (0.0016, 0.0001, 0.01, None):
    get = lambda module, mb=mb: systems.get_ddp_bucketed(module, mb)
    ways[f"bucketed {mb}"] = (get, systems.ddp_bucketed_on_after_backward,
                              systems.ddp_bucketed_on_train_batch_start)
ways["fsdp"] = (systems.get_fsdp, systems.fsdp_on_after_backward, None)
differences = {}
for name, (get, after, before) in ways.items():
    for kind in (Toy, ToyWithTiedWeights):
        torch.manual_seed(rank)
        base = kind()
        model = get(copy.deepcopy(base))
        start = weights(name, model)
        alone = copy.deepcopy(base)
        alone.load_state_dict({**alone.state_dict(), **start})
        if kind is ToyWithTiedWeights:
            alone.fc2.weight = alone.fc1.weight
        optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, alone))
        for _ in range(5):
            optimizer.zero_grad(), other.zero_grad()
            if before:
                before(model, optimizer)
            nn.functional.mse_loss(alone(x), y).backward()
            other.step()
            nn.functional.mse_loss(model(x[own]), y[own]).backward()
            after(model, optimizer)
            optimizer.step()
        found = weights(name, model)
        differences[f"{name} {kind.__name__}"] = max(
            (found[key] - value).abs().max().item() for key, value in alone.named_parameters())

torch.manual_seed(1)
plain = Toy()
sharded = copy.deepcopy(plain)
optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.1)
other = systems.get_sharded_optimizer(sharded.parameters(), torch.optim.AdamW, lr=0.1, weight_decay=0.1)
for _ in range(10):
    for model, one in ((plain, optimizer), (sharded, other)):
        one.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        one.step()
equal = all(torch.equal(a, b) for a, b in zip(plain.parameters(), sharded.parameters()))
changes = []
for dtype in (None, torch.float16):
    torch.manual_seed(2)
    half = systems.get_fsdp(Toy(), dtype)
    start = systems.fsdp_gather_full_params(half)
    nn.functional.mse_loss(half(x[own]).float(), y[own]).backward()
    systems.fsdp_on_after_backward(half, None)
    torch.optim.SGD(half.parameters(), lr=1.0).step()
    changes.append({k: v - start[k] for k, v in systems.fsdp_gather_full_params(half).items()})
# float16 keeps 11 bits: this is a hundred times the rounding of one number
values = all((changes[1][k] - v).norm() <= 0.05 * v.norm() for k, v in changes[0].items())
plain, rounded = (change["fc1.weight"] for change in changes)
values = values and plain.norm() > 0 and not torch.equal(plain, rounded)
formats = all(p.grad.dtype == p.dtype == torch.float32 and p.grad.shape == p.shape
              for p in half.module.parameters() if p.requires_grad)
names = sorted(systems.fsdp_gather_full_params(half)) == sorted(name for name, _ in Toy().named_parameters())
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps({"differences": differences, "equal": equal, "formats": formats, "names": names,
                  "values": bool(values)}))
"""


@pytest.fixture(scope="module")
def two():
    return run(SCRIPT)


def test_every_way_trains_as_one_process_does(two):
    for result in two:
        assert len(result["differences"]) == 14
        assert max(result["differences"].values()) < 1e-6, result["differences"]


def test_the_sharded_optimizer_equals_the_one_it_is_made_of(two):
    assert all(result["equal"] for result in two)


def test_shards_and_their_gradients_are_float32_and_names_those_of_the_module(two):
    assert all(result["formats"] and result["names"] for result in two)


def test_float16_weights_give_about_the_same_step(two):
    assert all(result["values"] for result in two)
