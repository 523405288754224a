import pytest
import torch
from torch.nn import Parameter

from scratchlm.kernels import lion_numba, lion_plain, numba_lists
from scratchlm.optim.lion import Lion, LionReference

SHAPES = [(37, 11), (1,), (64,), (5, 7, 3), (), (0, 3)]


def train(part, dtype=torch.float32, num_steps=5, **settings):
    """Five steps with gradients of very different sizes; parameters and memories at the end."""
    generator = torch.Generator().manual_seed(1)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    optimizer = part(params, lr=1e-2, weight_decay=0.3, **settings)
    for _ in range(num_steps):
        for index, p in enumerate(params):
            p.grad = (torch.randn(p.shape, generator=generator) * 10.0 ** (index - 3)).to(dtype)
        optimizer.step()
    return [p.detach() for p in params] + [optimizer.state[p]["momentum"] for p in params]


def calls_of_the_loop(monkeypatch):
    calls = []
    move = lion_numba.move
    monkeypatch.setattr(lion_numba, "move", lambda *a, **k: (calls.append(1), move(*a, **k)))
    return calls


@pytest.mark.parametrize("cautious", [False, True])
def test_the_loop_gives_the_bits_of_the_tensor_operations(monkeypatch, cautious):
    calls = calls_of_the_loop(monkeypatch)
    ours = train(Lion, cautious_decay=cautious)
    assert len(calls) == 5
    monkeypatch.setattr(numba_lists, "can_move", lambda *lists: False)
    others = train(Lion, cautious_decay=cautious)
    assert len(calls) == 5
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("cautious", [False, True])
def test_the_loop_equals_the_formula(cautious):
    ours, formula = (train(part, cautious_decay=cautious) for part in (Lion, LionReference))
    for mine, plain in zip(ours, formula, strict=True):
        torch.testing.assert_close(mine, plain)


def test_threads_change_no_bit(monkeypatch):
    one = train(Lion)
    monkeypatch.setattr(numba_lists, "THREADS_FROM", 0)
    monkeypatch.setattr(numba_lists, "CHUNK", 50)  # several for a tensor, with a rest
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(lion_numba, "_move_on_one", lambda *a: pytest.fail("on one thread"))
    assert all(torch.equal(a, b) for a, b in zip(one, train(Lion), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_the_loop_cannot_move_is_moved_by_tensor_operations(monkeypatch, dtype):
    calls = calls_of_the_loop(monkeypatch)
    ours = train(Lion, dtype)
    assert not calls
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for mine, plain in zip(ours, train(LionReference, dtype), strict=True):
        torch.testing.assert_close(mine, plain, **tolerance)


@pytest.mark.parametrize("cautious", [False, True])
def test_both_plain_ways_agree(cautious):
    generator = torch.Generator().manual_seed(2)
    lists = [[torch.randn(9, 5, generator=generator) for _ in range(2)] for _ in range(3)]
    twins = [[t.double() for t in tensors] for tensors in lists]
    settings = {"betas": (0.9, 0.99), "decay": 0.1, "cautious": cautious, "step_size": 0.01}
    lion_plain.move(*lists, **settings)
    lion_plain.move_reference(*twins, **settings)
    for ours, exact in zip(lists, twins, strict=True):
        torch.testing.assert_close(ours, [t.float() for t in exact])


def test_a_backward_pass_through_values_that_were_moved_is_refused():
    p = Parameter(torch.ones(4))
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    Lion([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_coordinate_without_a_gradient_signal_only_decays_and_no_number_spreads():
    p = Parameter(torch.ones(3))
    p.grad = torch.tensor([0.0, float("nan"), 1.0])
    optimizer = Lion([p], lr=0.1, weight_decay=0.5)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.95, 0.95, 0.85]))  # torch: sign(nan) is 0
    assert optimizer.state[p]["momentum"].isnan().tolist() == [False, True, False]
