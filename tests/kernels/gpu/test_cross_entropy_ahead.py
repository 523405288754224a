"""The loss's kernels, compiled for GPUs that are not here."""

import re

import pytest

from scratchlm.kernels.gpu.ahead import compile_ahead
from scratchlm.kernels.gpu.cross_entropy import LARGEST_BLOCK, configurations

pytestmark = pytest.mark.compile

REGISTERS = 64 * 1024
"""Of one processor of sm_80 and sm_90 (CUDA programming guide, table of compute capabilities)."""


@pytest.mark.parametrize("configuration", configurations(), ids=lambda configuration: configuration.name)
def test_nothing_spills_and_two_rows_share_a_processor(configuration):
    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert 2 * 32 * configuration.num_warps * compiled.registers <= REGISTERS
    assert compiled.shared_bytes <= 1024  # only what the warps of a row tell each other


@pytest.mark.parametrize("configuration", configurations()[:4], ids=lambda configuration: configuration.name)
def test_the_same_for_an_a100(configuration):
    assert compile_ahead(configuration, 80).spilled_bytes == 0


@pytest.mark.parametrize("configuration", configurations()[:4], ids=lambda configuration: configuration.name)
def test_long_rows_are_read_16_bytes_at_a_time_and_without_barriers(configuration):
    assert configuration.constants["VOCABULARY"] > LARGEST_BLOCK
    ptx = compile_ahead(configuration).ptx
    loops = re.findall(r"(\$L__BB\w+):((?:(?!\$L__BB\w+:).)*?bra\s+\1;)", ptx, re.DOTALL)
    reading = [text for _, text in loops if "ld.global" in text]
    assert len(reading) == 1 + ("overwrite" in configuration.name)
    for text in reading:
        assert "bar.sync" not in text
        assert len(re.findall(r"ld\.global\.v4", text)) == text.count("ld.global") == 2
