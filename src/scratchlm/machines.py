r"""The name of a GPU comes in; its memory, the ways out of it and its price an hour go out.

    machine = [ GPU == GPU == ... == GPU ]      inside: NVLink or PCIe, GB/s of one GPU, one direction
                  |     |             |
                ------- network --------        between: each GPU's share of its machine's network

One machine is what is rented: usually 8 GPUs. Makers print NVLink's two directions together; a ring uses one,
so the figures here are half of those. Any of them can be replaced on the command line (`--price`, `--between`
and so on) or by a file with the same keys: a rented machine seldom has the maker's network.

Source of memory and links: the address beside each row. Prices: the lowest that was listed for a single GPU
without reservation, at the address and day of PRICES; a guide for comparisons, not an offer.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from scratchlm.config import Config, load, validate
from scratchlm.hardware import Accelerator, find_accelerator
from scratchlm.registry import UnknownNameError, unknown

PRICES = "https://deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10"
"""Where and when the prices were read."""


class Machine(Config):
    """A machine with GPUs, and the network between several."""

    name: str
    """The GPU as its driver spells it: finds its peak in hardware.py."""
    memory_gb: float = Field(gt=0)
    """Memory of one GPU, 10^9 bytes."""
    memory_gb_per_second: float = Field(gt=0)
    """How fast a GPU reads and writes it."""
    gpus: int = Field(8, ge=1)
    """In one machine."""
    inside_gb_per_second: float = Field(gt=0)
    """Out of one GPU to others of its machine, one direction."""
    between_gb_per_second: float = Field(gt=0)
    """Out of one GPU to other machines: the machine's network, shared among its GPUs."""
    nvlink: bool = True
    """Whether GPUs of a machine are linked directly; else over PCIe. Decides the delay of a message."""
    price: float | None = Field(None, ge=0)
    """US dollars for one GPU and hour; None: unknown."""
    source: str = ""
    """Where memory and bandwidths come from."""

    @property
    def accelerator(self) -> Accelerator | None:
        """Its row in the table of peaks."""
        return find_accelerator(self.name)


def _machine(name: str, *figures: int | float, **more: Any) -> Machine:
    """The figures: memory, its speed, inside, between."""
    memory, speed, inside, between = figures
    return Machine(
        name=name,
        memory_gb=memory,
        memory_gb_per_second=speed,
        inside_gb_per_second=inside,
        between_gb_per_second=between,
        **more,
    )


_DGX = "https://docs.nvidia.com/dgx/dgx{}-user-guide/introduction-to-dgx{}.html"
_PCIE_4 = 32.0
"""PCIe 4.0 with 16 lanes, GB/s in one direction."""
_SHARED_100 = 12.5 / 8
"""100 Gbit/s of Ethernet for 8 GPUs, GB/s each: an assumption for machines without a fabric for GPUs."""

MACHINES: dict[str, Machine] = {
    "b200": _machine("B200", 180, 8000, 900, 50, price=5.98, source=_DGX.format("b200", "b200")),
    "h200": _machine("H200", 141, 4800, 450, 50, price=3.59, source=_DGX.format("h100", "h100")),
    "h100": _machine("H100", 80, 3350, 450, 50, price=2.69, source=_DGX.format("h100", "h100")),
    "a100": _machine("A100", 80, 2039, 300, 25, price=1.39, source=_DGX.format("a100", "a100")),
    "mi300x": _machine(
        "MI300X", 192, 5300, 448, 50,
        source="https://www.amd.com/en/products/accelerators/instinct/mi300/platform.html",
    ),
    "l40s": _machine(
        "L40S", 48, 864, _PCIE_4, _SHARED_100, nvlink=False, price=0.79,
        source="https://www.nvidia.com/en-us/data-center/l40s/",
    ),
    "l4": _machine(
        "L4", 24, 300, _PCIE_4, _SHARED_100, nvlink=False, price=0.44,
        source="https://www.nvidia.com/en-us/data-center/l4/",
    ),
    "rtx-4090": _machine(
        "RTX 4090", 24, 1008, _PCIE_4, _SHARED_100, nvlink=False, price=0.34,
        source="https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4090/",
    ),
    "rtx-3090": _machine(
        "RTX 3090", 24, 936, _PCIE_4, _SHARED_100, nvlink=False, price=0.22,
        source="https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3090-3090ti/",
    ),
}  # fmt: skip
"""Name on the command line -> machine. Networks of the first five: 400 Gbit/s (A100: 200) for each GPU."""


def find_machine(name_or_path: str, **changes: object) -> Machine:
    """Return a machine by the name of its GPU, or from a .toml or .json file with the keys of `Machine`.

    Args:
        name_or_path: A key of MACHINES, in any case, or a file.
        changes: What this machine has otherwise; None leaves a value as it is.

    Raises:
        UnknownNameError: No such GPU.
        ValueError: A value is out of range, or the file cannot be read.
    """
    path = Path(name_or_path)
    key = name_or_path.lower().replace(" ", "-")
    if path.suffix in (".toml", ".json"):
        machine = load(Machine, path)
    elif key in MACHINES:
        machine = MACHINES[key]
    else:
        known = unknown("GPU", name_or_path, MACHINES)
        raise UnknownNameError(f"{known} Others: --gpu FILE.toml with the keys of machines.py.")
    given = {key: value for key, value in changes.items() if value is not None}
    return validate(Machine, machine.model_dump() | given, source="--gpu")
