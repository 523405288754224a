"""The loss: equal to torch's, safe for any size of logits, whole or in chunks."""

import math

import pytest
import torch
from torch.nn import functional

from scratchlm.kernels.cross_entropy import token_losses_reference
from scratchlm.loss import IGNORE, bits_per_byte, chunked_cross_entropy, cross_entropy, token_losses

TERMS = [{}, {"z_loss": 0.01}, {"label_smoothing": 0.1}, {"z_loss": 0.01, "label_smoothing": 0.2}]
"""What may be added to the plain loss."""


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


@pytest.mark.parametrize("terms", TERMS)
def test_written_gradient_equals_autograds(terms):
    logits, targets = random_case()
    upstream = torch.randn(3, 7)
    ours, expected = token_losses(logits, targets, **terms), token_losses_reference(logits, targets, **terms)
    torch.testing.assert_close(ours, expected)
    (mine,) = torch.autograd.grad(ours, logits, upstream)
    (reference,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(mine, reference)


def test_smoothed_loss_and_gradient_equal_torch():
    logits, targets = random_case()
    expected = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, label_smoothing=0.1
    )
    ours = cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(ours, expected)
    (mine,), (reference,) = torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(mine, reference)


def test_z_loss_adds_the_squared_logsumexp_of_the_targets_that_count():
    logits, targets = random_case()
    squares = torch.logsumexp(logits, dim=-1).square()[targets != IGNORE]
    added = cross_entropy(logits, targets, z_loss=0.01) - cross_entropy(logits, targets)
    torch.testing.assert_close(added, 0.01 * squares.mean(), atol=1e-6, rtol=1e-5)


def test_z_loss_pulls_a_common_offset_of_all_logits_back():
    logits = (torch.randn(20, 30) + 8).requires_grad_()
    targets = torch.randint(0, 30, (20,))
    (plain,) = torch.autograd.grad(cross_entropy(logits, targets), logits)
    (pulled,) = torch.autograd.grad(cross_entropy(logits, targets, z_loss=0.01), logits)
    assert plain.sum().abs() < 1e-6  # softmax does not see the offset
    assert pulled.sum() > 0.1


@pytest.mark.parametrize("terms", TERMS)
def test_parts_of_a_batch_add_up_to_the_whole(terms):
    logits, targets = random_case()
    targets[0] = IGNORE  # the parts have different numbers of targets
    num_targets = (targets != IGNORE).sum()
    parts = [cross_entropy(logits[row], targets[row], num_targets=num_targets, **terms) for row in range(3)]
    whole = cross_entropy(logits, targets, **terms)
    torch.testing.assert_close(sum(parts), whole)
    assert parts[0] == 0
    chunked = chunked_cross_entropy(logits[1], torch.eye(50), targets[1], num_targets=num_targets, **terms)
    torch.testing.assert_close(chunked, parts[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"z_loss": -0.1}, "z_loss=-0.1: must be at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: must be at least 0 and below 1"),
    ],
)
def test_weights_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(torch.zeros(1, 2), torch.tensor([0]), **settings)
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), **settings)


