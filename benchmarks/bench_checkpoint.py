"""What a checkpoint costs with 1, 2 and 4 processes: seconds of standing still, on the disk, and read back.

    stands still   until `save` returns: the copy; training goes on then
    on the disk    until `wait` returns: hashed, written, flushed, renamed
    read           every process verifies and reads its rows of everything

Each process holds its rows of weights and two moments of a model of `--parameters`, as FSDP does (what all
have is shared out the same way). The candidates take turns, each round in fresh processes on one machine; the
second save counts, since the first meets a cold allocator. The disk is the bottleneck where it is slower than
the processes; `--folder /dev/shm` measures without it.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from rich.console import Console
from rich.table import Table

D_MODEL = 1024
WORLD_SIZES = (1, 2, 4)


def share(parameters: int, rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """A process's rows of weights and moments, in square matrices."""
    import torch

    from scratchlm.checkpoint import Piece

    first, end = D_MODEL * rank // world_size, D_MODEL * (rank + 1) // world_size
    names = [f"layers.{number}.weight" for number in range(max(1, parameters // D_MODEL**2))]
    return {
        group: {name + key: Piece(torch.randn(end - first, D_MODEL), first, D_MODEL) for name in names}
        for group, key in (("model", ""), ("m", ".m"), ("v", ".v"))
    }


def work(folder: Path, parameters: int) -> None:
    """Save twice and read; called in a process of its own, several at a time."""
    from scratchlm import runtime
    from scratchlm.checkpoint import Coordinator, Saver, latest, open_checkpoint
    from scratchlm.distributed import Processes

    runtime.set_threads(1)
    processes = Processes.from_environment()
    rank, world_size = processes.rank, processes.world_size
    coordinator = Coordinator(processes.store, rank, world_size) if world_size > 1 else None
    held = share(parameters, rank, world_size)
    with Saver(folder, newest=1, coordinator=coordinator) as saver:
        for step in (1, 2):
            processes.barrier()
            started = time.perf_counter()
            saver.save(step, held, {})
            still = time.perf_counter() - started
            saver.wait()
            written = time.perf_counter() - started
        path = latest(folder)
        assert path is not None
        processes.barrier()
        started = time.perf_counter()
        with open_checkpoint(path) as reader:
            for group in reader.groups:
                for name in reader.names(group):
                    rows = reader.shape(group, name)[0]
                    first, end = rows * rank // world_size, rows * (rank + 1) // world_size
                    reader.read(group, name, first, end - first)
        processes.barrier()
        read = time.perf_counter() - started
        num_bytes = sum(entry.num_bytes for entry in reader.manifest.files.values())
    if processes.first:
        print(json.dumps({"still": still, "written": written, "read": read, "bytes": num_bytes}), flush=True)
    processes.barrier()
    os._exit(0)  # the results are said; taking the groups down costs a second


def measure(world_size: int, place: Path, parameters: int) -> dict[str, float]:
    """Run one group of processes to its end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        children = []
        for rank in range(world_size):
            numbers = common | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
            own = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
            command = [sys.executable, __file__, "--worker", folder, "--parameters", str(parameters)]
            environment = os.environ | (own if world_size > 1 else {})
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
        outputs = [child.communicate(timeout=600)[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"{world_size} processes: {[child.returncode for child in children]}")
    return json.loads(outputs[0])


def main() -> None:
    """Measure, show, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=32 * D_MODEL**2, help="12 bytes each.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="On which disk.")
    parser.add_argument("--save", action="store_true", help="Append to benchmarks/results.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.parameters)
    found: dict[int, list[dict[str, float]]] = {world_size: [] for world_size in WORLD_SIZES}
    for _ in range(given.rounds):
        for world_size, results in found.items():
            results.append(measure(world_size, given.folder, given.parameters))
    num_bytes = found[1][0]["bytes"]
    table = Table(title=f"a checkpoint of {num_bytes / 1e6:,.0f} MB, median of {given.rounds} rounds")
    for column in ("processes", "stands still", "on the disk", "ratio", "read", "ratio"):
        table.add_column(column, justify="right")
    rows = []
    for world_size, results in found.items():
        row: dict[str, Any] = {
            "what": "checkpoint",
            "candidate": f"{world_size} processes",
            "bytes": num_bytes,
        }
        for key in ("still", "written", "read"):
            row[key] = statistics.median(result[key] for result in results)
            pairs = zip(found[1], results, strict=True)
            row[f"{key}_speedup"] = statistics.median(one[key] / many[key] for one, many in pairs)
        rows.append(row | {"rounds": given.rounds})
        times = [f"{row['still']:.3f} s", f"{row['written']:.2f} s", f"{row['written_speedup']:.2f}x"]
        table.add_row(str(world_size), *times, f"{row['read']:.2f} s", f"{row['read_speedup']:.2f}x")
    Console().print(table)
    if given.save:
        print(harness.save("checkpoint", rows, folder="memory" if "shm" in str(given.folder) else "disk"))


if __name__ == "__main__":
    main()
