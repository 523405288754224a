"""Our tokenizer against every installed peer: training, encoding, decoding; seconds, memory, ratios.

    python benchmarks/bench_tokenizer.py                 all of it (about 25 minutes on two cores)
    python benchmarks/bench_tokenizer.py training        or: encoding, decoding, scaling

Each measurement is a process of its own (`tokenizer_worker`); the tools take turns, so that each round gives
one ratio to ours, and medians of rounds are reported. Encoders' ids are compared: a tool that gives other
ids than we do says so in its row. Rows go to results/tokenizer_<cpu>_<yyyy-mm>.jsonl; `tokenizer_table.py`
makes the README's table from them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import tokenizer_tools
from rich.console import Console
from rich.table import Table
from tokenizer_corpora import DATA, corpus

HERE = Path(__file__).parent
FOLDER = Path(tempfile.gettempdir()) / "scratchlm-bench"
OURS = "scratchlm"
ROUNDS = 5
SLOW = {"rustbpe": 2, "tiktoken": 2, "tokenizers": 1, "bpeasy": 1, "sentencepiece": 1}
"""Tools that take long get fewer rounds, and one repeated call in each."""
TIMEOUT_SECONDS = 900

Row = dict[str, Any]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job in a process of its own."""
    command = [sys.executable, str(HERE / "tokenizer_worker.py"), json.dumps(job, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(tools: Sequence[str], job: dict[str, Any], *, rounds: int = ROUNDS) -> list[Row]:
    """Run the same job with each tool, in turns; a row for each tool and each of: first call, repeated."""
    seconds: dict[str, dict[str, list[float]]] = {tool: {"first": [], "repeated": []} for tool in tools}
    memory: dict[str, float] = {}
    checks: dict[str, str] = {}
    for number in range(rounds):
        for tool in tools:
            if number < SLOW.get(tool, rounds):
                repeats = min(1, job["repeats"]) if tool in SLOW else job["repeats"]
                found = run(job | {"tool": tool, "repeats": repeats})
                seconds[tool]["first"].append(found["first"])
                if found["repeated"]:
                    seconds[tool]["repeated"].append(min(found["repeated"]))
                memory[tool], checks[tool] = found["peak_megabytes"], found["check"]
    size = Path(job["path"]).stat().st_size / 1e6
    rows = []
    for call in ("first", "repeated"):
        ours = seconds[OURS][call]
        for tool in tools:
            theirs = seconds[tool][call]
            if theirs:
                rows.append(
                    {
                        "tool": tool,
                        "call": call,
                        "seconds": statistics.median(theirs),
                        "megabytes_per_second": size / statistics.median(theirs),
                        "ratio": statistics.median(a / b for a, b in zip(theirs, ours, strict=False)),
                        "rounds": len(theirs),
                        "peak_megabytes": memory[tool],
                        "same_result": checks[tool] == checks[OURS],
                    }
                )
    return rows


def training() -> Iterator[Row]:
    """Train 10k and 32k entries on code and books."""
    tools = tokenizer_tools.installed(list(tokenizer_tools.TRAINERS))
    for name in ("code", "books"):
        path = corpus(name, FOLDER)
        for vocab_size in (10_000, 32_000):
            if path is not None:
                chosen = [
                    tool
                    for tool in tools
                    if tool != "sentencepiece" or (name, vocab_size) == ("books", 10_000)
                ]
                job = {"task": "train", "path": path, "vocab_size": vocab_size, "threads": 2, "repeats": 3}
                for row in compare(chosen, job):
                    yield {"what": f"train {name} {vocab_size // 1000}k", "threads": 2} | row
    small = DATA / "tokenizer/cs336_fixtures/corpus.en"
    if small.exists():
        job = {"task": "train", "path": small, "vocab_size": 500, "threads": 2, "repeats": 3}
        for row in compare([tool for tool in tools if tool != "sentencepiece"], job):
            yield {"what": "train 130 kB 500", "threads": 2} | row


def encoding() -> Iterator[Row]:
    """Encode whole files with GPT-2's vocabulary: text never seen before, then the same again."""
    tools = tokenizer_tools.installed(list(tokenizer_tools.ENCODERS))
    ranks = vocabulary()
    warm_up = corpus("stories", FOLDER, megabytes=1)
    for name in ("code", "books", "cyrillic", "cjk"):
        path = corpus(name, FOLDER)
        for threads in (1, 2):
            if path is not None:
                job = {"task": "encode", "path": path, "ranks": ranks, "warm_up": warm_up}
                for row in compare(tools, job | {"threads": threads, "repeats": 2}):
                    yield {"what": f"encode {name}", "threads": threads} | row


def decoding() -> Iterator[Row]:
    """Decode the ids of the books, given as a list and as an array."""
    import numpy as np

    tools = tokenizer_tools.installed(list(tokenizer_tools.DECODERS))
    ranks, path = vocabulary(), corpus("books", FOLDER, megabytes=15) or corpus("code", FOLDER, megabytes=15)
    ids = FOLDER / "ids.npy"
    np.save(ids, tokenizer_tools.ENCODERS[OURS](ranks, 1)(path))
    for form in ("list", "numpy"):
        chosen = tools if form == "list" else [OURS, *(tool for tool in tools if tool == "gigatoken")]
        for row in compare(
            chosen, {"task": "decode", "path": ids, "ranks": ranks, "form": form, "repeats": 3}
        ):
            row["megabytes_per_second"] = path.stat().st_size / 1e6 / row["seconds"]
            yield {"what": f"decode {form}", "threads": 1} | row


def scaling() -> Iterator[Row]:
    """Train 32k entries on 10 to 1,000 MB of text without repeats: seconds and memory of each phase."""
    for megabytes in (10, 60, 300, 1000):
        path = corpus("mixed", FOLDER, megabytes=megabytes)
        job = {"path": path, "vocab_size": 32_000, "threads": 2, "repeats": 0}
        row = {"what": f"scaling {megabytes} MB", "threads": 2, "megabytes": path.stat().st_size / 1e6}
        found = run(job | {"task": "profile", "tool": OURS})
        yield row | {"tool": OURS, "peak_megabytes": found["peak_megabytes"]} | found["profile"]
        for tool in tokenizer_tools.installed(["gigatoken"]):
            found = run(job | {"task": "train", "tool": tool})
            yield row | {"tool": tool, "peak_megabytes": found["peak_megabytes"], "seconds": found["first"]}


def vocabulary() -> Path:
    """GPT-2's ranks beside a tokenizer.json of the same; without the data folder, our own of 32k entries."""
    from scratchlm.tokenizer.bpe_train import train_bpe_on_file
    from scratchlm.tokenizer.formats import load_tiktoken, save_huggingface, save_tiktoken

    ranks = FOLDER / "ranks.tiktoken"
    given = DATA / "tokenizer/vocab/r50k_base.tiktoken"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if given.exists():
        ranks.write_bytes(given.read_bytes())
    else:
        path = corpus("code", FOLDER)
        save_tiktoken(train_bpe_on_file(path, vocab_size=32_000, special_tokens=(), tie="raw"), ranks)
    save_huggingface(load_tiktoken(ranks, pattern="gpt2"), FOLDER)
    return ranks


def show(rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title="tokenizers (ratio: times our seconds; median of rounds)")
    columns = ("what", "threads", "call", "tool", "seconds", "MB/s", "ratio", "peak MB", "same")
    for column in columns:
        table.add_column(column, justify="left" if column in ("what", "call", "tool") else "right")
    for row in rows:
        if "call" in row:
            table.add_row(
                row["what"],
                str(row["threads"]),
                row["call"],
                row["tool"],
                f"{row['seconds']:.3f}",
                f"{row['megabytes_per_second']:,.0f}",
                f"{row['ratio']:.2f}",
                f"{row['peak_megabytes']:,.0f}",
                "yes" if row["same_result"] else "no",
            )
    Console().print(table)


def main(names: Sequence[str]) -> None:
    """Run the parts that are asked for, all by default."""
    parts = {"training": training, "encoding": encoding, "decoding": decoding, "scaling": scaling}
    rows: list[Row] = []
    began = time.perf_counter()
    for name in names or parts:
        found = []
        for row in parts[name]():
            found.append(row)
            print(f"{time.perf_counter() - began:6.0f} s  {row}", flush=True)
        print(harness.save("tokenizer", found, versions=tokenizer_tools.versions()))
        rows += found
    show(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
