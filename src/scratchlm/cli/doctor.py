"""`scratchlm doctor`: what this machine offers, what will be chosen here, and why."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from scratchlm.hardware import Measurement


BUSY_LOAD = 0.5
"""Processes that wanted a core before measuring, above which the figures are too low."""


class Finding(NamedTuple):
    """One thing about this machine."""

    what: str
    found: str
    meaning: str
    """What follows from it for a run."""
    good: bool = True


def doctor(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure matrix products and copying, for MFU; takes some seconds."),
    ] = False,
) -> None:
    """Show what this machine offers, what will be chosen and why."""
    from rich.text import Text

    from scratchlm.cli.console import err, print_table, table

    with err().status("measuring" if measure else "looking") if err().is_terminal else _nothing():
        measured = _measure() if measure else _measured_before()
        parts = {"machine": machine(), "software": software(), "a run here takes": choices()}
        parts |= {"operations": operations(), "peak": peaks(measured)}
    rows = table("", "", "")
    for title, findings in parts.items():
        rows.add_row(Text(title, "bold"))
        for finding in findings:
            style = "green" if finding.good else "yellow"
            rows.add_row(f"  {finding.what}", Text(finding.found, style), Text(finding.meaning, "dim"))
    print_table(rows)


def machine() -> list[Finding]:
    """Cores, number formats, accelerator, memory and disk."""
    import shutil

    import psutil
    import torch

    from scratchlm import runtime
    from scratchlm.cli.console import size

    flags = runtime.cpu_flags()
    wide = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "neon", "asimd") if name in flags]
    native = bool(flags & {"amx_bf16", "avx512_bf16"})
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    gpu = torch.cuda.get_device_name() if cuda else "Apple GPU (MPS)" if mps else "none"
    return [
        Finding("processor", runtime.processor_name(), ", ".join(wide)),
        Finding("cores", str(runtime.num_cores()), "threads for matrix products and for encoding"),
        Finding(
            "bfloat16",
            "native" if native else "not native",
            "halves the time of matrix products" if native else "matrix products on the CPU stay in float32",
            good=native,
        ),
        Finding(
            "GPU",
            gpu,
            _gpu_meaning() if cuda else "the CPU trains; small models are fine" if not mps else "trains",
        ),
        Finding(
            "memory",
            f"{size(memory.available)} free of {size(memory.total)}",
            "micro-batches are sized to fit into half of what is free",
            good=memory.available > 2e9,
        ),
        Finding(
            "disk here",
            f"{size(disk.free)} free",
            "enough for any small run" if disk.free > 2e9 else "little: checkpoints may not fit",
            good=disk.free > 2e9,
        ),
    ]


def software() -> list[Finding]:
    """Versions, compiler, Triton."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from scratchlm import __version__, runtime

    compiler = runtime.has_compiler()
    triton = find_spec("triton") is not None
    found = [Finding("scratchlm", __version__, ""), Finding("Python", platform.python_version(), "")]
    for name in ("torch", "numpy", "numba", "pyarrow"):
        try:
            found.append(Finding(name, version(name), ""))
        except PackageNotFoundError:
            found.append(Finding(name, "missing", f"install it: pip install {name}", good=False))
    found.append(
        Finding(
            "C++ compiler",
            compiler or "none",
            "torch.compile works on the CPU"
            if compiler
            else "no torch.compile on the CPU; install g++ for more speed",
            good=compiler is not None,
        )
    )
    found.append(
        Finding(
            "Triton",
            "installed" if triton else "none",
            "compiles for GPUs" if triton else "only needed with a GPU",
        )
    )
    return found


