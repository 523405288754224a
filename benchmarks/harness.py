"""Paired measurements: candidates take turns, in one process or each in its own; medians and ratios come out.

Machines are shared and noisy. So the candidates run in turns (a, b, c, a, b, c, ...), each round gives one
ratio to the first candidate, and what is reported is the median of the rounds.
"""

import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scratchlm import runtime

RESULTS = Path(__file__).parent / "results"


def alternate(candidates: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Call each candidate once a round; a candidate returns a rate (more is better)."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            rates[name].append(measure())
    return rates


@contextlib.contextmanager
def own_process(
    prepare: Callable[..., Callable[[], float]], *arguments: Any
) -> Iterator[Callable[[], float]]:
    """Yield the measurement that `prepare(*arguments)` returns in a process of its own, which waits between.

    For candidates that treat what a process has once differently, such as the C library's memory. `prepare`
    is a function of a module's top level.
    """
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    process = spawned.Process(target=_measure_when_asked, args=(there, prepare, arguments), daemon=True)
    process.start()
    there.close()  # else a worker that died would be waited for
    here.recv()

    def measure() -> float:
        here.send(None)
        return here.recv()

    try:
        yield measure
    finally:
        here.close()
        process.join()


def _measure_when_asked(
    pipe: Connection, prepare: Callable[..., Callable[[], float]], arguments: tuple[Any, ...]
) -> None:
    measure = prepare(*arguments)
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(measure())


def save(what: str, rows: Iterable[dict[str, Any]], **setup: object) -> Path:
    """Append the rows, with date, hardware and versions, to results/<what>_<cpu>_<yyyy-mm>.jsonl."""
    environment = runtime.environment()
    processor = "".join(c if c.isalnum() else "-" for c in str(environment["processor"]).lower()).strip("-")
    path = RESULTS / f"{what}_{processor}_{time.strftime('%Y-%m')}.jsonl"
    path.parent.mkdir(exist_ok=True)
    common = {"setup": setup, "date": time.strftime("%Y-%m-%d"), "environment": environment}
    with path.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row | common) + "\n")
    return path


def report(what: str, unit: str, rates: dict[str, list[float]], **setup: object) -> Path:
    """Print the table and save a row for each candidate."""
    baseline = next(iter(rates))
    table = Table(title=f"{what} ({unit}, median of {len(rates[baseline])} rounds)")
    for column in ("candidate", unit, f"ratio to {baseline}", "lowest", "highest"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    rows = []
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[baseline], strict=True))
        middle = statistics.median(values)
        table.add_row(name, f"{middle:,.0f}", f"{ratio:.2f}x", f"{min(values):,.0f}", f"{max(values):,.0f}")
        row = {"what": what, "candidate": name, "unit": unit, "median": middle, "ratio": ratio}
        rows.append(row | {"baseline": baseline, "rounds": len(values)})
    Console().print(table)
    return save(what, rows, **setup)
