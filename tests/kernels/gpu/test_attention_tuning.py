"""Measured tiles: the fastest is taken and remembered, and what does not fit is passed over."""

import pytest
import torch

from scratchlm.kernels import choose

pytestmark = pytest.mark.interpret


def test_the_fastest_candidate_is_measured_once_for_lengths_up_to_the_next_power_of_two(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from scratchlm.kernels.gpu import attention_tuning
    from scratchlm.kernels.gpu.attention_memory import Masks
    from scratchlm.kernels.gpu.attention_tiles import Tile

    class OnGpu(torch.Tensor):
        is_cuda = True

    measured = []

    def do_bench(run, **_):
        run()
        return float(sum(measured[-1][:2]))  # small blocks are fast here

    def run(tile):
        measured.append(tile)
        if tile.block_m == 64:
            raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(attention_tuning, "_best", {})
    table = Tile(128, 64, 4, 3, "descriptors")

    def fastest(time, **masks):
        x = torch.zeros(1, 2, time, 64, dtype=torch.float16).as_subclass(OnGpu)
        return attention_tuning._fastest("forward", table, True, (x, x, x), Masks(**masks), run)

    assert fastest(900)[:2] == (128, 32)
    assert measured[0] == table
    assert len(measured) == len(set(measured)) == len(attention_tuning.candidates("forward", table, True))
    once = len(measured)
    assert fastest(1024)[:2] == (128, 32)
    assert len(measured) == once
    fastest(1025)
    fastest(900, window=5)
    assert len(measured) == 3 * once


def test_every_candidate_of_the_table_is_in_reach():
    from scratchlm.kernels.gpu.attention_tiles import TILES
    from scratchlm.kernels.gpu.attention_tuning import SHAPES, candidates

    for kernel in SHAPES:
        for tile in TILES[kernel][90].values():
            tried = candidates(kernel, tile, True)
            assert tried[0] == tile
            assert len(tried) == len(set(tried))
            assert {one.loads for one in candidates(kernel, TILES[kernel][80][64], True)} == {"pointers"}


def test_the_tuned_kernel_is_the_same_where_nothing_can_be_measured():
    q, k, v = (torch.randn(1, 2, 20, 16, requires_grad=True) for _ in range(3))
    for name in ("triton", "triton_tuned"):
        out = choose("attention", name).function(q, k, v)
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        if name == "triton":
            expected = (out, *gradients)
    for mine, true in zip((out, *gradients), expected, strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=0)
