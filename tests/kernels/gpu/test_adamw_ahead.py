"""The AdamW kernel as the compiler of an H200 makes it: no GPU is needed."""

import re

import pytest

triton = pytest.importorskip("triton")

from scratchlm.kernels.gpu import adamw  # noqa: E402
from scratchlm.kernels.gpu.ahead import compile_ahead  # noqa: E402

CONFIGURATIONS = adamw.configurations()


@pytest.mark.compile
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=[c.name for c in CONFIGURATIONS])
def test_every_configuration_compiles_without_spilling(configuration, capability):
    compiled = compile_ahead(configuration, capability)
    assert compiled.spilled_bytes == 0
    # at least two blocks of 256 threads on a multiprocessor's 65,536 registers: one computes, one waits
    assert compiled.registers <= 128


@pytest.mark.compile
def test_a_whole_piece_of_aligned_tensors_is_read_and_written_16_bytes_at_once():
    [configuration] = [c for c in CONFIGURATIONS if c.name == "adamw fp32-fp32-fp32-fp32"]
    ptx = compile_ahead(configuration).ptx
    # 8 coordinates a thread: two accesses to each of four tensors read, and to each of three written
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == 8
    assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == 6
