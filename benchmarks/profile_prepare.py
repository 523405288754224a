"""Where the time of `scratchlm data prepare` goes: CPU and wall seconds of each stage, one after the other.

    python benchmarks/profile_prepare.py [--text FILE] [--megabytes 140] [--save]

One process goes through the stages of a preparation one by one, the way a single worker does, so that each
can be read alone: nothing overlaps here. CPU seconds are user and system time of this process, which a busy
machine disturbs less than the clock on the wall. Imports come first and count as a stage, as they do for a
user; without --text the embedded stories are written to a file and repeated.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Stages = list[dict[str, Any]]


def measured(stages: Stages, name: str, work: Callable[[], Any], num_bytes: int = 0) -> Any:
    """Do it, note what it took, return what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    stages.append({"what": "prepare stage", "stage": name, **seconds, "bytes": num_bytes})
    return result


def import_all() -> None:
    """What the command imports."""
    import rich.progress  # noqa: F401

    import scratchlm.cli.data
    import scratchlm.data.files
    import scratchlm.data.prepare
    import scratchlm.data.tasks  # noqa: F401


def go_through(text: Path, tokenizer_path: Path, folder: Path) -> Stages:
    """All stages of preparing one file of plain text."""
    stages: Stages = [
        {"what": "prepare stage", "stage": "Python", "cpu_seconds": time.process_time(), "wall_seconds": 0.0}
    ]
    measured(stages, "imports", import_all)
    from scratchlm.cli.sources import open_corpus, open_tokenizer
    from scratchlm.data.prepare import PORTION_CHARACTERS, encode_portion
    from scratchlm.data.shard_writer import ShardWriter
    from scratchlm.data.shards import hash_file

    tokenizer = measured(stages, "tokenizer, compiled code", lambda: open_tokenizer(tokenizer_path))
    corpus, size = open_corpus([str(text)]), text.stat().st_size
    measured(stages, "first portion", lambda: _first(corpus, tokenizer))
    portions = measured(
        stages, "find portions", lambda: list(corpus.portions("train", PORTION_CHARACTERS)), size
    )
    measured(stages, "read, find documents", lambda: [portion.load() and None for portion in portions], size)
    encoded = measured(
        stages,
        "the same and encode",
        lambda: [encode_portion(portion, 0, tokenizer) for portion in portions],
        size,
    )
    measured(stages, "checksums of the text", corpus.fingerprint, size)
    num_bytes = sum(done.ids.nbytes for done in encoded)
    settings = {"vocab_size": tokenizer.vocab_size, "tokenizer_fingerprint": tokenizer.fingerprint}
    with ShardWriter(folder / "out", **settings) as writer:
        write = functools.partial(_write, writer, encoded)
        measured(stages, "write ids, their checksums", write, num_bytes)
        measured(stages, "last shard, to the disk", writer.close, num_bytes)
    for path in sorted((folder / "out").glob("tokens-*")):
        measured(stages, f"(checksum of {path.name} by itself)", functools.partial(hash_file, path))
    return stages


def _first(corpus: Any, tokenizer: Any) -> None:
    """Load all compiled code that is not there yet."""
    from scratchlm.data.prepare import encode_portion

    encode_portion(next(iter(corpus.portions("train", 2**16))), 0, tokenizer)


def _write(writer: Any, encoded: list[Any]) -> None:
    for done in encoded:
        writer.add_documents(done.ids, done.ends, num_bytes=done.num_bytes, num_chunks=done.num_chunks)


def show(stages: Stages) -> None:
    """Print a Markdown table."""
    print("| stage | CPU seconds | wall seconds | MB/s of CPU |")
    print("| --- | ---: | ---: | ---: |")
    for row in stages:
        rate = f"{row['bytes'] / 1e6 / row['cpu_seconds']:,.0f}" if row.get("bytes") else ""
        print(f"| {row['stage']} | {row['cpu_seconds']:.2f} | {row['wall_seconds']:.2f} | {rate} |")


def main() -> None:
    """Go through the stages in a fresh process and show them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="A text file; stories without it.")
    parser.add_argument("--megabytes", type=int, default=140)
    parser.add_argument("--save", action="store_true", help="Append to benchmarks/results.")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(go_through(given.text, *given.child)))
        return
    import bench_prepare
    import harness

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = given.text or bench_prepare.text_of(folder, given.megabytes)
        tokenizer = bench_prepare.tokenizer_of(text, folder)
        command = [sys.executable, __file__, "--text", str(text), "--child", str(tokenizer), name]
        stages = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    show(stages)
    if given.save:
        harness.save("prepare_stages", stages)


if __name__ == "__main__":
    main()
