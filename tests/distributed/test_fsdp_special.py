"""Shards where layers do not just follow each other: recomputed, frozen, shared, nested, interrupted."""

import pytest
from together import run

pytestmark = pytest.mark.distributed

SPECIAL = """
import json, warnings
import torch
from torch.nn import LayerNorm, Linear, Module, ModuleList
from torch.utils.checkpoint import checkpoint
from scratchlm.cs336 import systems
from scratchlm.distributed import Processes
from scratchlm.distributed.fsdp import FullySharded
from scratchlm.model import MODELS, ModelSettings
from scratchlm.model.block import Block

warnings.simplefilter("error")

class Layer(Module):
    def __init__(self, frozen):
        super().__init__()
        self.a, self.b = Linear(8, 8), Linear(8, 8)
        self.a.requires_grad_(not frozen)

    def forward(self, x, *, scale):
        if fails:
            self.a(x)
            raise KeyError("out of memory")
        return wrap(self.b(torch.tanh(self.a(x))) * scale)

class Layers(Module):
    def __init__(self, run, frozen):
        super().__init__()
        self.layers, self.norm, self.run = ModuleList(Layer(frozen) for _ in range(3)), LayerNorm(8), run

    def forward(self, x):
        for layer in self.layers:
            x = self.norm(x + unwrap(self.run(layer, x, scale=x.detach().new_full((1,), 0.5))))
        return x

def reentrant(layer, x, scale):
    return checkpoint(lambda y: layer(y, scale=scale), x, use_reentrant=True)

class Outer(Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.own = inner, Linear(8, 8)

    def forward(self, x):
        return self.inner(self.own(x)) + self.inner(x)

RUNS = {
    "plain": lambda layer, x, scale: layer(x, scale=scale),
    "recomputed": lambda layer, x, scale: checkpoint(layer, x, scale=scale, use_reentrant=False),
    "reentrant": reentrant,
}
WRAPS = {"tensor": (lambda y: y, lambda y: y), "dict": (lambda y: {"y": [y]}, lambda y: y["y"][0]),
         "list": (lambda y: [y, 1], lambda y: y[0])}
processes = Processes.from_environment(timeout_seconds=60)
rank, size = processes.rank, processes.world_size
rows = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
fails = False

def whole_weights(model):
    return sum(e.buffer.untyped_storage().nbytes() > 0 for e in model._sharded.values())

def compare(make, select, rows=rows, quiet=False, wrapper=None):
    torch.manual_seed(0)
    alone = make()
    torch.manual_seed(rank)
    model = wrapper(make()) if wrapper else FullySharded(make(), select)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, model)]
    held, norms = 0, []
    for number in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        passes = 2 if quiet else 1
        for _ in range(passes):
            alone(rows.clone().requires_grad_(rows.is_floating_point())).square().mean().backward()
        parts = rows[mine].clone().requires_grad_(rows.is_floating_point())
        if quiet:
            with model.no_synchronization():
                model(parts).square().mean().backward()
        model(parts).square().mean().backward()
        held = max(held, whole_weights(model))
        model.finish_gradient_synchronization()
        norms = [torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1).item(),
                 model.clip_gradients(0.1).item()]
        for optimizer in optimizers:
            optimizer.step()
    full = model.full_parameters()
    off = max((full[k] - v).abs().max().item() for k, v in alone.named_parameters(remove_duplicate=False))
    return {"off": off, "held": held, "norms": norms,
            "shards": all(type(p) is torch.nn.Parameter and p.ndim == 1 for p in model._sharded)}

def transformer(tied, checkpointing, **settings):
    settings = ModelSettings(context_length=6, d_model=16, num_layers=3, num_heads=2, tied=tied, **settings)
    model = MODELS.get("transformer")(settings.with_vocabulary(11))
    model.gradient_checkpointing = checkpointing
    return model.train()

found, messages = {}, []
for run_name, run in RUNS.items():
    for wrap_name, (wrap, unwrap) in WRAPS.items():
        if (run_name, wrap_name) == ("reentrant", "dict"):
            continue  # torch's older checkpoint passes tensors and tuples only
        for frozen in (False, True):
            case = f"{run_name} {wrap_name} frozen={frozen}"
            found[case] = compare(lambda: Layers(run, frozen), (Layer,))
wrap, unwrap = WRAPS["tensor"]
found["no_synchronization"] = compare(lambda: Layers(RUNS["plain"], False), (Layer,), quiet=True)
shared = lambda: (lambda inner: torch.nn.Sequential(Outer(inner), Outer(inner)))(Linear(8, 8))
found["shared"] = compare(shared, (Outer,))
inner_first = lambda: (lambda inner: Outer(Outer(inner)))(Linear(8, 8))
def nested():
    outer = inner_first()
    outer.again = outer.inner.inner  # inside both selected modules
    return outer
found["nested"] = compare(nested, (Outer,))
ids = torch.randint(0, 11, (8, 6), generator=torch.Generator().manual_seed(3))
for tied in (False, True):
    for checkpointing in (False, True):
        make = lambda: transformer(tied, checkpointing)
        found[f"blocks {tied} {checkpointing}"] = compare(make, (Block,), ids)
        found[f"get_fsdp {tied} {checkpointing}"] = compare(make, None, ids, wrapper=systems.get_fsdp)

model = FullySharded(Layers(RUNS["plain"], False), (Layer,))
before = model.full_parameters()
fails = True
try:
    model(rows)
except KeyError:
    messages.append([type(p).__name__ for p in model.parameters()].count("Parameter"))
fails = False
after = model.full_parameters()
same = all(torch.equal(after[k], v) for k, v in before.items())
model(rows[mine]).sum().backward()  # no step follows
model.zero_grad()
model.start_batch()
model(rows[mine]).sum().backward()
model.finish_gradient_synchronization()
first = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model(rows[mine]).sum().backward()
model.finish_gradient_synchronization()
same = same and all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters()))

class Nothing(Linear):
    def forward(self, x):
        super().forward(x)
class Reads(Module):
    def __init__(self):
        super().__init__()
        self.inner = Linear(8, 8)
    def forward(self, x):
        return x @ self.inner.weight.mT
dtypes = []
class Keyword(Linear):
    def forward(self, x, *, mask):
        dtypes.extend([str(x.dtype), str(mask.dtype)])
        return super().forward(x) * mask
class Calls(Module):
    def __init__(self):
        super().__init__()
        self.inner = Keyword(8, 8)
    def forward(self, x):
        return self.inner(x, mask=x)
for make in (Nothing, lambda *_: Reads()):
    try:
        FullySharded(torch.nn.Sequential(make(8, 8)), (Linear,))(rows)
    except (RuntimeError, ValueError) as error:
        messages.append(" ".join([str(error), *getattr(error, "__notes__", ())]))
FullySharded(Calls(), (Keyword,), compute_dtype=torch.bfloat16)(rows)
processes.barrier()
processes.close()
print(json.dumps({"found": found, "messages": messages, "same": same, "dtypes": dtypes}))
"""


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def special(request):
    return run(SPECIAL, world_size=request.param)


