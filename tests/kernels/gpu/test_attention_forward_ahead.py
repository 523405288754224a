"""Attention's forward kernel compiles for Hopper: matrix instructions, no spilled registers, fits."""

import pytest

pytestmark = pytest.mark.compile

triton = pytest.importorskip("triton")

SHARED_BYTES = 227 * 1024
"""What one block may have on an H100 or H200."""


def configurations():
    from scratchlm.kernels.gpu import attention_forward

    return attention_forward.configurations()


@pytest.mark.parametrize("configuration", configurations(), ids=lambda one: one.name)
def test_the_forward_kernel_compiles_without_spills(configuration):
    from scratchlm.kernels.gpu.ahead import compile_ahead

    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert compiled.shared_bytes <= SHARED_BYTES
    assert ("wgmma.mma_async" in compiled.ptx) == configuration.matrix


def test_descriptors_leave_no_other_copies_in_the_loop():
    """The copy engine (cp.async.bulk) fetches keys and values; threads copy nothing (cp.async.cg)."""
    from scratchlm.kernels.gpu.ahead import compile_ahead

    causal = next(one for one in configurations() if "bf16 64 causal" in one.name)
    ptx = compile_ahead(causal).ptx
    assert "cp.async.bulk.tensor" in ptx
    assert "cp.async.c" not in ptx.replace("cp.async.commit", "")


@pytest.mark.parametrize("table", [80, 0])
def test_older_gpus_have_tiles_that_fit(table):
    """A100 (164 KB of shared memory) and the others (99 KB), with a causal mask and with all masks."""
    import torch

    from scratchlm.kernels.gpu.ahead import compile_ahead
    from scratchlm.kernels.gpu.attention_forward import forward_kernel
    from scratchlm.kernels.gpu.attention_memory import Masks
    from scratchlm.kernels.gpu.attention_tiles import configuration, tile_of

    every = Masks(True, 1, 1.0, torch.empty(0), torch.empty(0))
    for masks in (Masks(), every):
        tile = tile_of("forward", table, 64, crowded=masks is every)
        made = configuration("forward", forward_kernel, tile, width=64, masks=masks)
        compiled = compile_ahead(made, capability=table or 86)
        assert compiled.spilled_bytes == 0
        assert compiled.matrix_instructions > 0
        assert compiled.shared_bytes <= (163 if table else 99) * 1024
