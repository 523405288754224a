"""Prove the kernels on a GPU in one command: right first, then fast; a table comes last.

    python -m benchmarks.gpu --out DIR             everything, in less than eight minutes on one H200
    python -m benchmarks.gpu --out DIR --dry-run   a rehearsal on a CPU: every path, tiny shapes, no figures

Nothing is installed: torch, triton and numpy are enough (stand_ins.py). Workers (worker.py) do the work, so a
kernel that takes its process down costs one row. Rows are in DIR/rows.jsonl as soon as they are known; at the
end DIR/gpu_<device>_<month>.jsonl has them with hardware, versions and commit, and

    python -m benchmarks.gpu.goals DIR/gpu_....jsonl

keeps that file under benchmarks/results and writes the table into the README.

The exit code is 0 when every check against float64 was made and passed, and nothing else went wrong: a check
that was cut for lack of time counts as broken. The sweep of tiles comes last and takes the time that is left;
sweep.py says how to run it by itself.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.tiles import best_tiles
from benchmarks.gpu.worker import PARTS, ROOT, append, cases_of, find_source, read_rows

SECONDS = 440
"""For everything: less than the eight minutes promised."""
GRACE = 20
"""Seconds that a worker may go on after its time, in the middle of a case, before it is stopped."""
MOST_CRASHES = 12
"""Of one lane; then something is wrong with more than a case."""
LAST_LINES = 3
"""Of what a worker said before it crashed, for its row."""


class Lane(NamedTuple):
    """A worker and the parts that it does one after the other."""

    parts: tuple[str, ...]
    share: str = "0/1"


class Stage(NamedTuple):
    """Lanes that run at the same time, and the share of all seconds by which they are to be done."""

    lanes: tuple[Lane, ...]
    until: float


STAGES = (
    # nothing is timed here: kernels are compiled on all cores, the training steps too
    Stage(
        (
            *(Lane(("correctness-attention",), f"{n}/3") for n in range(3)),
            *(Lane(("correctness",), f"{n}/2") for n in range(2)),
            *(Lane(("sweep-warm",), f"{n}/3") for n in range(3)),
            Lane(("training-warm",)),
        ),
        0.38,
    ),
    Stage((Lane(("machine", "speed-attention", "speed")),), 0.64),
    Stage((Lane(("training",)),), 0.86),
    Stage((Lane(("memory", "correctness-large")),), 0.92),
    Stage((Lane(("sweep", "sweep-constants")),), 1.0),
)
REHEARSAL = (
    Stage((Lane(("correctness-attention", "correctness", "correctness-large", "machine")),), 1.0),
    Stage((Lane(("speed-attention", "speed", "memory", "training")),), 1.0),
    Stage((Lane(("sweep-constants", "sweep-warm", "sweep")),), 1.0),
)
SELF_CHECK = (Stage((Lane(("correctness-attention", "correctness"), "0/30"),), 1.0),)
"""A few kernels through the interpreter, where there is no GPU and no rehearsal was asked for."""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--parts", help="only these parts, separated by commas")
    parser.add_argument("--commit", help="where the source is no git checkout")
    given = parser.parse_args(words)
    wanted = set(given.parts.split(",")) if given.parts else set(PARTS)
    if unknown := wanted - set(PARTS):
        parser.error(f"--parts: no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    find_source()
    import torch
    from benchmarks.gpu import goals

    stages, tiny = STAGES, given.dry_run
    if given.dry_run:
        stages = REHEARSAL
    elif not torch.cuda.is_available():
        print("There is no GPU here: nothing is measured. A few kernels by Triton's interpreter instead:")
        stages, tiny = SELF_CHECK, True
    given.out.mkdir(parents=True, exist_ok=True)
    rows_file = given.out / "rows.jsonl"
    rows_file.unlink(missing_ok=True)
    checks = checks_of(stages, wanted, tiny=tiny)
    setting = environment(tiny=tiny, commit=given.commit)
    setting["checks"] = len(checks_of(stages, set(PARTS), tiny=tiny))
    append(rows_file, setting)
    run_stages(stages, given.out, tiny=tiny, seconds=given.seconds, wanted=wanted)
    for row in rows_of_missing(checks, list(read_rows(rows_file))):
        append(rows_file, row)
    rows = [row for row in read_rows(rows_file) if "case" in row]
    if not tiny:
        keep_tiles(given.out / "tiles.json", rows)
        path = given.out / f"gpu_{_words(str(setting['device']))}_{time.strftime('%Y-%m')}.jsonl"
        path.write_text(
            "".join(json.dumps(row, default=str) + "\n" for row in (setting, *rows)), encoding="utf-8"
        )
    print(goals.report(setting, rows))
    return 1 if goals.broken(rows) else 0


def checks_of(stages: tuple[Stage, ...], wanted: set[str], *, tiny: bool) -> list[tuple[str, str]]:
    """Part and name of every check against float64 that the stages are to make."""
    import torch
    from benchmarks.gpu.cases import Bench

    found = []
    for lane in (lane for stage in stages for lane in stage.lanes):
        number, of = map(int, lane.share.split("/"))
        for part in lane.parts:
            if part in wanted and part.startswith("correctness"):
                cases = cases_of(part, Bench(torch.device("cpu"), tiny))  # none of them runs here
                found += [(part, case.name) for case in cases[number::of]]
    return found


def rows_of_missing(checks: list[tuple[str, str]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each check that has none: its worker was stopped before."""
    done = {(row["part"], row["case"]) for row in rows if "case" in row}
    return [
        {"part": part, "case": case, "status": "missing", "why": "it was never begun"}
        for part, case in checks
        if (part, case) not in done
    ]