@pytest.mark.parametrize("terms", TERMS)
def test_gradient_passes_gradcheck(terms):
    logits, targets = (
        torch.randn(4, 6, dtype=torch.double, requires_grad=True),
        torch.tensor([1, 5, IGNORE, 0]),
    )
    # the loss itself is float32, so the steps are coarse
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets, **terms), logits, eps=1e-2, atol=2e-3)


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


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 21, 1000])
def test_chunks_change_neither_loss_nor_gradients(chunk_rows, terms, softcap):
    _, targets = random_case()
    hidden, weight = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    logits = hidden @ weight.T
    bounded = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    whole = 3 * cross_entropy(bounded, targets, **terms)
    chunked = 3 * chunked_cross_entropy(
        hidden, weight, targets, chunk_rows=chunk_rows, softcap=softcap, **terms
    )
    torch.testing.assert_close(chunked, whole)
    expected = torch.autograd.grad(whole, (hidden, weight))
    for mine, reference in zip(torch.autograd.grad(chunked, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_chunks_give_gradients_to_what_wants_them_only(frozen):
    _, targets = random_case()
    hidden = torch.randn(3, 7, 8, requires_grad=frozen not in ("hidden", "both"))
    weight = torch.randn(50, 8, requires_grad=frozen not in ("weight", "both"))
    loss = chunked_cross_entropy(hidden, weight, targets, chunk_rows=4)
    torch.testing.assert_close(loss, cross_entropy(hidden @ weight.T, targets))
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    assert [x.grad is not None for x in (hidden, weight)] == [hidden.requires_grad, weight.requires_grad]


@pytest.mark.parametrize(("gradients", "products"), [(True, 3), (False, 1)])
def test_chunks_compute_no_product_twice_and_no_gradient_that_nobody_wants(gradients, products):
    from torch.utils.flop_counter import FlopCounterMode

    _, targets = random_case()
    hidden, weight = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk_rows=4)
        if gradients:
            loss.backward()
    assert counter.get_total_flops() == products * 2 * 21 * 8 * 50


def test_chunks_under_autocast_are_as_exact_as_one_table():
    _, targets = random_case(vocab=300)
    targets = targets.repeat(1, 20)
    hidden, weight = torch.randn(3, 140, 64, requires_grad=True), torch.randn(300, 64, requires_grad=True)
    exact = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        chunked = chunked_cross_entropy(hidden, weight, targets, chunk_rows=64)
        logits = hidden @ weight.T
    whole = cross_entropy(logits, targets)
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole)
    theirs = torch.autograd.grad(whole, (hidden, weight))
    for mine, other, truth in zip(torch.autograd.grad(chunked, (hidden, weight)), theirs, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - truth).abs().max() <= 2 * (other - truth).abs().max()


@pytest.mark.compile
@pytest.mark.parametrize("terms", [TERMS[0], TERMS[-1]])
def test_both_forms_compile_whole_and_once(terms):
    from torch._dynamo.testing import CompileCounterWithBackend

    _, targets = random_case()
    hidden, weight = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)

    def both(hidden, weight, targets, num_targets):
        logits = hidden @ weight.T
        chunked = chunked_cross_entropy(
            hidden, weight, targets, chunk_rows=5, num_targets=num_targets, softcap=4.0, **terms
        )
        return cross_entropy(logits, targets, num_targets=num_targets, **terms) + chunked

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both, fullgraph=True, dynamic=False, backend=counter)
    for count in (19, 7, 3):
        num_targets = torch.tensor(count)
        mine, expected = (f(hidden, weight, targets, num_targets) for f in (compiled, both))
        torch.testing.assert_close(mine, expected)
        gradients = zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (mine, expected)), strict=True)
        for ours, reference in gradients:
            torch.testing.assert_close(ours, reference)
    assert counter.frame_count == 1


@pytest.mark.compile
def test_a_compiler_takes_what_was_chosen_for_a_device_as_given():
    from scratchlm.loss import _name_on_gpu

    def double(x):
        return 2 * x if _name_on_gpu("token_losses", x.device) == "plain" else x

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(1)).item() == 2


def test_chunks_need_rows_and_a_bound_above_zero():
    with pytest.raises(ValueError, match="chunk_rows=0: must be at least 1"):
        chunked_cross_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), chunk_rows=0)
    with pytest.raises(ValueError, match=r"softcap=0\.0: must be above 0, or None"):
        chunked_cross_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), softcap=0.0)


def test_bits_per_byte_of_worked_examples():
    assert bits_per_byte(math.log(2), 10, 10) == pytest.approx(1.0)
    assert bits_per_byte(2.0, 100, 400) == pytest.approx(0.7213475)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 1, 0)
