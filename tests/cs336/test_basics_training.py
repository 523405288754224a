"""The course's training functions: loss, batches, optimizer, schedule, clipping."""

import collections

import numpy as np
import pytest
import torch
from torch.nn import functional

from scratchlm.cs336 import basics


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_equals_torch_and_ignores_a_constant_shift(dim):
    x = torch.randn(5, 7)
    torch.testing.assert_close(basics.run_softmax(x, dim), functional.softmax(x, dim))
    torch.testing.assert_close(
        basics.run_softmax(x + 1000, dim), functional.softmax(x, dim), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_equals_torch_at_any_size_of_logits(scale):
    logits, targets = torch.randn(8, 11) * scale, torch.randint(11, (8,))
    loss = basics.run_cross_entropy(logits, targets)
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets))


def test_batches_are_shifted_by_one_and_every_start_comes():
    dataset = np.arange(100, dtype=np.uint16)
    starts = collections.Counter()
    for _ in range(400):
        inputs, targets = basics.run_get_batch(dataset, 32, 7, "cpu")
        assert inputs.shape == targets.shape == (32, 7)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs + 1, targets)
        starts.update(inputs[:, 0].tolist())
    assert sorted(starts) == list(range(93))
    expected = 400 * 32 / 93
    assert all(abs(count - expected) < 5 * expected**0.5 for count in starts.values())


def test_a_device_that_does_not_exist_is_an_error():
    with pytest.raises((RuntimeError, AssertionError)):
        basics.run_get_batch(np.arange(100), 2, 7, "cuda:99")


def test_adamw_trains_like_torchs():
    def train(kind):
        torch.manual_seed(42)
        model = torch.nn.Linear(3, 2, bias=False)
        optimizer = kind(model.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
        for _ in range(300):
            optimizer.zero_grad()
            x = torch.rand(model.in_features)
            wanted = torch.stack([x[0] + x[1], -x[2]])
            (wanted - model(x)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    torch.testing.assert_close(train(basics.get_adamw_cls()), train(torch.optim.AdamW), atol=1e-5, rtol=1e-5)


def test_schedule_warms_up_to_the_maximum_and_falls_to_the_minimum():
    rates = [basics.run_get_lr_cosine_schedule(it, 1.0, 0.1, 7, 21) for it in range(25)]
    assert rates[:8] == pytest.approx([it / 7 for it in range(8)])
    assert rates[14] == pytest.approx(0.55)
    assert rates[21:] == pytest.approx([0.1] * 4)


def test_clipping_changes_gradients_in_place_and_skips_missing_ones():
    ours = [torch.nn.Parameter(torch.randn(5, 5)) for _ in range(4)]
    ours[-1].requires_grad_(False)
    theirs = [torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in ours]
    for group in (ours, theirs):
        sum((p**2).sum() for p in group).backward()
    assert basics.run_gradient_clipping(ours, 0.01) is None
    torch.nn.utils.clip_grad_norm_(theirs, 0.01)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert ours[-1].grad is None
