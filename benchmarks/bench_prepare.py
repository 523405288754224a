"""Preparing a corpus with one worker and with two: seconds of whole commands, for every engine.

    python benchmarks/bench_prepare.py [--text FILE] [--megabytes 1000] [--rounds 3] [--save]

Every candidate is the command that a user types, start of Python and libraries included, in rounds one after
the other, so that a busy machine hits all alike; the speed-up is the median over the rounds of (seconds with
one) / (seconds with two). Without --text the embedded stories are written to a file and repeated. What one
worker means: one thread or process that does everything, or one task of `--num-tasks`; on Ray, a worker
beside the process that hands out. Tasks run at the same time, and the merge that follows is timed by itself.

The same commands with the first megabyte of the text say what starting costs. Seconds are then a start and a
rate, t = s + x / r; both together say how large a text must be for two workers to be 1.8 times as fast:

    (s1 + x / r1) / (s2 + x / r2) = 1.8      x = (1.8 s2 - s1) / (1 / r1 - 1.8 / r2)
"""

import argparse
import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness
from rich.console import Console
from rich.table import Table

STORIES = 100_000
"""Written once (70 MB, some seconds) and repeated up to the size that is asked for."""
COMMAND = [sys.executable, "-m", "scratchlm"]
ENGINES = ("threads", "processes", "tasks", "ray")
WANTED = 1.8
"""How much faster two workers should be than one."""
START_BYTES = 10**6
"""Of the text, to see what starting costs."""


def text_of(folder: Path, megabytes: int) -> Path:
    """Write stories and repeat them."""
    from scratchlm.data.corpora import StoriesCorpus

    chunks = StoriesCorpus(num_train=STORIES).chunks("train")
    once = "".join(f"{chunk.text}\n<|endoftext|>\n" for chunk in chunks).encode()
    path = folder / "text.txt"
    with path.open("wb") as stream:
        for _ in range(max(1, round(megabytes * 1e6 / len(once)))):
            stream.write(once)
    return path


def tokenizer_of(text: Path, folder: Path) -> Path:
    """Train a small tokenizer."""
    path = folder / "tokenizer.json"
    run([["tokenizer", "train", str(text), "--vocab-size", "3000", "-o", str(path)]])
    return path


class Cost(NamedTuple):
    """What commands took: until the last one ended, and of the processors, their children included."""

    seconds: float
    cpu_seconds: float


def run(commands: list[list[str]]) -> Cost:
    """Start all commands at once and wait for the last one."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.DEVNULL) for words in commands
    ]
    codes = [child.wait() for child in children]
    assert not any(codes), (commands, codes)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - began, cpu)


def measure(engine: str, workers: int, text: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    """Prepare once; return the seconds of each command."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["data", "prepare", str(text), "-t", str(tokenizer), "-o", str(out)]
    if engine != "tasks":
        return run([[*words, "--engine", engine, "--workers", str(workers)]])._asdict()
    words += ["--workers", "1", "--num-tasks", str(workers), "--task"]
    cost = run([[*words, str(task)] for task in range(workers)])
    return cost._asdict() | {"merge_seconds": run([["data", "merge", str(out)]]).seconds}


Rounds = dict[tuple[str, int], list[dict[str, float]]]


def rows_of(found: Rounds, starts: Rounds, megabytes: float, small: float) -> list[dict[str, Any]]:
    """One row for each engine."""
    rows = []
    for engine in dict.fromkeys(engine for engine, _ in found):
        row: dict[str, Any] = {"what": "prepare", "engine": engine, "megabytes": megabytes}
        one, two = ([round["seconds"] for round in found[engine, workers]] for workers in (1, 2))
        row |= {
            "rounds": len(one),
            "speed_up": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        }
        for workers in (1, 2):
            for name, key in (("seconds", "seconds"), ("cpu", "cpu_seconds")):
                values = [round[key] for round in found[engine, workers]]
                row[f"{name}_{workers}"] = statistics.median(values)
            row[f"start_{workers}"] = statistics.median(round["seconds"] for round in starts[engine, workers])
        merges = [round["merge_seconds"] for round in found[engine, 2] if "merge_seconds" in round]
        row |= {"merge_seconds": statistics.median(merges)} if merges else {}
        rows.append(row | beyond_the_start(row, megabytes, small))
    return rows


def beyond_the_start(row: dict[str, Any], megabytes: float, small: float) -> dict[str, float | None]:
    """The speed-up of all but the start, and the size from which whole commands reach what is wanted.

    Both None where the text is too small beside the start, or the machine too busy, to tell.
    """
    one, two = (
        (row[f"seconds_{workers}"] - row[f"start_{workers}"]) / (megabytes - small) for workers in (1, 2)
    )
    if min(one, two) <= 0:
        return {"speed_up_beyond_start": None, "megabytes_enough": None}
    start_one, start_two = row["start_1"] - one * small, row["start_2"] - two * small
    gained = one - WANTED * two
    enough = max(0.0, (WANTED * start_two - start_one) / gained) if gained > 0 else None
    return {"speed_up_beyond_start": one / two, "megabytes_enough": enough}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"{rows[0]['megabytes']:,.0f} MB, median of {rows[0]['rounds']} rounds")
    columns = (
        "engine",
        "1 worker",
        "2 workers",
        "speed-up",
        "beyond the start",
        f"{WANTED}x from",
        "CPU 1",
        "CPU 2",
    )
    for column in (*columns, "MB/s with 2"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        beyond, enough = row["speed_up_beyond_start"], row["megabytes_enough"]
        table.add_row(
            row["engine"],
            f"{row['seconds_1']:.1f} s",
            f"{row['seconds_2']:.1f} s",
            f"{row['speed_up']:.2f}x",
            "?" if beyond is None else f"{beyond:.2f}x",
            "" if enough is None else f"{enough:,.0f} MB",
            f"{row['cpu_1']:.1f} s",
            f"{row['cpu_2']:.1f} s",
            f"{row['megabytes'] / row['seconds_2']:.0f}",
        )
    Console().print(table)


def main() -> None:
    """Measure all and show it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="A text file; stories without it.")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--save", action="store_true", help="Append to benchmarks/results.")
    given = parser.parse_args()
    found: Rounds = {}
    starts: Rounds = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = given.text or text_of(folder, given.megabytes)
        tokenizer = tokenizer_of(text, folder)
        small = folder / "small.txt"
        with text.open("rb") as stream:
            small.write_bytes(stream.read(START_BYTES).rpartition(b"<|endoftext|>")[0])
        for _ in range(given.rounds):
            for engine, workers in itertools.product(given.engines, (1, 2)):
                for path, costs in ((text, found), (small, starts)):
                    cost = measure(engine, workers, path, tokenizer, folder / "out")
                    costs.setdefault((engine, workers), []).append(cost)
        rows = rows_of(found, starts, text.stat().st_size / 1e6, small.stat().st_size / 1e6)
    show(rows)
    if given.save:
        harness.save("prepare", rows)


if __name__ == "__main__":
    main()
