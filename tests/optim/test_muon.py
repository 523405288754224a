import pytest
import torch
from torch.nn import Parameter

from scratchlm.kernels.orthogonalize import orthogonalize, orthogonalize_reference
from scratchlm.optim.adamw import AdamW
from scratchlm.optim.groups import parameter_groups
from scratchlm.optim.muon import Muon, MuonReference

SHAPES = [(24, 16), (16, 24), (16, 16), (24, 16)]


def make_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) * 0.1 for shape in SHAPES]


def train(optimizer, parameters, num_steps):
    for step in range(num_steps):
        for p, grad in zip(parameters, gradients(step), strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step()


def largest_error(parameters, truth):
    return max(float((p - q).detach().abs().max()) for p, q in zip(parameters, truth, strict=True))


@pytest.mark.parametrize(
    ("scale", "theirs"), [("adamw", "match_rms_adamw"), ("spectral", "original"), ("spectral", None)]
)
def test_it_is_as_near_to_the_truth_as_torch(scale, theirs):
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, torchs, truth = make_parameters(), make_parameters(), make_parameters(torch.float64)
    train(Muon(ours, **settings, scale=scale, precision="bfloat16"), ours, 10)
    train(torch.optim.Muon(torchs, **settings, adjust_lr_fn=theirs), torchs, 10)
    train(MuonReference(truth, **settings, scale=scale), truth, 10)
    assert largest_error(ours, truth) <= 2 * largest_error(torchs, truth)
    assert largest_error(torchs, truth) < 2e-3  # both moved by 0.1


def test_singular_values_end_near_one_and_directions_stay():
    generator = torch.Generator().manual_seed(2)
    matrices = torch.randn(5, 12, 20, generator=generator, dtype=torch.float64)
    ours = orthogonalize_reference(matrices)
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.68
    assert values.max() < 1.21
    true_left, _, true_right = torch.linalg.svd(matrices, full_matrices=False)
    nearest = true_left @ true_right
    cosine = (nearest * ours).sum((-2, -1)) / nearest.norm(dim=(-2, -1)) / ours.norm(dim=(-2, -1))
    assert cosine.min() > 0.97


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 20), (3, 20, 8)])
def test_fast_orthogonalization_equals_its_twin(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    exact = orthogonalize_reference(matrices.double())
    torch.testing.assert_close(
        orthogonalize(matrices, dtype=torch.float32).double(), exact, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(orthogonalize(matrices).double(), exact, atol=0.03, rtol=0)


def test_zeros_stay_zeros_and_decay_alone_acts():
    p = Parameter(torch.ones(4, 6))
    p.grad = torch.zeros(4, 6)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 6), 0.95))


def test_the_size_of_the_gradient_does_not_matter():
    small, large = Parameter(torch.zeros(6, 4)), Parameter(torch.zeros(6, 4))
    grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    small.grad, large.grad = grad * 2.0**-10, grad * 2.0**10
    Muon([small], precision="float32").step()
    Muon([large], precision="float32").step()
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (128, 64)])
def test_steps_scaled_for_adamw_are_as_long_as_adamws(shape):
    generator = torch.Generator().manual_seed(6)
    first, second = Parameter(torch.zeros(shape)), Parameter(torch.zeros(shape))
    muon = Muon([first], lr=1e-3, weight_decay=0.0)
    adamw = AdamW([second], lr=1e-3, weight_decay=0.0)
    for _ in range(30):
        before = first.detach().clone(), second.detach().clone()
        first.grad = second.grad = torch.randn(shape, generator=generator)
        muon.step()
        adamw.step()
    lengths = [
        float((p.detach() - old).square().mean().sqrt())
        for p, old in zip((first, second), before, strict=True)
    ]
    assert 0.1e-3 < lengths[0] < 0.3e-3  # 0.2 lr for orthogonal matrices, 0.68 to 1.21 of it
    assert 0.5 < lengths[1] / lengths[0] < 2  # AdamW's own: 0.2 to 0.4 lr


def test_what_is_no_matrix_is_moved_by_adamw_with_its_own_learning_rate():
    named = {
        "token_embeddings.weight": Parameter(torch.ones(5, 4)),
        "w": Parameter(torch.ones(4, 4)),
        "gain": Parameter(torch.ones(4)),
        "lm_head.weight": Parameter(torch.ones(5, 4)),
    }
    twins = {name: Parameter(p.detach().clone()) for name, p in named.items() if name != "w"}
    settings = {"weight_decay": 0.2, "betas": (0.8, 0.9)}
    muon = Muon(parameter_groups(named.items()), lr=0.01, adamw_ratio=0.5, **settings)
    adamw = AdamW(parameter_groups(twins.items()), lr=0.005, **settings)
    generator = torch.Generator().manual_seed(7)
    for _ in range(5):
        for name, p in named.items():
            p.grad = torch.randn(p.shape, generator=generator)
            if name in twins:
                twins[name].grad = p.grad.clone()
        muon.step()
        adamw.step()
    assert all(torch.equal(named[name], p) for name, p in twins.items())
    assert set(muon.state[named["w"]]) == {"step", "momentum"}
    assert set(muon.state[named["gain"]]) == {"step", "mean", "square"}


def test_a_stack_of_matrices_is_moved_as_single_ones():
    generator = torch.Generator().manual_seed(8)
    grads = torch.randn(3, 6, 4, generator=generator)
    stack, single = Parameter(torch.zeros(3, 6, 4)), [Parameter(torch.zeros(6, 4)) for _ in range(3)]
    stack.grad = grads
    for p, grad in zip(single, grads, strict=True):
        p.grad = grad
    Muon([stack], precision="float32").step()
    Muon(single, precision="float32").step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, r"iterations=0: at least one"),
        ({"adamw_ratio": -1.0}, r"adamw_ratio=-1.0: must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Muon(make_parameters(), **settings)
