"""The kernels of the heads compiled for sm_90a: no registers spilled, everything moved 16 bytes at a time."""

import re

import pytest

pytestmark = pytest.mark.compile

pytest.importorskip("triton")

from scratchlm.kernels.gpu import project_heads, rotate  # noqa: E402
from scratchlm.kernels.gpu.ahead import compile_ahead  # noqa: E402

CONFIGURATIONS = rotate.configurations() + project_heads.configurations()


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
def test_every_configuration_compiles_without_spilling(configuration):
    compiled = compile_ahead(configuration)
    assert compiled.spilled_bytes == 0
    assert compiled.registers <= 64  # 8 programs of 4 warps on a processor
    assert compiled.shared_bytes <= 227 * 1024 // 8


@pytest.mark.parametrize("name", ["rotate-turn-64-bf16", "gather-turn-64-bf16", "gather-turn-norm-128-bf16"])
def test_an_a100_has_enough_registers_too(name):
    [configuration] = [each for each in CONFIGURATIONS if each.name == name]
    compiled = compile_ahead(configuration, 80)
    assert compiled.spilled_bytes == 0
    assert compiled.registers <= 64


@pytest.mark.parametrize("name", ["rotate-turn-64-bf16", "gather-turn-64-bf16"])
def test_heads_are_moved_16_bytes_at_a_time(name):
    [configuration] = [each for each in CONFIGURATIONS if each.name == name]
    ptx = compile_ahead(configuration).ptx
    for direction in ("ld", "st"):
        moves = re.findall(rf"{direction}\.global\S*", ptx)
        assert moves
        assert all(".v4.b32" in move for move in moves)
