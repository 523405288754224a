"""The kernels that walk through lists of tensors, as the compiler of an H200 makes them: no GPU is needed."""

import pytest

triton = pytest.importorskip("triton")

from scratchlm.kernels.gpu import lion, scale  # noqa: E402
from scratchlm.kernels.gpu.ahead import compile_ahead  # noqa: E402

CONFIGURATIONS = [*lion.configurations(), *scale.configurations()]


@pytest.mark.compile
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=[c.name for c in CONFIGURATIONS])
def test_it_compiles_without_spilling_and_reads_16_bytes_at_once(configuration):
    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert (".v4.b32" in compiled.ptx) == configuration.constants["ALIGNED"]
    # of a multiprocessor's 65,536 registers: 1,024 threads at least, 512 where accesses are single numbers
    assert compiled.registers <= (64 if configuration.constants["ALIGNED"] else 128)
