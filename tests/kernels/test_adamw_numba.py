import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter

from scratchlm.kernels import adamw_numba, numba_lists
from scratchlm.optim.adamw import AdamW, AdamWReference

SHAPES = [(37, 11), (1,), (64,), (5, 7, 3), ()]


def train(part, dtype=torch.float32, transposed=False, num_steps=5, **settings):
    """Five steps with gradients of very different sizes; the parameters at the end."""
    generator = torch.Generator().manual_seed(1)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    if transposed:
        params[0] = Parameter(params[0].detach().T)
    optimizer = part(params, lr=1e-2, weight_decay=0.3, **settings)
    for _ in range(num_steps):
        for index, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (index - 3)
            p.grad = grad.to(dtype)
        optimizer.step()
    return [p.detach() for p in params]


def calls_of_the_loop(monkeypatch):
    calls = []
    move = adamw_numba.move
    monkeypatch.setattr(adamw_numba, "move", lambda *a, **k: (calls.append(1), move(*a, **k)))
    return calls


@pytest.mark.parametrize("cautious", [False, True])
def test_the_loop_equals_the_formula_and_the_tensor_operations(monkeypatch, cautious):
    calls = calls_of_the_loop(monkeypatch)
    ours = train(AdamW, cautious_decay=cautious)
    assert len(calls) == 5
    for mine, plain in zip(ours, train(AdamWReference, cautious_decay=cautious), strict=True):
        torch.testing.assert_close(mine, plain)
    monkeypatch.setattr(numba_lists, "can_move", lambda *lists: False)
    for mine, other in zip(ours, train(AdamW, cautious_decay=cautious), strict=True):
        torch.testing.assert_close(mine, other)


def test_threads_change_no_bit(monkeypatch):
    one = train(AdamW)
    monkeypatch.setattr(numba_lists, "THREADS_FROM", 0)
    monkeypatch.setattr(numba_lists, "CHUNK", 50)  # several for a tensor, with a rest
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(adamw_numba, "_move_on_one", lambda *a: pytest.fail("on one thread"))
    two = train(AdamW)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "unusual", [{"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"transposed": True}]
)
def test_what_the_loop_cannot_move_is_moved_by_tensor_operations(monkeypatch, unusual):
    calls = calls_of_the_loop(monkeypatch)
    ours = train(AdamW, **unusual)
    assert not calls
    tolerance = {"rtol": 0.05, "atol": 0.05} if unusual.get("dtype") == torch.bfloat16 else {}
    for mine, plain in zip(ours, train(AdamWReference, **unusual), strict=True):
        torch.testing.assert_close(mine, plain, **tolerance)


def test_a_gradient_of_another_layout_is_seen(monkeypatch):
    calls = calls_of_the_loop(monkeypatch)
    p, twin = Parameter(torch.zeros(3, 4)), Parameter(torch.zeros(3, 4))
    grad = torch.arange(12.0).reshape(4, 3).T
    p.grad, twin.grad = grad, grad.contiguous()
    AdamW([p], weight_decay=0.0).step()
    assert not calls
    AdamW([twin], weight_decay=0.0).step()
    assert calls
    torch.testing.assert_close(p, twin)


def test_a_backward_pass_through_values_that_were_moved_is_refused():
    p = Parameter(torch.ones(4))
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    AdamW([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_not_a_number_stays_one_and_touches_nothing_else():
    p = Parameter(torch.ones(4))
    p.grad = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    AdamW([p]).step()
    assert p.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("cautious", [False, True])
def test_zero_gradients_from_the_beginning_leave_decay_alone(cautious):
    p = Parameter(torch.ones(4))
    p.grad = torch.zeros(4)
    AdamW([p], lr=0.1, weight_decay=0.5, cautious_decay=cautious).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 0.95))


def test_the_first_step_warns_of_nothing_where_subnormal_numbers_are_flushed():
    code = (
        "import torch; torch.set_flush_denormal(True); from scratchlm.optim.adamw import AdamW; "
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3); AdamW([p]).step()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
