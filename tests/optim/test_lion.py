import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim.lion import Lion, LionReference


@pytest.mark.parametrize("part", [Lion, LionReference])
def test_worked_example_of_two_steps(part):
    p = Parameter(torch.tensor([1.0, -1.0]))
    optimizer = part([p], lr=0.1, betas=(0.5, 0.5), weight_decay=0.5)
    p.grad = torch.tensor([4.0, 4.0])
    optimizer.step()  # both up: 1 - 0.1 * (1 + 0.5), -1 - 0.1 * (1 - 0.5); m = 2
    torch.testing.assert_close(p.detach(), torch.tensor([0.85, -1.05]))
    p.grad = torch.tensor([-1.0, -3.0])
    optimizer.step()  # c = 0.5, -0.5 -> signs 1, -1
    torch.testing.assert_close(p.detach(), torch.tensor([0.85 - 0.1425, -1.05 + 0.1525]))
    torch.testing.assert_close(optimizer.state[p]["momentum"], torch.tensor([0.5, -0.5]))


def test_every_coordinate_moves_by_the_learning_rate():
    p = Parameter(torch.zeros(50))
    optimizer = Lion([p], lr=0.25, weight_decay=0.0)
    for step in range(4):
        before = p.detach().clone()
        p.grad = torch.randn(50, generator=torch.Generator().manual_seed(step)) * 10.0**-step
        optimizer.step()
        torch.testing.assert_close((p.detach() - before).abs(), torch.full((50,), 0.25))


def test_a_coordinate_that_never_had_a_gradient_only_decays():
    p = Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    Lion([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.95))


def test_it_keeps_one_tensor_per_parameter():
    p = Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer = Lion([p])
    optimizer.step()
    assert [key for key, value in optimizer.state[p].items() if torch.is_tensor(value)] == ["momentum"]
