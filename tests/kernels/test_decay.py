import pytest
import torch

from scratchlm.kernels.decay import decay_


def test_plain_decay_shrinks_everything():
    p = torch.tensor([1.0, -1.0, 0.0])
    decay_([p], [torch.tensor([2.0, 2.0, 2.0])], 0.1)
    torch.testing.assert_close(p, torch.tensor([0.9, -0.9, 0.0]))


def test_cautious_decay_equals_the_paper_coordinate_by_coordinate():
    p, u = torch.tensor([1.0, -1.0, 3.0, -2.0]), torch.tensor([2.0, 2.0, 0.0, -1e-3])
    decay_([p], [u], 0.1, cautious=True)
    torch.testing.assert_close(p, torch.tensor([0.9, -1.0, 2.7, -1.8]))


@pytest.mark.parametrize("cautious", [False, True])
def test_no_decay_changes_no_bit(cautious):
    p = torch.randn(5, generator=torch.Generator().manual_seed(1))
    before = p.clone()
    decay_([p], [torch.ones(5)], 0.0, cautious=cautious)
    assert torch.equal(p, before)
