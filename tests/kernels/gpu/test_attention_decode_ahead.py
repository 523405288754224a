"""The decode kernel as a GPU's compiler makes it: matrix instructions, nothing spilled, room for two."""

import pytest

pytest.importorskip("triton")

from scratchlm.kernels.gpu.ahead import compile_ahead
from scratchlm.kernels.gpu.attention_decode import PROGRAMS_AT_ONCE, configurations

pytestmark = pytest.mark.compile
NAMED = {configuration.name: configuration for configuration in configurations()}
SHARED_BYTES, REGISTERS = 227 * 1024, 65_536
"""Of one multiprocessor (compute capability 9.0)."""


def test_names_are_unique():
    assert len(NAMED) == len(configurations())


@pytest.mark.parametrize("name", NAMED)
def test_compiles_for_hopper(name):
    compiled = compile_ahead(NAMED[name])
    assert compiled.spilled_bytes == 0
    assert PROGRAMS_AT_ONCE * compiled.shared_bytes <= SHARED_BYTES
    assert PROGRAMS_AT_ONCE * compiled.registers * 32 * NAMED[name].num_warps <= REGISTERS
    if NAMED[name].matrix:
        assert compiled.matrix_instructions > 0


@pytest.mark.parametrize("name", [name for name in NAMED if "bf16" in name])
def test_compiles_for_ampere_and_fits_the_smallest_shared_memory(name):
    compiled = compile_ahead(NAMED[name], 80)
    assert compiled.spilled_bytes == 0
    assert compiled.matrix_instructions > 0
    assert compiled.shared_bytes <= 99 * 1024
