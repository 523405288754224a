import math

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.sgd import SGD


def make_parameters():
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in [(7, 5), (5,), ()]]


def train(optimizer, parameters, num_steps):
    generator = torch.Generator().manual_seed(2)
    for step in range(num_steps):
        for index, p in enumerate(parameters):
            grad = torch.randn(p.shape, generator=generator)
            p.grad = None if step == 0 and index == 1 else grad
        optimizer.step()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fifty_steps_equal_torch(momentum, nesterov, weight_decay):
    settings = {"lr": 0.03, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    ours, theirs = make_parameters(), make_parameters()
    train(SGD(ours, **settings), ours, 50)
    train(torch.optim.SGD(theirs, **settings), theirs, 50)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_inverse_square_root_decay_counts_from_one():
    p = Parameter(torch.zeros(1))
    optimizer = OPTIMIZERS.build("sgd", [p], lr=6.0, decay="inverse_sqrt")
    positions = []
    for _ in range(4):
        p.grad = torch.ones(1)
        optimizer.step()
        positions.append(float(p.detach()))
    steps = [6.0 / math.sqrt(t + 1) for t in range(4)]
    assert positions == pytest.approx([-sum(steps[: n + 1]) for n in range(4)])


def test_gradients_are_left_as_they_were():
    p = Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(2):
        p.grad = torch.full((3,), 2.0)
        optimizer.step()
        assert torch.equal(p.grad, torch.full((3,), 2.0))


def test_closure_runs_with_gradients_on_and_its_loss_is_returned():
    p = Parameter(torch.tensor([3.0]))
    optimizer = SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    torch.testing.assert_close(p.detach(), torch.tensor([2.4]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, r"momentum=1.0: must lie in \[0, 1\)"),
        ({"nesterov": True}, "nesterov=true needs momentum"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"decay": "cosine"}, "decay='cosine'"),
    ],
)
def test_sgd_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OPTIMIZERS.build("sgd", make_parameters(), **settings)
