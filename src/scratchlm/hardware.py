r"""A device and a number format come in; its peak arithmetic, and a run's share of it, go out.

    MFU = FLOPs of the model per token * tokens per second / peak FLOPs per second

MFU (model FLOPs utilisation) says how much of a machine a run uses. It is a number only where the peak is
known: from the maker's data sheet, or measured here by `scratchlm doctor --measure` as the fastest of several
matrix products. For any other device there is no MFU, since a guessed peak gives a guessed share. FLOPs count
as in model/accounting.py: the causal half of attention, nothing that is computed twice.

Source of the definition: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B; of the peaks:
the address beside each. Dense products; makers often print the figure with 2:4 sparsity, which is twice that.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from scratchlm import runtime
from scratchlm.config import Config

if TYPE_CHECKING:
    import torch

MFU_FORMULA = "MFU = FLOPs per token * tokens per second / peak FLOPs per second"
"""To be printed beside the figure."""


class Peak(NamedTuple):
    """The most that a device can do."""

    flops_per_second: float
    """Floating-point operations per second of dense matrix products."""
    source: str
    """Where the figure comes from: an address, or when it was measured."""


class Accelerator(NamedTuple):
    """A row of the table of peaks, in TFLOP/s."""

    words: str
    """Words that the device's name must have, as the driver spells it."""
    bfloat16: float
    """Matrix units, float32 accumulation, no sparsity."""
    float32: float
    """Vector units: torch's default for float32 uses no TF32."""
    source: str
    """Document of the maker."""


_HOPPER = "https://resources.nvidia.com/en-us-hopper-architecture/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"

ACCELERATORS = (
    Accelerator("B200", 2250.0, 75.0, "https://www.nvidia.com/en-us/data-center/hgx/"),
    Accelerator("H100 PCIe", 756.0, 51.2, _HOPPER),
    Accelerator("H100 NVL", 835.5, 60.0, _HOPPER),
    Accelerator("H100", 989.4, 66.9, _HOPPER),
    Accelerator("H200 NVL", 835.5, 60.0, _H200),
    Accelerator("H200", 989.4, 66.9, _H200),
    Accelerator("A100", 312.0, 19.5, _A100),
    Accelerator("A30", 165.0, 10.3, "https://www.nvidia.com/en-us/data-center/products/a30-gpu/"),
    Accelerator("A40", 149.7, 37.4, "https://www.nvidia.com/en-us/data-center/a40/"),
    Accelerator("A10", 125.0, 31.2, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"),
    Accelerator("L4", 121.0, 30.3, "https://www.nvidia.com/en-us/data-center/l4/"),
    Accelerator("L40S", 362.05, 91.6, "https://www.nvidia.com/en-us/data-center/l40s/"),
    Accelerator("L40", 181.05, 90.5, "https://www.nvidia.com/en-us/data-center/l40/"),
    Accelerator("RTX 4090", 165.2, 82.6, _ADA),
    Accelerator("RTX 4080", 97.5, 48.7, _ADA),
    Accelerator("RTX 3090", 71.0, 35.6, _GA102),
    Accelerator(
        "MI300X", 1307.4, 163.4, "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html"
    ),
    Accelerator(
        "MI325X", 1307.4, 163.4, "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html"
    ),
)
"""Devices with a published peak; the first row whose words all occur in the name counts."""

OTHER_CHIPS = {"laptop", "mobile", "max", "ti", "super", "d", "mig", "grid", "vgpu"}
"""Words that mean another, smaller chip or a part of one: the table does not hold for it."""

CPU_PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024), (4096, 1024, 256))
"""Rows, inner width and columns of the products tried on a CPU: square, and as in a small model."""
GPU_PRODUCTS = ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096))
"""The same on a GPU, where smaller ones measure the start of a kernel."""
COPY_BYTES = 2**27
"""Size of the copied block, 128 MiB: larger than the caches of common machines."""
PRODUCT_SECONDS = 0.25
"""How long each product is repeated; the fastest counts, so a moment of quiet is enough."""


class Product(Config):
    """One measured product (rows, inner) x (inner, columns)."""

    rows: int
    """Rows of the left matrix."""
    inner: int
    """Columns of the left, rows of the right."""
    columns: int
    """Columns of the right."""
    flops_per_second: float
    """2 * rows * inner * columns / the shortest time."""


class Measurement(Config):
    """What `doctor --measure` found about one device."""

    device: str
    """Its name, with the number of threads for a CPU."""
    date: str
    """Day of the measurement."""
    torch: str
    """Version of torch that multiplied."""
    load: float
    """Processes that wanted a core in the minute before the measuring; 0 is an idle machine."""
    products: dict[str, tuple[Product, ...]]
    """Number format -> products."""
    copy_bytes_per_second: float
    """Bytes read and written per second of copying."""

    def best(self, precision: str) -> Product | None:
        """The fastest product in this number format."""
        found = self.products.get(precision, ())
        return max(found, key=lambda product: product.flops_per_second) if found else None


