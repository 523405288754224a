"""results/distributed_*.jsonl -> the tables of several processes in README.md, between their two markers.

Of several rows for the same measurement the last one counts. Run it after `bench_distributed.py`.
"""

import json
from pathlib import Path
from typing import Any

import readme_tables

from scratchlm.bench.tables import milliseconds, size

RESULTS = Path(__file__).parent / "results"
BEGIN = "<!-- distributed tables: made by benchmarks/distributed_table.py -->"
END = "<!-- end of distributed tables -->"

WORDS = {
    "alone": "no communication",
    "per_parameter": "ours, a message for each parameter",
    "flat": "ours, one message after backward",
    "overlapped": "ours, a message for each parameter during backward",
    "bucketed": "ours, buckets during backward",
    "torch": "torch's DDP",
    "torch_views": "torch's DDP, gradients as views of buckets",
    "zero1": "ours, ZeRO 1",
    "zero2": "ours, ZeRO 2",
    "fsdp": "ours, FSDP",
    "fsdp2": "torch's FSDP2",
}
SHAPES = {"usual": "1,024 tokens for each process and step", "short": "64 tokens"}


def newest_rows() -> list[dict[str, Any]]:
    """Each measurement's last row, in the order in which they were made."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("distributed_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            names = ("part", "model", "world_size", "way", "bucket_mb", "backend", "call", "num_bytes")
            rows[tuple(row.get(name) for name in names)] = row
    return list(rows.values())


def calls(rows: list[dict[str, Any]]) -> list[str]:
    """Latency, bandwidth and 100 MB of each call."""
    lines = ["| gloo on one machine | processes | latency | bus bandwidth | 100 MB take |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    times = {
        (row["world_size"], row["call"]): row["median_ms"]
        for row in rows
        if row["part"] == "comm" and row["num_bytes"] == 100_000_000
    }
    for row in rows:
        if row["part"] == "comm line":
            name, number = row["call"].replace("_", "-"), row["world_size"]
            latency, rate = milliseconds(1e3 * row["per_call"]), size(row["bytes_per_second"])
            taken = milliseconds(times[number, row["call"]])
            lines.append(f"| {name} | {number} | {latency} ms | {rate}/s | {taken} ms |")
    return lines


def data_parallel(rows: list[dict[str, Any]]) -> list[str]:
    """Steps of both shapes, and their ratio to torch's DDP."""
    found = {
        (row["model"], row["way"]): row for row in rows if row["part"] == "ddp" and row["bucket_mb"] == "auto"
    }
    columns = " | ".join(f"{words}: step | not hidden | ratio" for words in SHAPES.values())
    lines = [f"| data parallel, 2 processes | {columns} |", f"| --- |{' ---: |' * 3 * len(SHAPES)}"]
    for way in dict.fromkeys(way for _, way in found):
        cells = []
        for shape in SHAPES:
            row = found[shape, way]
            waiting = "" if way == "alone" else f"{milliseconds(row['waiting_ms'])} ms"
            cells += [f"{milliseconds(row['step_ms'])} ms", waiting, f"{row['ratio']:.2f}x"]
        lines.append(f"| {WORDS[way]} | {' | '.join(cells)} |")
    return lines


def sharded(rows: list[dict[str, Any]]) -> list[str]:
    """Bytes beside the formula, and steps of 2 processes."""
    found = {(row["model"], row["world_size"], row["way"]): row for row in rows if row["part"] == "shards"}
    lines = [
        "| who keeps what, measured / formula | parameters | gradients | optimizer state | peak of a step | "
        + " | ".join(f"{words}: step | to torch's FSDP2" for words in SHAPES.values())
        + " |",
        f"| --- |{' ---: |' * (4 + 2 * len(SHAPES))}",
    ]
    for number in (2, 4):
        for way in dict.fromkeys(way for _, size_, way in found if size_ == number):
            first = found["usual", number, way]
            cells = [f"{WORDS[way]}, {number} processes"]
            for kind in ("parameters", "gradients", "states"):
                cells.append(f"{size(first['held'][kind])} / {size(first['foretold'][kind])}")
            cells.append(size(first["peak_bytes"]))
            for shape in SHAPES:
                row = found[shape, number, way]
                peer = f"{row['ratio_to_fsdp2']:.2f}x" if way in ("fsdp", "fsdp2") else ""
                cells += [f"{milliseconds(row['step_ms'])} ms", peer]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables() -> str:
    """The Markdown between the markers."""
    rows = newest_rows()
    first = next(row for row in rows if row["part"] == "ddp")
    about = (
        f"Medians of {first['rounds']} and more paired rounds on {first['environment']['cores']} cores "
        f"({first['environment']['processor']}), torch {first['environment']['torch']}, {first['date']}; "
        "ratios are those of the rounds."
    )
    parts = [*calls(rows), "", *data_parallel(rows), "", *sharded(rows), "", about]
    return "\n".join(parts)


def main() -> None:
    """Put the tables into the README."""
    readme_tables.put(BEGIN, END, tables())


if __name__ == "__main__":
    main()
