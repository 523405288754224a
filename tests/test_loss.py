"""The loss: equal to torch's, safe for any size of logits, whole or in chunks."""

import math

import pytest
import torch
from torch.nn import functional

from scratchlm.loss import (
    IGNORE,
    bits_per_byte,
    chunked_cross_entropy,
    cross_entropy,
    token_losses,
    token_losses_reference,
)


def random_case(vocab=50, scale=1.0):
    logits = (scale * torch.randn(3, 7, vocab)).requires_grad_()
    targets = torch.randint(0, vocab, (3, 7))
    targets[0, 2], targets[2, 6] = IGNORE, IGNORE
    return logits, targets


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_loss_and_gradient_equal_torch(scale):
    logits, targets = random_case(scale=scale)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    ours = cross_entropy(logits, targets)
    torch.testing.assert_close(ours, expected)
    assert torch.isfinite(ours)
    (mine,), (reference,) = torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(mine, reference)


def test_written_gradient_equals_autograds():
    logits, targets = random_case()
    upstream = torch.randn(3, 7)
    (mine,) = torch.autograd.grad(token_losses(logits, targets), logits, upstream)
    (reference,) = torch.autograd.grad(token_losses_reference(logits, targets), logits, upstream)
    torch.testing.assert_close(token_losses(logits, targets), token_losses_reference(logits, targets))
    torch.testing.assert_close(mine, reference)


def test_gradient_passes_gradcheck():
    logits, targets = (
        torch.randn(4, 6, dtype=torch.double, requires_grad=True),
        torch.tensor([1, 5, IGNORE, 0]),
    )
    # the loss itself is float32, so the steps are coarse
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets), logits, eps=1e-2, atol=1e-3)


def test_bfloat16_logits_are_summed_in_float32():
    logits, targets = torch.zeros(1, 4096, dtype=torch.bfloat16), torch.tensor([7])
    assert cross_entropy(logits, targets).item() == pytest.approx(math.log(4096), abs=1e-5)


def test_a_worked_example():
    assert cross_entropy(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(math.log(2))


def test_ignored_targets_count_neither_in_the_sum_nor_in_the_mean():
    logits, targets = random_case()
    kept = targets != IGNORE
    torch.testing.assert_close(cross_entropy(logits, targets), cross_entropy(logits[kept], targets[kept]))
    cross_entropy(logits, targets).backward()
    assert logits.grad[~kept].abs().max() == 0
    assert (token_losses(logits, targets)[~kept] == 0).all()


def test_no_target_at_all_is_nan_as_in_torch():
    assert cross_entropy(torch.zeros(2, 3), torch.full((2,), IGNORE)).isnan()


@pytest.mark.parametrize("chunk_rows", [1, 4, 21, 1000])
def test_chunks_change_neither_loss_nor_gradients(chunk_rows):
    _, targets = random_case()
    hidden, weight = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    whole = cross_entropy(hidden @ weight.T, targets)
    chunked = chunked_cross_entropy(hidden, weight, targets, chunk_rows=chunk_rows)
    torch.testing.assert_close(chunked, whole)
    expected = torch.autograd.grad(whole, (hidden, weight))
    for mine, reference in zip(torch.autograd.grad(chunked, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_chunks_need_rows():
    with pytest.raises(ValueError, match="chunk_rows=0: must be at least 1"):
        chunked_cross_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), chunk_rows=0)


def test_bits_per_byte_of_worked_examples():
    assert bits_per_byte(math.log(2), 10, 10) == pytest.approx(1.0)
    assert bits_per_byte(2.0, 100, 400) == pytest.approx(0.7213475)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 1, 0)
