"""The decode kernel on a GPU, in bfloat16 too: as exact as the reference in the same dtype."""

import pytest
import torch

pytest.importorskip("triton")

from scratchlm.kernels import choose
from scratchlm.kernels.gpu.attention_decode import decode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
REFERENCE = choose("attention", "reference").function


def inputs(*, heads, kv_heads, queries, keys, d_head, dtype):
    shapes = (heads, queries, d_head), (kv_heads, keys, d_head), (kv_heads, keys, d_head)
    return [torch.randn(2, *shape, device="cuda").to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("d_head", [16, 64, 80, 128, 256])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys"),
    [(8, 8, 1, 1), (8, 8, 1, 1000), (16, 2, 1, 16_384), (32, 1, 1, 4096), (8, 2, 5, 777)],
)
def test_errs_at_most_twice_as_much_as_the_reference(dtype, d_head, heads, kv_heads, queries, keys):
    tensors = inputs(heads=heads, kv_heads=kv_heads, queries=queries, keys=keys, d_head=d_head, dtype=dtype)
    truth = REFERENCE(*(tensor.double() for tensor in tensors))
    allowed = 2 * (REFERENCE(*tensors) - truth).norm() + 1e-6 * truth.norm()
    assert (decode(*tensors) - truth).norm() <= allowed


def test_all_masks_in_bfloat16():
    tensors = inputs(heads=8, kv_heads=2, queries=3, keys=900, d_head=64, dtype=torch.bfloat16)
    settings = {"window": 500, "softcap": 10.0, "slopes_H": torch.rand(8, device="cuda")}
    exact = {**settings, "slopes_H": settings["slopes_H"].double()}
    truth = REFERENCE(*(tensor.double() for tensor in tensors), **exact)
    allowed = 2 * (REFERENCE(*tensors, **settings) - truth).norm()
    assert (decode(*tensors, **settings) - truth).norm() <= allowed


def test_two_calls_are_bit_identical_and_growing_caches_compile_once():
    q, k, v = inputs(heads=8, kv_heads=2, queries=1, keys=5000, d_head=64, dtype=torch.bfloat16)
    for keys in (4097, 4098, 4500, 5000):
        tensors = q, k[:, :, :keys], v[:, :, :keys]
        assert torch.equal(decode(*tensors), decode(*tensors))