def choices() -> list[Finding]:
    """What "auto" means here, with the reason."""
    from scratchlm import runtime

    device = runtime.choose_device("auto")
    precision = runtime.choose_precision("auto", device)
    reasons = {
        "cuda": "CUDA works here",
        "mps": "an Apple GPU works here",
        "cpu": "there is no GPU that torch can use",
    }
    can_compile = device.type == "cuda" or (device.type == "cpu" and runtime.has_compiler() is not None)
    return [
        Finding("device", str(device), reasons.get(device.type, "")),
        Finding("precision", precision.name, precision.reason),
        Finding("threads", str(runtime.set_threads()), _why_threads()),
        Finding(
            "torch.compile",
            "when it pays" if can_compile else "no",
            "runs long enough to win the compilation time back"
            if can_compile
            else "no compiler for this device",
        ),
    ]


def operations() -> list[Finding]:
    """Which implementation "auto" takes for each operation here, and why."""
    from scratchlm import runtime
    from scratchlm.kernels import KERNELS, PLAIN, choose, triton_obstacle

    device = runtime.choose_device("auto")
    obstacle = triton_obstacle(device)
    # without a GPU nothing is amiss; on one that our kernels do not run on, all works, only slower
    good = obstacle is None or device.type != "cuda"
    meaning = obstacle or "where an operation has one"
    if obstacle and device.type != "cuda":
        meaning = "there is no NVIDIA GPU that torch can use"
    found = [Finding("our GPU kernels", "no" if obstacle else "yes", meaning, good=good)]
    for op, names in KERNELS.items():
        choice = choose(op, device=device)
        meaning = choice.reason if obstacle is None else PLAIN[op][1]
        if op == "attention":
            others = ", ".join(name for name in names if name != choice.name)
            meaning += f"; model.attention takes another: {others}"
        found.append(Finding(op, choice.name, meaning, good=good))
    return found


def peaks(measured: "Measurement | None") -> list[Finding]:
    """The most arithmetic that the device does, published or measured, and what MFU is divided by."""
    from scratchlm import hardware, runtime
    from scratchlm.cli.console import size

    device = runtime.choose_device("auto")
    found = []
    for precision in ("bfloat16", "float32"):
        peak = hardware.peak_flops(device, precision)
        best = measured.best(precision) if measured else None
        if peak is None:
            meaning = "unknown device: no MFU; scratchlm doctor --measure measures the peak"
            found.append(Finding(precision, "unknown", meaning, good=False))
            continue
        found.append(Finding(precision, _rate(peak.flops_per_second), peak.source))
        if best is not None:
            shape = f"fastest product: ({best.rows} x {best.inner}) ({best.inner} x {best.columns})"
            found.append(Finding(f"{precision} here", _rate(best.flops_per_second), shape))
    if measured:
        found.append(Finding("copying", f"{size(measured.copy_bytes_per_second)}/s", "read and written"))
        if measured.load > BUSY_LOAD:
            meaning = "other programs were computing meanwhile; measure again when the machine is idle"
            found.append(Finding("load", f"{measured.load:.1f}", meaning, good=False))
    found.append(Finding("MFU", "formula", hardware.MFU_FORMULA.removeprefix("MFU = ")))
    return found


def _measure() -> "Measurement":
    """Measure and keep the figures for `plan` and for training."""
    from scratchlm import hardware, runtime

    runtime.set_threads()
    measured = hardware.measure(runtime.choose_device("auto"))
    hardware.save_measurement(measured)
    return measured


def _measured_before() -> "Measurement | None":
    from scratchlm import hardware, runtime

    runtime.set_threads()
    return hardware.read_measurement(hardware.device_name(runtime.choose_device("auto")))


def _rate(flops_per_second: float) -> str:
    return f"{flops_per_second / 1e9:,.0f} GFLOP/s"


def _gpu_meaning() -> str:
    import torch

    from scratchlm.cli.console import size

    properties = torch.cuda.get_device_properties(0)
    return f"{size(properties.total_memory)}, compute capability {properties.major}.{properties.minor}"


def _nothing() -> "contextlib.AbstractContextManager[None]":
    return contextlib.nullcontext()


def _why_threads() -> str:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return "OMP_NUM_THREADS says so" if asked else "all cores that this process may use"
