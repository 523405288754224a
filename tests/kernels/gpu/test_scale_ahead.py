import pytest

triton = pytest.importorskip("triton")

from scratchlm.kernels.gpu import scale  # noqa: E402
from scratchlm.kernels.gpu.ahead import compile_ahead  # noqa: E402

CONFIGURATIONS = scale.configurations()


@pytest.mark.compile
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=[c.name for c in CONFIGURATIONS])
def test_it_compiles_for_an_h200_without_spilling_and_16_bytes_at_once(configuration):
    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    # all 2,048 threads of a multiprocessor: 65,536 registers
    assert compiled.registers <= 32
    assert ".v4.b32" in compiled.ptx
