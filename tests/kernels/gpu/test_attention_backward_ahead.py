"""Attention's backward kernels compile for Hopper: matrix instructions, no spilled registers, fit."""

import pytest

pytestmark = pytest.mark.compile

triton = pytest.importorskip("triton")

SHARED_BYTES = 227 * 1024
"""What one block may have on an H100 or H200."""


def configurations():
    from scratchlm.kernels.gpu import attention_backward, attention_backward_keys, attention_backward_queries

    modules = (attention_backward, attention_backward_keys, attention_backward_queries)
    return [one for module in modules for one in module.configurations()]


def compiles_without_spills(configuration):
    from scratchlm.kernels.gpu.ahead import compile_ahead

    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert compiled.shared_bytes <= SHARED_BYTES
    assert (compiled.matrix_instructions > 0) == configuration.matrix
    # heads of 256 leave room for 32 keys only, wgmma takes 64: they use the older mma
    if configuration.matrix and (
        configuration.constants.get("WIDTH", 256) <= 128 or "queries" in configuration.name
    ):
        assert "wgmma.mma_async" in compiled.ptx


@pytest.mark.parametrize("configuration", configurations(), ids=lambda one: one.name)
def test_the_backward_kernels_compile_without_spills(configuration):
    compiles_without_spills(configuration)


@pytest.mark.parametrize("name", ["backward_queries", "backward_keys", "backward_one_pass"])
@pytest.mark.parametrize("table", [80, 0])
def test_older_gpus_have_tiles_that_fit(name, table):
    """A100 (164 KB of shared memory) and the others (99 KB), with a causal mask."""
    from scratchlm.kernels.gpu.ahead import compile_ahead
    from scratchlm.kernels.gpu.attention_backward_keys import keys_kernel
    from scratchlm.kernels.gpu.attention_backward_queries import queries_kernel
    from scratchlm.kernels.gpu.attention_memory import Masks
    from scratchlm.kernels.gpu.attention_tiles import configuration, tile_of

    kernel = queries_kernel if name == "backward_queries" else keys_kernel
    tile = tile_of(name, table, 64, crowded=False)
    compiled = compile_ahead(configuration(name, kernel, tile, width=64, masks=Masks()), table or 86)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= (163 if table else 99) * 1024
