import copy
import pickle

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.adamw import AdamW, AdamWReference, make_flat_states

SHAPES = [(7, 5), (5,), (3, 4, 2), ()]


def make_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def train(optimizer, parameters, *, num_steps, seed=2, skip_first=()):
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        for index, p in enumerate(parameters):
            grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** (index - 2)
            p.grad = None if step < 3 and index in skip_first else grad
        optimizer.step()


@pytest.mark.parametrize("part", [AdamW, AdamWReference])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_hundred_steps_equal_torch(part, weight_decay):
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    ours, theirs = make_parameters(), make_parameters()
    train(part(ours, **settings), ours, num_steps=100, skip_first=(1,))
    train(torch.optim.AdamW(theirs, **settings), theirs, num_steps=100, skip_first=(1,))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_fast_version_is_as_near_to_the_truth_as_torch():
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    truth = make_parameters(torch.float64)
    ours = [Parameter(p.detach().float()) for p in truth]
    theirs = [Parameter(p.detach().float()) for p in truth]
    fast, torchs, exact = (
        AdamW(ours, **settings),
        torch.optim.AdamW(theirs, **settings),
        AdamWReference(truth, **settings),
    )
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        for p, q, r in zip(ours, theirs, truth, strict=True):
            grad = torch.randn(p.shape, generator=generator)
            p.grad, q.grad, r.grad = grad, grad.clone(), grad.double()
        for optimizer in (fast, torchs, exact):
            optimizer.step()
    error = max(float((p - r).detach().abs().max()) for p, r in zip(ours, truth, strict=True))
    reference_error = max(float((q - r).detach().abs().max()) for q, r in zip(theirs, truth, strict=True))
    assert error <= 2 * reference_error


def test_worked_example_of_two_steps():
    p = Parameter(torch.tensor([1.0]))
    optimizer = AdamW([p], lr=0.1, betas=(0.5, 0.5), eps=1e-8, weight_decay=0.5)
    p.grad = torch.tensor([2.0])
    optimizer.step()  # 1 * (1 - 0.05) = 0.95; m / c1 = 2, sqrt(v / c2) = 2 -> 0.95 - 0.1
    torch.testing.assert_close(p.detach(), torch.tensor([0.85]))
    p.grad = torch.tensor([0.0])
    optimizer.step()  # 0.8075; m = 0.5, c1 = 0.75 -> 2/3; v = 1, c2 = 0.75 -> sqrt(4/3)
    torch.testing.assert_close(p.detach(), torch.tensor([0.8075 - 0.1 * (2 / 3) / (4 / 3) ** 0.5]))


def test_weight_decay_acts_without_any_gradient_signal():
    p = Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.95))


@pytest.mark.parametrize("part", [AdamW, AdamWReference])
def test_resuming_from_a_pickled_state_is_bit_identical(part):
    straight, stopped = make_parameters(), make_parameters()
    train(part(straight, lr=1e-2), straight, num_steps=5)
    optimizer = part(straight, lr=1e-2)
    train(optimizer, straight, num_steps=5, seed=8)

    train(part(stopped, lr=1e-2), stopped, num_steps=5)
    first = part(stopped, lr=1e-2)
    generator = torch.Generator().manual_seed(8)
    for step in range(5):
        if step == 2:
            saved = pickle.loads(pickle.dumps(first.state_dict()))
            first = part(stopped, lr=1.0)
            first.load_state_dict(saved)
        for index, p in enumerate(stopped):
            p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (index - 2)
        first.step()
    for mine, other in zip(stopped, straight, strict=True):
        assert torch.equal(mine, other)


def test_step_is_a_plain_integer_in_the_saved_state():
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    train(optimizer, parameters, num_steps=4)
    assert [state["step"] for state in optimizer.state_dict()["state"].values()] == [4] * len(SHAPES)
    assert all(type(state["step"]) is int for state in optimizer.state.values())


def test_groups_override_settings():
    decayed, kept = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    decayed.grad, kept.grad = torch.zeros(2, 2), torch.zeros(2)
    AdamW([{"params": [decayed]}, {"params": [kept], "weight_decay": 0.0}], lr=0.1, weight_decay=1.0).step()
    torch.testing.assert_close(decayed.detach(), torch.full((2, 2), 0.9))
    assert torch.equal(kept.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr=-1.0: the learning rate must be at least 0"),
        ({"lr": float("nan")}, r"lr=nan"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): both must lie in \[0, 1\)"),
        ({"eps": 0.0}, r"eps=0.0: must be above 0"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1: must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OPTIMIZERS.build("adamw", make_parameters(), **settings)


def test_states_in_flat_buffers_are_saved_and_computed_with_as_single_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    from scratchlm.checkpoint import optimizer_tensors

    flat, single = make_parameters(), make_parameters()
    first, second = AdamW(flat), AdamW(single)
    make_flat_states(flat, first.state)
    assert len({first.state[p]["mean"].untyped_storage().data_ptr() for p in flat}) == 1
    assert all(first.state[p][key].data_ptr() % 16 == 0 for p in flat for key in ("mean", "square"))
    train(first, flat, num_steps=3)
    train(second, single, num_steps=3)
    ours, plain = optimizer_tensors(first)
    theirs, same = optimizer_tensors(second)
    assert plain == same
    save_file(ours, tmp_path / "flat.safetensors")
    loaded = load_file(tmp_path / "flat.safetensors")
    assert loaded.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in loaded.items())
    assert sum(p.numel() for p in flat) * 8 < (tmp_path / "flat.safetensors").stat().st_size < 2000


@pytest.mark.parametrize("name", ["adamw", "adamw_reference", "muon", "lion"])
def test_a_state_saved_before_cautious_decay_existed_goes_on_without(name):
    parameters, plain = make_parameters()[:1], make_parameters()[:1]
    optimizer, twin = (OPTIMIZERS.build(name, params, lr=1e-2) for params in (parameters, plain))
    train(optimizer, parameters, num_steps=2)
    train(twin, plain, num_steps=2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["cautious_decay"]
    optimizer.load_state_dict(saved)
    train(optimizer, parameters, num_steps=2, seed=5)
    train(twin, plain, num_steps=2, seed=5)
    assert torch.equal(parameters[0], plain[0])


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_a_copy_of_an_optimizer_works(name):
    parameters = make_parameters()[:1]
    optimizer = OPTIMIZERS.build(name, parameters, lr=1e-2)
    train(optimizer, parameters, num_steps=2)
    twin = copy.deepcopy(optimizer)
    train(twin, twin.param_groups[0]["params"], num_steps=2, seed=5)
    train(optimizer, parameters, num_steps=2, seed=5)
    assert torch.equal(parameters[0], twin.param_groups[0]["params"][0])
