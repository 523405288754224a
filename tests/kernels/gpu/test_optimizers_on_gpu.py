"""The optimizers on a GPU: in bfloat16 too, against float64 and plain tensor operations."""

import pytest
import torch
from torch.nn import Parameter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from scratchlm.kernels import adamw_plain, adamw_reference, choose, orthogonalize  # noqa: E402

SETTINGS = {"betas": (0.9, 0.95), "decay": 0.01, "cautious": True, "step_size": 1e-2, "eps": 1e-8}
SHAPES = [(768, 768), (50_304, 64), (768,), (), (193,), (5, 7, 3)]


def make_lists(formats, seed=1):
    generator = torch.Generator("cuda").manual_seed(seed)

    def make(dtype, scale):
        return [(torch.randn(s, generator=generator, device="cuda") * scale).to(dtype) for s in SHAPES]

    param, grad, state = formats
    return [make(param, 1.0), make(grad, 0.1), make(state, 0.1), [v.square() for v in make(state, 0.1)]]


def largest_error(lists, truth):
    return max(
        float((t.double() - exact).abs().max())
        for tensors, exacts in zip(lists, truth, strict=True)
        for t, exact in zip(tensors, exacts, strict=True)
    )


@pytest.mark.parametrize(
    "formats",
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_adamw_is_as_near_to_the_truth_as_tensor_operations(formats):
    lists = make_lists(formats)
    truth = [[t.double() for t in tensors] for tensors in lists]
    ours, plain = ([[t.clone() for t in tensors] for tensors in lists] for _ in range(2))
    adamw_reference.move(*truth, **SETTINGS)
    choose("adamw", "triton", "cuda").function(*ours, **SETTINGS)
    adamw_reference.move(*plain, **SETTINGS)
    assert largest_error(ours, truth) <= 2 * largest_error(plain, truth)


def test_adamw_takes_new_gradients_wherever_they_lie():
    """Gradients that move between steps: a remembered table of addresses must not be used for them."""
    p, exact = (torch.zeros(3000, device="cuda") for _ in range(2))
    means, squares, m, v = (torch.zeros(3000, device="cuda") for _ in range(4))
    kept = []
    for step in range(4):
        kept.append(torch.full((3000,), float(step + 1), device="cuda"))
        choose("adamw", "triton", "cuda").function([p], [kept[-1]], [means], [squares], **SETTINGS)
        adamw_plain.move([exact], [kept[-1]], [m], [v], **SETTINGS)
    torch.testing.assert_close(p, exact)


@pytest.mark.parametrize("shape", [(3, 768, 768), (2, 768, 3072), (2, 3072, 768), (2, 100, 130), (1, 7, 9)])
def test_orthogonalization_is_as_near_to_the_truth_as_torchs_products(shape):
    matrices = torch.randn(shape, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    exact = orthogonalize.orthogonalize_reference(matrices.double())
    ours = choose("orthogonalize", "triton", "cuda").function(matrices).double()
    plain = orthogonalize.orthogonalize(matrices).double()
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_an_optimizer_on_the_gpu_follows_its_twin(name):
    from scratchlm.optim import OPTIMIZERS

    generator = torch.Generator().manual_seed(3)
    fast = [Parameter(torch.randn(s, generator=generator).cuda()) for s in ((64, 32), (32, 64), (33,))]
    slow = [Parameter(p.detach().clone()) for p in fast]
    exact = {"precision": "float32"} if name == "muon" else {}
    first = OPTIMIZERS.build(name, fast, lr=1e-2, **exact)
    twin = OPTIMIZERS.build(f"{name}_reference", slow, lr=1e-2)
    for _ in range(10):
        for p, q in zip(fast, slow, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).cuda()
            q.grad = p.grad.clone()
        first.step()
        twin.step()
    for p, q in zip(fast, slow, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)
