"""The Newton-Schulz kernel, interpreted: against the formula in float64, for all shapes."""

import pytest
import torch
from torch.nn import Parameter

pytestmark = pytest.mark.interpret
triton = pytest.importorskip("triton")

from scratchlm.kernels import choose, orthogonalize  # noqa: E402
from scratchlm.kernels.gpu import newton_schulz  # noqa: E402


def random(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_mirrored(out):
    """Tiles below the diagonal are copies; inside those on it two orders of adding may round differently."""
    rows = out.shape[-1]
    tile = torch.arange(rows) // newton_schulz.choose_tile(rows, out.device).rows
    apart = tile[:, None] != tile[None, :]
    assert torch.equal(out[:, apart], out.mT[:, apart])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "inner"), [(64, 64), (64, 70), (1, 1), (65, 64), (200, 33), (256, 128), (130, 200)]
)
def test_a_symmetric_product_is_as_near_to_the_truth_as_torchs(rows, inner, dtype):
    x, out = random(2, rows, inner, dtype=dtype), torch.full((2, rows, rows), torch.nan, dtype=dtype)
    newton_schulz.multiply_by_own_transpose(x, out=out)
    exact = x.double() @ x.double().mT
    torchs = (x @ x.mT).double()
    smallest = torch.finfo(dtype).eps * float(exact.abs().max()) / 2
    assert (out.double() - exact).abs().max() <= 2 * max(float((torchs - exact).abs().max()), smallest)
    assert_mirrored(out)


def test_the_sum_of_a_square_and_a_multiple_of_its_root():
    gram = random(2, 130, 50)
    gram = gram @ gram.mT / 50
    gram = (gram + gram.mT) / 2
    out = torch.full_like(gram, torch.nan)
    newton_schulz.multiply_by_own_transpose(gram, out=out, add=gram, factor=2.0, add_factor=-3.0)
    exact = 2 * gram.double() @ gram.double() - 3 * gram.double()
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    assert_mirrored(out)


def test_every_tile_on_and_above_the_diagonal_is_computed_once(monkeypatch):
    """Tiles of 16: 9 x 9 of them, so that the formula that finds (i, j) is tried for 45 numbers."""
    monkeypatch.setattr(newton_schulz, "choose_tile", lambda *a: newton_schulz.Tile(16, 16, 4, 1))
    x = random(1, 139, 24)
    out = torch.full((1, 139, 139), torch.nan)
    newton_schulz.multiply_by_own_transpose(x, out=out)
    torch.testing.assert_close(out, x @ x.mT)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (2, 70, 90), (2, 90, 70), (1, 1, 5), (0, 4, 4), (2, 0, 4), (1, 130, 130)]
)
def test_matrices_of_any_shape_equal_the_formula(shape):
    matrices = random(*shape)
    exact = orthogonalize.orthogonalize_reference(matrices.double())
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float16, 5e-3)):
        ours = newton_schulz.orthogonalize(matrices, dtype=dtype)
        assert (ours.shape, ours.dtype) == (matrices.shape, dtype)
        torch.testing.assert_close(ours.double(), exact, atol=allowed, rtol=0)


def test_products_in_half_precision_are_as_near_to_the_truth_as_the_plain_ones():
    matrices = random(2, 70, 100)
    exact = orthogonalize.orthogonalize_reference(matrices.double())
    ours = newton_schulz.orthogonalize(matrices, dtype=torch.float16).double()
    plain = orthogonalize.orthogonalize(matrices, dtype=torch.float16).double()
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


def test_strided_matrices_are_taken_as_they_are():
    matrices = random(2, 20, 64)[:, :, ::2]
    ours = newton_schulz.orthogonalize(matrices, dtype=torch.float32)
    torch.testing.assert_close(ours, newton_schulz.orthogonalize(matrices.contiguous(), dtype=torch.float32))


def test_not_a_number_stays_in_its_matrix_and_zeros_stay_zeros():
    matrices = random(3, 6, 8)
    alone = newton_schulz.orthogonalize(matrices[2:], dtype=torch.float32)
    matrices[0, 1, 1] = float("nan")
    matrices[1] = 0
    ours = newton_schulz.orthogonalize(matrices, dtype=torch.float32)
    assert ours[0].isnan().all()
    assert torch.equal(ours[1], torch.zeros(6, 8))
    assert torch.equal(ours[2:], alone)


def test_float64_is_computed_by_torch_and_another_device_is_refused():
    matrices = random(1, 4, 6, dtype=torch.float64)
    exact = orthogonalize.orthogonalize_reference(matrices)
    torch.testing.assert_close(newton_schulz.orthogonalize(matrices, dtype=torch.float64), exact)
    with pytest.raises(
        ValueError, match=r"orthogonalize=triton cannot run on meta: .* Take orthogonalize=auto"
    ):
        newton_schulz.orthogonalize(torch.zeros(1, 4, 6, device="meta"))


def test_bfloat16_which_the_interpreter_cannot_multiply_is_multiplied_by_torch():
    matrices = random(2, 6, 8)
    assert torch.equal(newton_schulz.orthogonalize(matrices), orthogonalize.orthogonalize(matrices))


def test_the_operation_is_what_torch_expects_of_one():
    arguments = (random(2, 5, 9), 2, torch.float32)
    torch.library.opcheck(torch.ops.scratchlm.orthogonalize.default, arguments)


def test_it_compiles_into_one_graph():
    compiled = torch.compile(newton_schulz.orthogonalize, fullgraph=True, backend="aot_eager")
    for shape in ((2, 9, 5), (2, 5, 9)):
        matrices = random(*shape)
        ours = compiled(matrices, dtype=torch.float32)
        assert torch.equal(ours, newton_schulz.orthogonalize(matrices, dtype=torch.float32))


def test_muon_takes_it_and_equals_its_twin():
    from scratchlm.optim.muon import Muon, MuonReference

    assert choose("orthogonalize", device="cpu").function is newton_schulz.orthogonalize
    results = []
    for part, settings in ((Muon, {"precision": "float32"}), (MuonReference, {})):
        generator = torch.Generator().manual_seed(3)
        params = [
            Parameter(torch.randn(s, generator=generator)) for s in ((24, 16), (16, 24), (70, 70), (5,))
        ]
        optimizer = part(params, lr=1e-2, **settings)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        results.append([p.detach() for p in params])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
