"""The kernel that clipping multiplies gradients with, interpreted."""

import pytest
import torch

pytestmark = pytest.mark.interpret
triton = pytest.importorskip("triton")

from scratchlm.kernels import choose  # noqa: E402
from scratchlm.kernels.gpu import scale, tables  # noqa: E402
from scratchlm.kernels.scale import scale_reference_  # noqa: E402

SHAPES = [(3, 700), (1,), (5, 7), (), (0, 4)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Several pieces in small tensors."""
    for module in (tables, scale):
        monkeypatch.setattr(module, "PIECE", 1024)
    tables._make_pieces.cache_clear()
    tables._make_table.cache_clear()
    yield
    tables._make_pieces.cache_clear()
    tables._make_table.cache_clear()


def make_tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_factor_below_one_multiplies_everything(dtype):
    ours, theirs = make_tensors(dtype), make_tensors(dtype)
    ours.append(torch.ones(4, 6, dtype=dtype).T)
    theirs.append(torch.ones(6, 4, dtype=dtype))
    factor = torch.tensor(0.25)
    scale.scale_(ours, factor)
    scale_reference_(theirs, factor)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("factor", [1.0, 1.5, float("inf")])
def test_a_factor_of_one_or_more_changes_nothing(factor):
    tensors = make_tensors()
    scale.scale_(tensors, torch.tensor(factor))
    assert all(torch.equal(a, b) for a, b in zip(tensors, make_tensors(), strict=True))


def test_not_a_number_is_not_overlooked():
    tensors = make_tensors()
    scale.scale_(tensors, torch.tensor(float("nan")))
    assert all(t.isnan().all() for t in tensors)


def test_a_factor_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"scale: the tensors are on several devices \(cpu, meta\)"):
        scale.scale_(make_tensors(), torch.tensor(0.5, device="meta"))


def test_the_operation_is_what_torch_expects_of_one():
    arguments = ([torch.randn(5), torch.randn(2, 3)], torch.tensor(0.5))
    torch.library.opcheck(torch.ops.scratchlm.scale.default, arguments)


def test_it_is_what_a_gpu_clips_with():
    assert choose("scale", device="cpu").function is scale.scale_
