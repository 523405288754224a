"""The loss's kernels on a GPU, in bfloat16: exact, at the size of a real step, compiled, in little memory."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.cross_entropy import (
    IGNORE,
    chunked_cross_entropy_reference,
    token_losses_reference,
)
from scratchlm.loss import chunked_cross_entropy, cross_entropy, token_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BF16 = torch.bfloat16
ROWS, VOCABULARY, WIDTH = 65_536, 50_304, 768


def random_case(rows, vocabulary):
    logits = (3 * torch.randn(rows, vocabulary, device="cuda")).to(BF16)
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    targets[1::5] = IGNORE
    return logits, targets


def truth(logits, targets):
    losses = torch.logsumexp(logits, -1) - logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets == IGNORE, 0.0, losses)


def gradients(function, logits, targets, upstream):
    z = logits.detach().requires_grad_()
    losses = function(z, targets)
    return losses.detach(), torch.autograd.grad(losses, z, upstream)[0]


@pytest.mark.parametrize("vocabulary", [65, 4096, 50_257, VOCABULARY])
def test_losses_and_gradients_are_as_exact_as_plain_code(vocabulary):
    logits, targets = random_case(50, vocabulary)
    upstream = torch.rand(50, device="cuda")
    exact = gradients(truth, logits.double(), targets, upstream.double())
    plain = gradients(token_losses_reference, logits, targets, upstream)
    mine = gradients(token_losses, logits, targets, upstream)
    for factor, ours, theirs, right in zip((2, 3), mine, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        allowed = factor * (theirs - right).abs().max()
        assert (ours - right).abs().max() <= max(allowed, torch.finfo(ours.dtype).eps * right.abs().max())


def test_the_table_of_a_real_step_is_right_to_its_last_row_and_needs_no_second_one():
    from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

    logits = torch.empty(ROWS, VOCABULARY, device="cuda", dtype=BF16).normal_()
    targets = torch.randint(VOCABULARY, (ROWS,), device="cuda")
    tail = logits[-100:].clone()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    losses = losses_and_gradient_(logits, targets)
    assert torch.cuda.max_memory_allocated() - before < 2**24
    expected = gradients(token_losses_reference, tail, targets[-100:], torch.ones(100, device="cuda"))
    torch.testing.assert_close(losses[-100:], expected[0])
    torch.testing.assert_close(logits[-100:], expected[1])


def test_head_and_loss_in_chunks_are_as_exact_as_one_table():
    hidden = torch.randn(4000, WIDTH, device="cuda", dtype=BF16, requires_grad=True)
    weight = (0.05 * torch.randn(VOCABULARY, WIDTH, device="cuda")).requires_grad_()
    targets = torch.randint(VOCABULARY, (4000,), device="cuda")

    def results(function, hidden, weight, **settings):
        loss = function(hidden, weight, targets, softcap=20.0, **settings)
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = results(chunked_cross_entropy_reference, *doubles)
    with torch.autocast("cuda", BF16):
        plain = results(chunked_cross_entropy_reference, hidden, weight)
        mine = results(chunked_cross_entropy, hidden, weight, chunk_rows=1500)
        again = results(chunked_cross_entropy, hidden, weight, chunk_rows=1500)
    for factor, ours, theirs, right, repeated in zip((2, 3, 3), mine, plain, exact, again, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, repeated)
        assert (ours - right).norm() <= factor * (theirs - right).norm()


def test_head_and_loss_need_a_chunk_of_memory_not_a_table():
    hidden = torch.randn(ROWS, WIDTH, device="cuda", dtype=BF16, requires_grad=True)
    weight = (0.05 * torch.randn(VOCABULARY, WIDTH, device="cuda")).requires_grad_()
    targets = torch.randint(VOCABULARY, (ROWS,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", BF16):
        chunked_cross_entropy(hidden, weight, targets).backward()
    table = ROWS * VOCABULARY * 2
    assert torch.cuda.max_memory_allocated() - before < table / 2


@pytest.mark.compile
def test_compiled_whole_on_a_gpu_both_losses_are_the_same():
    hidden = torch.randn(300, 64, device="cuda", dtype=BF16, requires_grad=True)
    weight = (0.1 * torch.randn(1000, 64, device="cuda")).requires_grad_()
    targets = torch.randint(1000, (300,), device="cuda")
    assert choose("token_losses", device="cuda").name == "triton"

    def both(hidden, weight):
        with torch.autocast("cuda", BF16):
            chunked = chunked_cross_entropy(hidden * 1, weight, targets, chunk_rows=128)
            return chunked + cross_entropy(hidden @ weight.T, targets, overwrite=True)

    compiled = torch.compile(both, fullgraph=True)
    values = compiled(hidden, weight), both(hidden, weight)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, (hidden, weight)) for value in values))
