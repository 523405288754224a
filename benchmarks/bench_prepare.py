"""Preparing a corpus with one worker and with two: seconds of whole commands, for every engine.

    python benchmarks/bench_prepare.py [--text FILE] [--megabytes 1000] [--rounds 3] [--save]

Every candidate is the command that a user types, start of Python and libraries included, in rounds one after
the other, so that a busy machine hits all alike; the speed-up is the median over the rounds of (seconds with
one) / (seconds with two). Without --text the embedded stories are written to a file and repeated. What one
worker means: a thread that encodes beside the one that reads; a process that does everything; one task of
`--num-tasks` with one thread; a Ray worker beside the process that hands out. Tasks run at the same time, and
the merge that follows is timed by itself.
"""

import argparse
import os
import shutil
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

STORIES = 100_000
"""Written once (70 MB, some seconds) and repeated up to the size that is asked for."""
COMMAND = [sys.executable, "-m", "scratchlm"]
ENGINES = ("threads", "processes", "tasks", "ray")


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


def run(commands: list[list[str]]) -> float:
    """Start all commands at once; return the seconds until the last one ends."""
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "scratchlm", *words], env=environment, stdout=subprocess.DEVNULL
        )
        for words in commands
    ]
    codes = [child.wait() for child in children]
    assert not any(codes), (commands, codes)
    return time.perf_counter() - began


def measure(engine: str, workers: int, text: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    """Prepare once; return the seconds of each command."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["data", "prepare", str(text), "-t", str(tokenizer), "-o", str(out)]
    if engine != "tasks":
        return {"seconds": run([[*words, "--engine", engine, "--workers", str(workers)]])}
    words += ["--workers", "1", "--num-tasks", str(workers), "--task"]
    seconds = run([[*words, str(task)] for task in range(workers)])
    return {"seconds": seconds, "merge_seconds": run([["data", "merge", str(out)]])}


def rows_of(found: dict[tuple[str, int], list[dict[str, float]]], megabytes: float) -> list[dict[str, Any]]:
    """One row for each engine."""
    rows = []
    for engine in ENGINES:
        one, two = ([round["seconds"] for round in found[engine, workers]] for workers in (1, 2))
        row: dict[str, Any] = {
            "what": "prepare",
            "engine": engine,
            "megabytes": megabytes,
            "rounds": len(one),
        }
        row |= {"seconds_1": statistics.median(one), "seconds_2": statistics.median(two)}
        row["speed_up"] = statistics.median(a / b for a, b in zip(one, two, strict=True))
        merges = [round["merge_seconds"] for round in found[engine, 2] if "merge_seconds" in round]
        rows.append(row | ({"merge_seconds": statistics.median(merges)} if merges else {}))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"{rows[0]['megabytes']:,.0f} MB, median of {rows[0]['rounds']} rounds")
    for column in ("engine", "1 worker", "2 workers", "speed-up", "MB/s with 2"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        rate = row["megabytes"] / row["seconds_2"]
        cells = [
            f"{row['seconds_1']:.1f} s",
            f"{row['seconds_2']:.1f} s",
            f"{row['speed_up']:.2f}x",
            f"{rate:.0f}",
        ]
        table.add_row(row["engine"], *cells)
    Console().print(table)


def main() -> None:
    """Measure all and show it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="A text file; stories without it.")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="Append to benchmarks/results.")
    given = parser.parse_args()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = given.text or text_of(folder, given.megabytes)
        tokenizer = folder / "tokenizer.json"
        run([["tokenizer", "train", str(text), "--vocab-size", "3000", "-o", str(tokenizer)]])
        for _ in range(given.rounds):
            for engine in ENGINES:
                for workers in (1, 2):
                    seconds = measure(engine, workers, text, tokenizer, folder / "out")
                    found.setdefault((engine, workers), []).append(seconds)
        rows = rows_of(found, text.stat().st_size / 1e6)
    show(rows)
    if given.save:
        harness.save("prepare", rows)


if __name__ == "__main__":
    main()
