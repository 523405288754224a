"""The Newton-Schulz kernel as the compilers of an H200 and an A100 make it: no GPU is needed."""

import pytest

triton = pytest.importorskip("triton")

from scratchlm.kernels.gpu import newton_schulz  # noqa: E402
from scratchlm.kernels.gpu.ahead import compile_ahead  # noqa: E402

SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}
"""What a block may have; NVIDIA, CUDA programming guide, table of compute capabilities."""
CASES = [(c, capability) for capability in (90, 80) for c in newton_schulz.configurations(capability)]


@pytest.mark.compile
@pytest.mark.parametrize(("configuration", "capability"), CASES, ids=[f"{c.name} sm_{n}" for c, n in CASES])
def test_every_configuration_uses_matrix_instructions_and_spills_nothing(configuration, capability):
    compiled = compile_ahead(configuration, capability)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= SHARED_BYTES[capability]
    assert ("wgmma" in compiled.ptx) == (capability == 90)
    assert "cp.async" in compiled.ptx  # loads are in flight while the matrix units work


@pytest.mark.compile
@pytest.mark.parametrize("sum_", ["", " sum"])
def test_two_blocks_of_large_tiles_fit_a_multiprocessor_of_an_h200(sum_):
    [configuration] = [c for c in newton_schulz.configurations() if c.name == f"symmetric 128x64{sum_}"]
    compiled = compile_ahead(configuration)
    assert compiled.registers * configuration.num_warps * 32 * 2 <= 65_536
    assert compiled.shared_bytes * 2 <= SHARED_BYTES[90]