class Measurements(Config):
    """The file that holds what was measured."""

    devices: tuple[Measurement, ...] = ()
    """The newest measurement of each device."""


def peak_flops(device: "torch.device", precision: str) -> Peak | None:
    """Return the peak of `device`: published, else measured here before, else None.

    Args:
        device: Where the arithmetic is done.
        precision: float32 or bfloat16.
    """
    name = device_name(device)
    if device.type == "cuda" and (row := find_accelerator(name)) is not None:
        return Peak(1e12 * (row.bfloat16 if precision == "bfloat16" else row.float32), row.source)
    measurement = read_measurement(name)
    best = measurement.best(precision) if measurement else None
    if measurement is None or best is None:
        return None
    return Peak(best.flops_per_second, f"measured {measurement.date} by `scratchlm doctor --measure`")


def mfu(flops_per_token: float, tokens_per_second: float, peak: Peak) -> float:
    """Return the share of the peak that the model's arithmetic reaches, 1 for all of it.

    Example: 1e9 FLOPs per token at 400,000 tokens/s on a peak of 1e15 -> 0.4.
    """
    return flops_per_token * tokens_per_second / peak.flops_per_second


def find_accelerator(name: str) -> Accelerator | None:
    """Return the row for a device's name, or None. Example: "NVIDIA A100-SXM4-80GB" -> the A100's."""
    words = set(re.split(r"[^a-z0-9.]+", name.lower()))
    if words & OTHER_CHIPS:
        return None
    return next((row for row in ACCELERATORS if set(row.words.lower().split()) <= words), None)


def device_name(device: "torch.device") -> str:
    """Return the device's name as its driver tells it; a CPU's with the threads that work on a product."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{runtime.processor_name()} GPU"
    return f"{runtime.processor_name()}, {torch.get_num_threads()} threads"


def measure(device: "torch.device") -> Measurement:
    """Multiply and copy on `device` for some seconds and return what it reached."""
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    shapes = CPU_PRODUCTS if device.type == "cpu" else GPU_PRODUCTS
    return Measurement(
        device=device_name(device),
        date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__,
        load=load,
        products={
            precision: tuple(_measure_product(device, precision, shape) for shape in shapes)
            for precision in ("float32", "bfloat16")
        },
        copy_bytes_per_second=_measure_copy(device),
    )


def measurements_path() -> Path:
    """The file in the user's cache folder that holds what was measured."""
    return Path("~/.cache/scratchlm/hardware.json").expanduser()


def read_measurement(name: str) -> Measurement | None:
    """Return what was measured on the device called `name`; None where nothing (readable) was."""
    return next((found for found in _read_measurements() if found.device == name), None)


def save_measurement(measurement: Measurement) -> Path:
    """Keep a measurement for later runs, in place of an older one of the same device."""
    others = [found for found in _read_measurements() if found.device != measurement.device]
    runtime.write_text_atomically(measurements_path(), Measurements(devices=(*others, measurement)).to_json())
    return measurements_path()


def _read_measurements() -> Iterable[Measurement]:
    path = measurements_path()
    try:
        return Measurements(**json.loads(path.read_text(encoding="utf-8"))).devices
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, ValidationError) as error:
        runtime.log.warning(
            "%s cannot be read (%s); measure again: scratchlm doctor --measure.", path, type(error).__name__
        )
        return ()


def _measure_product(device: "torch.device", precision: str, shape: tuple[int, int, int]) -> Product:
    import torch

    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=getattr(torch, precision))
    right = torch.randn(inner, columns, device=device, dtype=left.dtype)
    product = torch.empty(rows, columns, device=device, dtype=left.dtype)
    seconds = _shortest(lambda: torch.mm(left, right, out=product), device)
    return Product(
        rows=rows, inner=inner, columns=columns, flops_per_second=2.0 * rows * inner * columns / seconds
    )


def _measure_copy(device: "torch.device") -> float:
    import torch

    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _shortest(lambda: target.copy_(source), device)


def _shortest(work: Callable[[], object], device: "torch.device") -> float:
    """Seconds of the fastest call, after one that allocates."""
    work()
    synchronize(device)
    best, end = float("inf"), time.perf_counter() + PRODUCT_SECONDS
    while True:
        started = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > end:
            return best


def synchronize(device: "torch.device") -> None:
    """Wait until `device` has done what it was given; a CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
