"""Peaks and MFU: known devices by their names, measured ones from the cache, no figure for any other."""

import pytest
import torch

from scratchlm import hardware
from scratchlm.hardware import Measurement, Peak, Product, find_accelerator, mfu, peak_flops

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "measurements_path", lambda: tmp_path / "cache" / "hardware.json")


def measured(device, flops=2e11):
    slow = Product(rows=4, inner=4, columns=4, flops_per_second=flops / 2)
    fast = Product(rows=8, inner=8, columns=8, flops_per_second=flops)
    return Measurement(
        device=device,
        date="2026-11-21",
        torch="2.13.0",
        load=0.1,
        products={"bfloat16": (slow, fast)},
        copy_bytes_per_second=1e10,
    )


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_a_device_is_known_by_the_name_that_its_driver_tells(name, tflops):
    assert find_accelerator(name).bfloat16 == tflops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10G",
        "NVIDIA H20",
        "NVIDIA GH200 480GB",
        "Tesla T4",
        "GRID A100-4C",
    ],
)
def test_a_smaller_chip_of_a_similar_name_has_no_peak(name):
    assert find_accelerator(name) is None


def test_every_published_peak_names_its_document_and_bfloat16_is_the_faster():
    for row in hardware.ACCELERATORS:
        assert row.source.startswith("https://")
        # a figure with sparsity would be twice too large; B200's matrix units are 30 times its vector units
        assert 1.5 < row.bfloat16 / row.float32 < (31 if row.words == "B200" else 20), row


def test_mfu_is_the_share_of_the_peak():
    assert mfu(1e9, 400_000, Peak(1e15, "a data sheet")) == pytest.approx(0.4)


def test_a_device_that_nobody_measured_has_no_peak():
    assert peak_flops(CPU, "bfloat16") is None


def test_a_measured_device_has_the_peak_of_its_fastest_product():
    hardware.save_measurement(measured(hardware.device_name(CPU)))
    peak = peak_flops(CPU, "bfloat16")
    assert peak.flops_per_second == 2e11
    assert "2026-11-21" in peak.source
    assert peak_flops(CPU, "float32") is None


def test_a_peak_holds_for_the_number_of_threads_that_was_measured():
    hardware.save_measurement(measured(hardware.device_name(CPU)))
    torch.set_num_threads(2)
    assert peak_flops(CPU, "bfloat16") is None


def test_a_new_measurement_replaces_the_old_one_of_its_device_alone():
    for device, flops in (("one", 1e11), ("two", 2e11), ("one", 3e11)):
        hardware.save_measurement(measured(device, flops))
    assert hardware.read_measurement("one").best("bfloat16").flops_per_second == 3e11
    assert hardware.read_measurement("two").best("bfloat16").flops_per_second == 2e11


@pytest.mark.parametrize("content", ["{", '{"devices": 3}', '{"devices": [{}]}', "[]", '{"version": 9}'])
def test_a_damaged_file_of_measurements_is_no_measurement_and_says_so(content, caplog):
    path = hardware.measurements_path()
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    assert hardware.read_measurement("one") is None
    assert "measure again: scratchlm doctor --measure" in caplog.text


def test_measuring_gives_every_product_a_positive_rate(monkeypatch):
    monkeypatch.setattr(hardware, "PRODUCT_SECONDS", 0.001)
    monkeypatch.setattr(hardware, "COPY_BYTES", 2**16)
    monkeypatch.setattr(hardware, "CPU_PRODUCTS", ((64, 32, 16), (64, 64, 64)))
    found = hardware.measure(CPU)
    assert set(found.products) == {"float32", "bfloat16"}
    assert all(p.flops_per_second > 1e6 for products in found.products.values() for p in products)
    assert found.copy_bytes_per_second > 1e6
    best = found.best("float32")
    assert best.flops_per_second == max(p.flops_per_second for p in found.products["float32"])
