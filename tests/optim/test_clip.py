import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim.clip import clip_gradients_


def make_parameters(scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    parameters = [Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(4, 3), (3,), (2, 2, 2)]]
    for p in parameters[:2]:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(dtype)
    return parameters


@pytest.mark.parametrize("scale", [1e-8, 0.01, 1.0, 1e4])
def test_clipped_gradients_and_norm_equal_torch(scale):
    ours, theirs = make_parameters(scale), make_parameters(scale)
    norm = clip_gradients_(ours, 1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, 1.0))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert ours[2].grad is None


def test_worked_example_keeps_the_proportions():
    first, second = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip_gradients_([first, second], 1.0)) == 5.0
    torch.testing.assert_close(torch.cat([first.grad, second.grad]), torch.tensor([0.6, 0.8]))


def test_short_gradients_stay_bit_identical():
    parameters = make_parameters(0.01)
    before = [p.grad.clone() for p in parameters[:2]]
    clip_gradients_((p for p in parameters), 1.0)
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters[:2], before, strict=True))


def test_a_norm_a_little_too_long_is_shortened():
    p = Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    clip_gradients_([p], 4.9)
    torch.testing.assert_close(p.grad, torch.tensor([2.94, 3.92]))


def test_a_norm_that_is_not_a_number_is_reported():
    p = Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, float("nan")])
    assert clip_gradients_([p], 1.0).isnan()


def test_infinite_max_norm_only_measures():
    parameters = make_parameters(1e4)
    before = parameters[0].grad.clone()
    assert float(clip_gradients_(parameters, float("inf"))) > 1e4
    assert torch.equal(parameters[0].grad, before)


def test_bfloat16_gradients_are_measured_in_float32():
    p = Parameter(torch.zeros(10_000, dtype=torch.bfloat16))
    p.grad = torch.ones(10_000, dtype=torch.bfloat16)
    norm = clip_gradients_([p], 1e6)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(100.0)


def test_no_gradients_have_norm_zero():
    assert float(clip_gradients_([Parameter(torch.zeros(2))], 1.0)) == 0.0


def test_max_norm_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"max_norm=0\.0: must be above 0"):
        clip_gradients_(make_parameters(), 0.0)


@pytest.mark.compile
def test_it_compiles_into_one_graph():
    params = [Parameter(torch.zeros(3)), Parameter(torch.zeros(2, 2))]
    for p in params:
        p.grad = torch.full_like(p, 5.0)
    norm = torch.compile(clip_gradients_, fullgraph=True, backend="aot_eager")(params, 1.0)
    torch.testing.assert_close(norm, torch.tensor(7 * 25.0).sqrt())
    torch.testing.assert_close(sum(p.grad.square().sum() for p in params), torch.tensor(1.0))
