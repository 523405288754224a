"""results/train_*.jsonl -> the tables of training speed in README.md, between their two markers.

Of several rows for the same measurement the last one counts. Run it after `bench_train.py`.
"""

import json
from pathlib import Path
from typing import Any

import readme_tables

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- training tables: made by benchmarks/train_table.py -->", "<!-- end of training tables -->"

SHAPES = {
    "cpu": "4 layers, d_model 256, context 256, vocabulary 4,096, 16 rows",
    "tiny": "4 layers, d_model 128, context 64, 65 characters, 12 rows: nanoGPT's setting for a CPU",
}
CANDIDATES = {
    "reference float32 eager": "torch's layers, float32, eager",
    "reference bfloat16 compiled": "torch's layers, bfloat16, compiled",
    "reference bfloat16 compiled, memory kept": "the same, its freed memory kept as ours",
    "scratchlm float32 eager": "scratchlm, float32, eager",
    "scratchlm bfloat16 eager": "scratchlm, bfloat16, eager",
    "scratchlm bfloat16 compiled": "scratchlm, bfloat16, compiled",
}


def newest_rows() -> dict[tuple[str, str], dict[str, Any]]:
    """(shape, candidate or figure) -> its last row."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("train_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            shape = row["setup"].get("shape")
            rows[shape, row.get("candidate") or row["figure"]] = row
    return rows


def tables() -> str:
    """The Markdown between the markers."""
    rows = newest_rows()
    parts = []
    for shape, title in SHAPES.items():
        first = rows[shape, "reference float32 eager"]
        lines = [f"| {title} | tokens/s | ratio |", "| --- | ---: | ---: |"]
        for name, words in CANDIDATES.items():
            row = rows[shape, name]
            lines.append(f"| {words} | {row['median']:,.0f} | {row['ratio']:.2f}x |")
        share = rows[shape, "model FLOPs as a share of that"]["value"]
        reached = rows[shape, "model GFLOP/s, scratchlm bfloat16 compiled"]["value"]
        against = rows[shape, "scratchlm bfloat16 compiled / reference bfloat16 compiled"]["value"]
        alike = rows[shape, "scratchlm bfloat16 compiled / reference bfloat16 compiled, memory kept"]["value"]
        parts += [
            *lines,
            "",
            f"Compiled against compiled: {against:.2f}x, {alike:.2f}x if both keep freed memory. Model "
            f"FLOPs: {reached:,.0f} GFLOP/s, {share:.0%} of the fastest matrix product of the same run. "
            f"{first['rounds']} rounds, {first['date']}.",
            "",
        ]
    loaders = [row for (shape, name), row in rows.items() if shape == "loader" and name.startswith("loader ")]
    slowest = min(loaders, key=lambda row: row["ratio"])
    parts.append(f"The slowest loader reads {slowest['ratio']:,.0f} times as fast as the trainer consumes.")
    return "\n".join(parts)


def main() -> None:
    """Put the tables into the README."""
    readme_tables.put(BEGIN, END, tables())


if __name__ == "__main__":
    main()
