"""The machine: device, precision, threads, seeds and safe writing are decided here, and never at import.

A write is atomic when a reader sees the old content or the new, never a part: everything goes to a temporary
name in the same folder, is flushed to the disk, then renamed; the folder is flushed last so that the rename
survives a power cut.
"""

import contextlib
import ctypes
import errno
import logging
import os
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

log = logging.getLogger("scratchlm")

PrecisionName = Literal["auto", "float32", "bfloat16"]


class Precision(NamedTuple):
    """A number format for matrix products and why it was chosen; parameters stay float32."""

    name: Literal["float32", "bfloat16"]
    reason: str


def choose_device(name: str = "auto") -> "torch.device":
    """Return the device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name}: not on this machine ({str(error).splitlines()[0]}); use auto or cpu."
        ) from None
    return device


def choose_precision(name: PrecisionName, device: "torch.device") -> Precision:
    """Return the number format for matrix products: "auto" takes bfloat16 where the hardware has it."""
    import torch

    if name != "auto":
        return Precision(name, "as configured")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "this GPU multiplies bfloat16 natively")
        return Precision("float32", "this GPU has no bfloat16 units")
    if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return Precision("bfloat16", "this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)")
    return Precision("float32", f"no native bfloat16 known on this {device.type.upper()}")


def autocast(device: "torch.device", precision: str) -> AbstractContextManager[None]:
    """Run matrix products in `precision` inside this context; "float32" changes nothing."""
    import torch

    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=getattr(torch, precision))


def cpu_flags() -> set[str]:
    """The instruction-set flags of the first core; empty where the operating system reports none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def num_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(num_threads: int | None = None) -> int:
    """Pin torch's threads and flush denormal numbers; return the number of threads.

    By default OMP_NUM_THREADS where somebody has set it, else all cores. The number is recorded with each
    run: one and two threads differ in the last bits.
    """
    import numpy as np
    import torch

    for kind in (np.float32, np.float64):
        np.finfo(kind)  # NumPy looks for the smallest number once, and warns if it is flushed by then

    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = num_threads or (int(asked) if asked.isdigit() and int(asked) else num_cores())
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)
    return count


def slowed_by_threads(seconds: float = 0.02, tries: int = 3) -> float:
    """Return how many times as long small products take with this process's threads as with one, now.

    Threads wait for each other behind each operation. Where other programs keep the cores busy one thread may
    stand still, and the others wait for as long as the system leaves its core to somebody else: two threads
    then take up to 30 times as long as one (measured on two cores beside five busy processes); undisturbed
    they take less. The least of some tries counts, so that one disturbance is none.

    Args:
        seconds: What one measurement takes on a machine with nothing else to do.
        tries: Pairs of measurements.
    """
    import torch

    count, ratios = torch.get_num_threads(), []
    if count == 1:
        return 1.0
    try:
        for _ in range(tries):
            torch.set_num_threads(1)
            alone = _product_seconds(seconds)
            torch.set_num_threads(count)
            ratios.append(_product_seconds(seconds) / alone)
    finally:
        torch.set_num_threads(count)
    return min(ratios)


def _product_seconds(seconds: float) -> float:
    """Mean time of a small product and what follows it; the first ones start the threads."""
    import torch

    rows, square = torch.ones(512, 256), torch.ones(256, 256)

    def product() -> None:
        torch.relu(rows @ square).sum()

    for _ in range(3):
        product()
    number, started = 0, time.perf_counter()
    while number < 3 or time.perf_counter() - started < seconds:
        product()
        number += 1
    return (time.perf_counter() - started) / number


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""As mallopt(3) numbers them: free bytes that go back, which and how many blocks are mapped by themselves."""
_USUAL = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 2**16}
"""What glibc comes to by itself in a process with large blocks; it adjusts nothing more once it was told."""

_keepers = 0
"""How many `keeping_freed_memory` are open: the last one gives back."""


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the C library keep freed memory for the next allocation; at the end all of it goes back.

    glibc returns the pages of large freed blocks to the system, which fills them with zeros again, one fault
    for 4 KiB. A training step frees and allocates the same activations each time: up to 16,600 faults a step
    of the demo, a sixth of its time (measured). The highest use of memory stays as it was. Where there is no
    glibc nothing happens.
    """
    global _keepers
    library = _glibc()
    if library is None:
        yield
        return
    _keepers += 1
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        _keepers -= 1
        if not _keepers:
            for what, value in _USUAL.items():
                library.mallopt(what, value)
            library.malloc_trim(0)


def release_freed_memory() -> None:
    """Give back what is kept so far: work of other sizes follows, and both would stay."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libc.so.6")
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
            return library
    return None


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: initial weights and dropout draw from torch's."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> "tuple[dict[str, torch.Tensor], dict[str, list[Any]]]":
    """The state of every global generator: torch's as tensors, Python's and NumPy's as plain values."""
    import numpy as np
    import torch

    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return tensors, {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}


def restore_random_state(
    tensors: "Mapping[str, torch.Tensor]", plain: Mapping[str, list[Any]] | None = None
) -> None:
    """Put back what `random_state` gave, as far as this machine has the generators."""
    import numpy as np
    import torch

    torch.set_rng_state(tensors["torch"])
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{number}"], number)
    if plain:
        version, numbers, gauss = plain["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = plain["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


COMPILING: dict[str, Any] = {"dynamic": False, "options": {"cpp.vec_isa_ok": True}}
"""What torch.compile gets: tensors have the same shapes in each step, and whether the processor's vector
instructions work need not be tried out. Compiling and loading programs that try it took 7 of the demo's 40 s
of compiling (measured); a C++ compiler that knows C++20, which torch needs, knows the instructions, too."""


def has_compiler() -> str | None:
    """Path of a C++ compiler that torch.compile can use on the CPU, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def environment() -> dict[str, object]:
    """What a run was made with: versions, hardware, threads, commit; saved with every run."""
    import numpy as np
    import psutil
    import torch

    from scratchlm import __version__

    return {
        "scratchlm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def processor_name() -> str:
    """The processor's name as the operating system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that is checked out, with a + if tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; success gives it the name `path`, an error removes it.

    Raises:
        OSError: `path` is a folder, or cannot be written; the error names it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # nobody knows the temporary name
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the name `path` (which must not exist)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        temporary.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that a reader sees the old file or the new one."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Bring a file, or which files a folder has, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