def test_recomputed_frozen_shared_and_nested_modules_train_as_on_one_process(special):
    for result in special:
        assert len(result["found"]) == 2 * 8 + 3 + 8
        for name, case in result["found"].items():
            assert case["off"] < 2e-5, name
            assert case["shards"], name


def test_backward_gives_all_whole_weights_back(special):
    for result in special:
        for name, case in result["found"].items():
            assert case["held"] == 0, name


def test_clipping_sees_all_shards_and_each_whole_gradient_once(special):
    for result in special:
        for name, case in result["found"].items():
            expected, norm = case["norms"]
            assert norm == pytest.approx(expected, rel=1e-4), name


def test_an_exception_in_a_forward_pass_leaves_shards_and_a_skipped_step_nothing(special):
    for result in special:
        assert result["messages"][0] == 2 + 3 * 4
        assert result["same"]


def test_modules_that_hide_their_outputs_or_read_others_weights_are_told_what_to_do(special):
    for result in special:
        assert result["messages"][1].startswith("0 (Nothing) returned NoneType without tensors:")
        assert "return tensors or lists, tuples, dicts of them" in result["messages"][1]
        assert "select the module that reads" in result["messages"][2]


def test_tensors_given_by_keyword_are_converted_too(special):
    assert all(result["dtypes"] == ["torch.bfloat16"] * 2 for result in special)
