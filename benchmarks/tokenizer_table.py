"""results/tokenizer_*.jsonl -> the tables in README.md, between their two markers.

Of several rows for the same measurement the last one counts. Run it after `bench_tokenizer.py`.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import readme_tables

RESULTS = Path(__file__).parent / "results"
BEGIN, END = (
    "<!-- tokenizer tables: made by benchmarks/tokenizer_table.py -->",
    "<!-- end of tokenizer tables -->",
)

TEXTS = {
    "code": "Python source",
    "books": "English books",
    "cyrillic": "Russian stories",
    "cjk": "Japanese and Chinese",
}
PEERS = {"gigatoken", "rustbpe", "bpeasy", "tiktoken", "tokenizers"}
TRAINERS = ["scratchlm", "gigatoken", "rustbpe", "bpeasy", "tokenizers"]
ENCODERS = ["scratchlm", "gigatoken", "tiktoken", "tokenizers"]

Row = dict[str, Any]


def rows() -> list[Row]:
    """The last row for each measurement of the newest results."""
    files = sorted(RESULTS.glob("tokenizer_*.jsonl"), key=lambda path: path.name.rpartition("_")[2])
    found: dict[tuple[object, ...], Row] = {}
    for line in files[-1].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["what"], row.get("threads"), row.get("call"), row["tool"]] = row
    return list(found.values())


def tables() -> str:
    """The tables as Markdown."""
    found = rows()
    environment = found[0]["environment"]
    versions = found[0]["setup"]["versions"]
    peers = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name in PEERS)
    head = (
        f"{environment['processor']}, {environment['cores']} cores, {found[0]['date']}; {peers}. Medians; in "
        "brackets how many times our seconds a peer takes (the median of the rounds' ratios). Every "
        "measurement is a process of its own; a first call has its compiled code on disk and its libraries "
        "imported. Training: 60 MB in GPT-2's pieces; encoding: GPT-2's vocabulary, and all ids are equal."
    )
    head = textwrap.fill(head, 120)
    return "\n\n".join([head, _training(found), _scaling(found), _encoding(found)])


def _training(found: list[Row]) -> str:
    lines = [_line(["training, 2 threads", *TRAINERS]), _line(["---", *["---:"] * len(TRAINERS)])]
    for name in ("code", "books"):
        for size in ("10k", "32k"):
            for call, words in (("repeated", ""), ("first", ", first call")):
                cells = [_seconds(found, f"train {name} {size}", 2, call, tool) for tool in TRAINERS]
                lines.append(_line([f"{TEXTS[name]}, {size}{words}", *cells]))
    cells = [_seconds(found, "train 130 kB 500", 2, "first", tool) for tool in TRAINERS]
    lines.append(_line(["130 kB, 500 entries, first call", *cells]))
    return "\n".join(lines)


def _scaling(found: list[Row]) -> str:
    columns = [
        "32k entries",
        "count",
        "combine",
        "merge",
        "vocabulary",
        "in all",
        "memory",
        "gigatoken",
        "its memory",
    ]
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    for megabytes in (10, 60, 300, 1000):
        row = _find(found, f"scaling {megabytes} MB", 2, None, "scratchlm")
        peer = _find(found, f"scaling {megabytes} MB", 2, None, "gigatoken")
        if row is None:
            continue
        seconds = [phase["seconds"] for phase in row["phases"]]
        cells = [f"{value:.2f} s" for value in [*seconds, sum(seconds)]] + [
            f"{row['peak_megabytes']:,.0f} MB"
        ]
        cells += (
            ["", ""] if peer is None else [f"{peer['seconds']:.2f} s", f"{peer['peak_megabytes']:,.0f} MB"]
        )
        lines.append(_line([f"{megabytes:,} MB", *cells]))
    return "\n".join(lines)


def _encoding(found: list[Row]) -> str:
    lines = [_line(["encoding, MB/s", *ENCODERS]), _line(["---", *["---:"] * len(ENCODERS)])]
    for name, words in TEXTS.items():
        for threads in (1, 2):
            for call, state in (("first", "never seen"), ("repeated", "again")):
                cells = [_speed(found, f"encode {name}", threads, call, tool) for tool in ENCODERS]
                lines.append(_line([f"{words}, {threads} thread{'s' * (threads - 1)}, {state}", *cells]))
    for form, words in (("list", "decode a list of ids"), ("numpy", "decode an array of ids")):
        cells = [_speed(found, f"decode {form}", 1, "repeated", tool) for tool in ENCODERS]
        lines.append(_line([words, *cells]))
    return "\n".join(lines)


def _find(found: list[Row], *key: object) -> Row | None:
    for row in found:
        if (row["what"], row.get("threads"), row.get("call"), row["tool"]) == key:
            return row
    return None


def _seconds(found: list[Row], *key: object) -> str:
    row = _find(found, *key)
    if row is None:
        return ""
    text = f"{row['seconds']:.3g} s"
    return f"**{text}**" if row["tool"] == "scratchlm" else f"{text} ({row['ratio']:.1f})"


def _speed(found: list[Row], *key: object) -> str:
    row = _find(found, *key)
    if row is None:
        return ""
    text = f"{row['megabytes_per_second']:,.0f}"
    return f"**{text}**" if row["tool"] == "scratchlm" else f"{text} ({row['ratio']:.1f})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Put the tables into README.md."""
    readme_tables.put(BEGIN, END, tables())


if __name__ == "__main__":
    main()
