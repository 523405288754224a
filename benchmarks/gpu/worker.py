"""One process that runs the cases of some parts and appends a row for each to a file.

A kernel that reads wrong memory takes down every later call of its process. So the cases run here, and the
command starts a new worker behind the case that did not come back: each failure costs one row.

    python -m benchmarks.gpu.worker --rows FILE [--tiny] [--until SECONDS] [--share 0/2] PART...
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = {
    "machine": "speed",
    "correctness-attention": "correctness_attention",
    "correctness": "correctness",
    "correctness-large": "correctness",
    "speed-attention": "speed_attention",
    "speed": "speed",
    "training-warm": "training",
    "training": "training",
    "memory": "memory",
    "sweep-constants": "sweep_constants",
    "sweep-warm": "sweep",
    "sweep": "sweep",
}
"""Part -> the module that has its cases, as a function called like the part: correctness_attention(bench)."""
POISONED = 3
"""Exit code: the device answers no more, a new process must go on."""


def find_source() -> None:
    """Make the package importable from its source, and play the packages that are missing."""
    for path in (str(ROOT / "src"), str(ROOT)):
        if path not in sys.path:
            sys.path.insert(0, path)
    from benchmarks.gpu import stand_ins

    stand_ins.install()


def cases_of(part: str, bench: Any) -> list[Any]:
    """The cases of one part, in their order."""
    module = importlib.import_module(f"benchmarks.gpu.{PARTS[part]}")
    return getattr(module, part.replace("-", "_"))(bench)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """What is in a file of rows so far; a line that was cut off in the middle is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row and close the file: whatever happens later, it is there."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, default=str) + "\n")


def run_case(case: Any) -> dict[str, Any]:
    """The row of one case: its fields, or what went wrong."""
    import torch
    from benchmarks.gpu.cases import MissedError, MissingError

    started = time.perf_counter()
    try:
        row = {"status": "ok"} | case.run()
    except MissedError as error:
        row = {"status": "failed", "why": str(error)} | error.row
    except MissingError as error:
        row = {"status": "not there", "why": str(error)}
    except torch.OutOfMemoryError as error:
        row = {"status": "out of memory", "why": _short(error)}
    except expected_errors() as error:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        row = {"status": "error", "why": _short(error)}
    return row | {"wall_seconds": round(time.perf_counter() - started, 2)}


def expected_errors() -> tuple[type[Exception], ...]:
    """What a kernel that is wrong, or too large for the device, raises; anything else ends the worker."""
    found: list[type[Exception]] = [RuntimeError, ValueError, TypeError, AssertionError, LookupError]
    found += [ImportError, AttributeError, OSError]
    try:
        from triton.errors import TritonError

        found.append(TritonError)
    except ImportError:
        pass
    return tuple(found)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:240]}"


def device_answers(device: Any) -> bool:
    """Whether the device still works; after some errors nothing runs in this process any more."""
    import torch

    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(8, device=device).sum().item() == 8)
    except RuntimeError:
        return False


def say(part: str, row: dict[str, Any]) -> None:
    """One line of progress."""
    figure = f"{row['ms']:.3f} ms" if "ms" in row else ""
    if "share_of_limit" in row:
        figure = f"{row['share_of_limit']:.2f} of the limit"
    if "rate" in row:
        figure += f"  {row['rate']:,.0f} {row['unit']}"
    why = f"  {row['why']}" if "why" in row else ""
    print(f"{part:22s} {row['case']:58s} {row['status']:8s} {figure}{why}"[:230], flush=True)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.worker")
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--share", default="0/1")
    given = parser.parse_args(words)
    find_source()
    import torch
    from benchmarks.gpu.cases import Bench

    bench = Bench(torch.device("cpu" if given.tiny else "cuda"), given.tiny, given.until)
    number, _, of = given.share.partition("/")
    known = {row.get("started") for row in read_rows(given.rows)}
    for part in given.parts:
        for case in cases_of(part, bench)[int(number) :: int(of)]:
            label = f"{part}: {case.name}"
            if label in known:
                continue
            append(given.rows, {"started": label, "lane": f"{given.parts[0]} {given.share}"})
            late = time.time() > given.until
            row = {"status": "cut", "why": "no time left"} if late else run_case(case)
            row = {"part": part, "case": case.name} | row
            append(given.rows, row)
            say(part, row)
            if not device_answers(bench.device):
                return POISONED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
