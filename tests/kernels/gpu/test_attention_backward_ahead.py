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


NAMES = ["backward_queries", "backward_keys", "backward_one_pass"]


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("capability", [80, 86])
@pytest.mark.parametrize("name", NAMES)
def test_older_gpus_have_tiles_that_fit(name, capability, width):
    """A100 (163 KB of shared memory for a block) and the others (99 KB), with a causal mask."""
    compiled = compiled_for(name, capability, width)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= (163 if capability == 80 else 99) * 1024


@pytest.mark.parametrize("capability", [80, 86])
@pytest.mark.parametrize("name", NAMES)
def test_older_gpus_have_tiles_that_fit_with_every_mask(name, capability):
    compiled = compiled_for(name, capability, 64, every_mask=True)
    assert compiled.spilled_bytes == 0
    assert compiled.shared_bytes <= (163 if capability == 80 else 99) * 1024


@pytest.mark.parametrize("capability", [100, 120])
@pytest.mark.parametrize("name", NAMES)
def test_newer_gpus_can_take_the_tiles_that_fit_everywhere(name, capability):
    compiled = compiled_for(name, capability, 128)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= 99 * 1024


def compiled_for(name, capability, width, *, every_mask=False):
    """A kernel with the tile that the table has for a GPU."""
    import torch

    from scratchlm.kernels.gpu.ahead import compile_ahead
    from scratchlm.kernels.gpu.attention_backward_keys import keys_kernel
    from scratchlm.kernels.gpu.attention_backward_queries import queries_kernel
    from scratchlm.kernels.gpu.attention_memory import Masks
    from scratchlm.kernels.gpu.attention_tiles import configuration, table_of, tile_of

    kernel = queries_kernel if name == "backward_queries" else keys_kernel
    masks = Masks(True, 1, 1.0, torch.empty(0), torch.empty(0)) if every_mask else Masks()
    tile = tile_of(name, table_of(capability), width, crowded=every_mask)
    return compile_ahead(configuration(name, kernel, tile, width=width, masks=masks), capability)
