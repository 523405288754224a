"""Machines: every row is complete and plausible, and any value can be replaced."""

import pytest

from scratchlm.hardware import Accelerator
from scratchlm.machines import MACHINES, Machine, find_machine


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_every_machine_has_a_peak_a_source_and_slower_links_further_out(machine):
    assert isinstance(machine.accelerator, Accelerator)
    assert machine.source.startswith("https://")
    assert machine.memory_gb_per_second > machine.inside_gb_per_second > machine.between_gb_per_second
    # a GPU with NVLink or Infinity Fabric reaches its neighbours faster than PCIe 4.0 would let it
    assert machine.nvlink == (machine.inside_gb_per_second > 64)


def test_a_name_may_be_written_in_any_case_and_with_spaces():
    assert find_machine("RTX 4090") == find_machine("rtx-4090") == MACHINES["rtx-4090"]


def test_a_value_given_replaces_the_tables_and_none_leaves_it():
    cheap = find_machine("h100", price=1.5, gpus=None)
    assert cheap == MACHINES["h100"].model_copy(update={"price": 1.5})
    with pytest.raises(ValueError, match=r"price=-1: Input should be greater than or equal to 0"):
        find_machine("h100", price=-1)


def test_a_machine_of_ones_own_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "H100 PCIe"\nmemory_gb = 80\nmemory_gb_per_second = 2000\ngpus = 4\n'
        "inside_gb_per_second = 64\nbetween_gb_per_second = 12.5\nnvlink = false\n",
        encoding="utf-8",
    )
    mine = find_machine(str(path))
    assert mine == Machine(
        name="H100 PCIe", memory_gb=80, memory_gb_per_second=2000, gpus=4,
        inside_gb_per_second=64, between_gb_per_second=12.5, nvlink=False,
    )  # fmt: skip
    assert mine.accelerator.bfloat16 == 756.0
    path.write_text('name = "H100"\nmemory = 80\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"memory: unknown key 'memory'. Did you mean 'memory_gb'"):
        find_machine(str(path))


def test_an_unknown_gpu_is_told_with_the_known_ones_and_the_way_to_add_one():
    with pytest.raises(ValueError, match=r"unknown GPU 'h10'. Did you mean 'h100'\?.*--gpu FILE.toml"):
        find_machine("h10")
