"""The loss's plain implementations: chosen by name, one signature, one result."""

import inspect

import pytest
import torch

from scratchlm.kernels import KERNELS, choose, load
from scratchlm.kernels.cross_entropy import IGNORE, chunked_cross_entropy, token_losses

OPERATIONS = ["token_losses", "chunked_cross_entropy"]
TERMS = [{}, {"z_loss": 0.01, "label_smoothing": 0.2}]


def on_cpu(op):
    return [name for name in KERNELS[op] if name != "triton"]


def random_inputs(op):
    targets = torch.randint(50, (3, 7))
    targets[0, 2] = IGNORE
    if op == "token_losses":
        return (torch.randn(3, 7, 50, requires_grad=True),), targets
    return (torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)), targets


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_cpu_takes_the_plain_way(op):
    for choice in (choose(op), choose(op, device="cpu")):
        assert choice.name == "plain"
        assert choice.function is {"token_losses": token_losses}.get(op, chunked_cross_entropy)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_all_names_give_the_same_losses_and_gradients(op, terms):
    tensors, targets = random_inputs(op)
    found = []
    for name in on_cpu(op):
        losses = choose(op, name).function(*tensors, targets, **terms)
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), tensors)))
    assert len(found) == 2
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("op", OPERATIONS)
def test_all_names_have_one_signature(op):
    pytest.importorskip("triton")
    signatures = [inspect.signature(load(op, name)) for name in KERNELS[op]]
    assert len(signatures) == 3
    kept = [[(part.name, part.kind, part.default) for part in one.parameters.values()] for one in signatures]
    assert kept[0] == kept[1] == kept[2]


def test_plain_code_never_overwrites_the_logits():
    leaf = torch.randn(3, 50, requires_grad=True)
    logits = leaf * 1
    before = logits.detach().clone()
    loss = token_losses(logits, torch.tensor([1, 2, 3]), overwrite=True).sum()
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(logits, before)
    assert torch.equal(first, second)