def keep_tiles(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the fastest tiles as kernel -> width -> [queries, keys, warps, stages]."""
    found: dict[str, dict[str, Any]] = {}
    for row in best_tiles(rows).values():
        found.setdefault(row["kernel"], {})[str(row["width"])] = row["tile"]
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_stages(stages: tuple[Stage, ...], out: Path, *, tiny: bool, seconds: float, wanted: set[str]) -> None:
    """Run the stages one after the other, the lanes of each at the same time."""
    started = time.time()
    for stage in stages:
        until = started + stage.until * seconds
        threads = []
        for lane in stage.lanes:
            chosen = tuple(part for part in lane.parts if part in wanted)
            if chosen:
                arguments = (lane._replace(parts=chosen), out, until, tiny)
                threads.append(threading.Thread(target=supervise, args=arguments))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def supervise(lane: Lane, out: Path, until: float, tiny: bool) -> None:
    """Run one lane to its end, with a new worker behind every case that took the old one down."""
    rows_file = out / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu.worker", *lane.parts, "--share", lane.share]
    command += ["--rows", str(rows_file), "--until", str(until), *(["--tiny"] if tiny else [])]
    for _ in range(MOST_CRASHES):
        code, said = run_worker(command, out / "log.txt", until + GRACE, tiny)
        done = {f"{row['part']}: {row['case']}" for row in read_rows(rows_file) if "case" in row}
        begun = [row["started"] for row in read_rows(rows_file) if row.get("lane") == _lane_name(lane)]
        open_cases = [label for label in begun if label not in done]
        if code is None:
            open_cases = open_cases or [f"{lane.parts[-1]}: the rest"]
        elif code == 0:
            return
        elif not open_cases and code != 3:
            open_cases = [f"{lane.parts[0]}: start of the worker {lane.share}"]
        for label in open_cases:
            part, _, case = label.partition(": ")
            why = "stopped: its time was over" if code is None else f"exit code {code}: {said}"
            row = {
                "part": part,
                "case": case,
                "status": "cut" if code is None else "crashed",
                "why": why[:400],
            }
            append(rows_file, row)
            print(f"{part:22s} {case:58s} {row['status']:8s}   {row['why']}"[:230], flush=True)
        if code is None or not begun:
            return


def _lane_name(lane: Lane) -> str:
    return f"{lane.parts[0]} {lane.share}"


def run_worker(command: list[str], log: Path, deadline: float, tiny: bool) -> tuple[int | None, str]:
    """Return the worker's exit code, None if its time was over, and the last lines that it said."""
    variables = dict(os.environ) | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    if tiny:
        variables |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=stream)
        try:
            code: int | None = process.wait(timeout=max(deadline - time.time(), 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        stream.seek(0)
        text = stream.read()
    if text:
        with log.open("a", encoding="utf-8") as file:
            file.write(text)
    return code, " | ".join(text.strip().splitlines()[-LAST_LINES:])


def environment(*, tiny: bool, commit: str | None) -> dict[str, Any]:
    """Return what the figures were made with, without packages that may be missing."""
    import numpy
    import torch

    fields: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "triton": _version("triton"),
        "commit": commit
        or _said(["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]),
        "source_sha256": source_digest(),
        "device": "cpu",
    }
    if not tiny:
        properties = torch.cuda.get_device_properties(0)
        fields |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return fields


def source_digest() -> str:
    """A hash of all of our source: says what was measured even where git cannot."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _words(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
