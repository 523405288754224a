"""RMSNorm's kernels compiled for sm_90a: no registers spilled, wide loads and stores, small shared memory."""

import re

import pytest

pytestmark = pytest.mark.compile


def configurations():
    try:
        from scratchlm.kernels.gpu import rms_norm
    except ImportError:
        return []
    return rms_norm.configurations()


@pytest.mark.parametrize("configuration", configurations(), ids=lambda configuration: configuration.name)
def test_every_configuration_compiles_without_spilling(configuration):
    from scratchlm.kernels.gpu.ahead import compile_ahead

    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert compiled.shared_bytes <= 227 * 1024
    assert compiled.registers <= (72 if "backward" in configuration.name else 64)
    if "backward" in configuration.name:  # as many programs as a processor gets must fit into its memory
        programs = min(7, 32 // configuration.num_warps)
        assert programs * (compiled.shared_bytes + 1024) <= 228 * 1024


@pytest.mark.parametrize("width", [2048, 4096, 8192])
def test_older_gpus_have_enough_registers_and_memory_too(width):
    from scratchlm.kernels.gpu.ahead import compile_ahead

    names = [f"add_rms_norm-{direction}-{width}-fp32-wide_branch" for direction in ("forward", "backward")]
    found = [configuration for configuration in configurations() if configuration.name in names]
    assert len(found) == 2
    for configuration in found:
        compiled = compile_ahead(configuration, 80)
        assert compiled.spilled_bytes == 0
        # compute capability 8.6 and 8.9 have the least shared memory a block: 99 KB
        assert compiled.shared_bytes <= 99 * 1024


def test_vectors_are_moved_16_bytes_at_a_time():
    from scratchlm.kernels.gpu.ahead import compile_ahead

    forward, backward = (
        next(each for each in configurations() if each.name == f"rms_norm-{direction}-768-bf16")
        for direction in ("forward", "backward")
    )
    assert not re.findall(r"ld\.global\S*\.b(16|64)\b", compile_ahead(forward).ptx)
    assert re.search(r"st\.global\S*\.v4\.b32", compile_ahead(forward).ptx)
    # the next rows are on their way while this one is computed
    assert re.search(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", compile_ahead(backward).ptx)
