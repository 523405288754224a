r"""A kernel and its types come in, what a GPU's compiler makes of it goes out: no GPU is needed.

    Triton source -> ttir -> ttgir -> llir -> PTX -> ptxas -v -> registers, spilled bytes
                                              \-> how many matrix instructions (wgmma on sm_90, mma before)

A spilled register goes through memory at every turn of a loop, and a product that misses the matrix
instructions runs at a tenth of the speed: both are seen here before a GPU is at hand.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """One way to compile a kernel."""

    name: str
    """What a test calls it: the kernel, the shape, the tile."""
    kernel: Any
    """A function under @triton.jit."""
    signature: Mapping[str, str]
    """Each run-time argument's type, in the kernel's order: "*bf16", "i32", "fp32"."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Each constexpr argument's value."""
    num_warps: int = 4
    num_stages: int = 3
    matrix: bool = True
    """Whether its products must use matrix instructions; False for kernels without products."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler said."""

    registers: int
    """Of one thread."""
    spilled_bytes: int
    """Of one thread: stores and loads that the lack of registers costs."""
    shared_bytes: int
    """Shared memory of one block."""
    matrix_instructions: int
    """wgmma.mma_async (sm_90), tcgen05.mma (sm_100) and mma.sync (others) in the PTX."""
    ptx: str


def compile_ahead(configuration: Configuration, capability: int = 90) -> Compiled:
    """Compile for compute capability 9.0 (sm_90a) or another one, such as 80 or 100.

    Pointers and integers named stride_... count as divisible by 16, as they are for aligned tensors.

    Raises:
        RuntimeError: The kernels are interpreted, or the compiler fails.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = configuration.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it.")
    types = dict(configuration.signature) | dict.fromkeys(configuration.constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (kind.startswith("i") and name.startswith("stride_"))
    }
    source = ASTSource(kernel, signature, dict(configuration.constants), aligned)
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _assemble(made.asm["ptx"], capability)
    matrix = len(re.findall(r"wgmma\.mma_async|tcgen05\.mma|\bmma\.sync", made.asm["ptx"]))
    return Compiled(registers, spilled, made.metadata.shared, matrix, made.asm["ptx"])


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of one thread, as NVIDIA's assembler states them."""
    from triton import knobs

    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None, ptx[:200]
    # from compute capability 10.0 on Triton takes an assembler of its own
    assembler = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [assembler.path, "-v", f"--gpu-name={target[1]}", str(path), "-o", f"{path}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return max(map(int, re.findall(r"Used (\d+) registers", said))), spilled
