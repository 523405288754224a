"""Attention's forward kernel compiles for Hopper: matrix instructions, no spilled registers, fits."""

import re
from pathlib import Path

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


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("capability", [80, 86])
def test_older_gpus_have_tiles_that_fit(capability, width):
    """A100 (163 KB of shared memory for a block) and the others (99 KB), with a causal mask."""
    compiled = compiled_for(capability, width)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= (163 if capability == 80 else 99) * 1024


@pytest.mark.parametrize("capability", [80, 86])
def test_older_gpus_have_tiles_that_fit_with_every_mask(capability):
    compiled = compiled_for(capability, 64, every_mask=True)
    assert compiled.spilled_bytes == 0
    assert compiled.shared_bytes <= (163 if capability == 80 else 99) * 1024


@pytest.mark.parametrize("capability", [100, 120])
def test_newer_gpus_can_take_the_tiles_that_fit_everywhere(capability):
    compiled = compiled_for(capability, 128)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= 99 * 1024


def compiled_for(capability, width, *, every_mask=False):
    """The kernel with the tile that the table has for a GPU."""
    import torch

    from scratchlm.kernels.gpu.ahead import compile_ahead
    from scratchlm.kernels.gpu.attention_forward import forward_kernel
    from scratchlm.kernels.gpu.attention_memory import Masks
    from scratchlm.kernels.gpu.attention_tiles import configuration, table_of, tile_of

    masks = Masks(True, 1, 1.0, torch.empty(0), torch.empty(0)) if every_mask else Masks()
    tile = tile_of("forward", table_of(capability), width, crowded=every_mask)
    return compile_ahead(configuration("forward", forward_kernel, tile, width=width, masks=masks), capability)


def test_gpus_without_tiles_of_their_own_take_those_that_fit_everywhere():
    from scratchlm.kernels.gpu.attention_tiles import table_of

    assert {table_of(capability) for capability in (86, 87, 89, 100, 103, 120, 121)} == {0}
    assert (table_of(80), table_of(90)) == (80, 90)


def test_the_course_states_the_registers_that_the_compiler_counts():
    from scratchlm.kernels.gpu.ahead import compile_ahead

    page = Path(__file__).parents[3] / "docs" / "course" / "9-flash-attention-on-a-gpu.md"
    found = re.search(
        r"takes (\d+) registers of a thread at d_head 64 and (\d+) at\s+128", page.read_text(encoding="utf-8")
    )
    for width, stated in zip((64, 128), found.groups(), strict=True):
        causal = next(one for one in configurations() if f"bf16 {width} causal" in one.name)
        compiled = compile_ahead(causal)
        assert (compiled.registers, compiled.spilled_bytes) == (int(stated), 0)
