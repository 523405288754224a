"""The README's commands, one after the other as a reader types them, at tiny size."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

TINY = [
    "train.steps=8",
    "train.batch_tokens=256",
    "train.eval_every=4",
    "train.save_every=2",
    "train.sample_every=4",
    "train.first_sample=2",
    "train.compile=false",
    "tokenizer.vocab_size=320",
    "model.context_length=64",
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "sampling.max_new_tokens=16",
]
TINY_STORIES = ["corpus.num_train=100", "corpus.num_valid=10"]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def scratchlm(words: list[str], folder: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a command; `before` stands in front of `-m scratchlm`, as torchrun's own words do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, *before, "-m", "scratchlm", *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def tiny(words: list[str]) -> list[str]:
    """The same command at tiny size: settings over whatever trains."""
    stories = [*TINY, *TINY_STORIES]
    if "--gpus" in words:
        return words  # formulas: any size is tiny
    sizes = {"demo": stories, "train": stories, "plan": stories, "run": TINY}.get(words[0], [])
    typed = [word for word in words if "=" in word]
    kept = [size for size in sizes if size.split("=")[0] not in {word.split("=")[0] for word in typed}]
    short = ["--steps", "1", "--warmup", "1", "--context", "64"] if words[0] == "bench" else []
    return [*words, *kept, *short]


def interrupt(words: list[str], folder: Path) -> None:
    """Start a run and stop it with SIGTERM as soon as it trains: what `--resume` is for."""
    long = [word for word in tiny(words) if not word.startswith("train.steps=")]
    process = scratchlm([*long, "train.steps=100000"], folder)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_mtime > time.time() - 60 for path in folder.glob("runs/demo-*/metrics.jsonl")):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert "--resume" in output, output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    text = "It was a bright cold day in April, and the clocks were striking thirteen. " * 300
    (path / "my-texts").mkdir()
    (path / "my-texts" / "one.txt").write_text(text, encoding="utf-8")
    (path / "notes.txt").write_text(text, encoding="utf-8")
    return path


def test_every_command_of_the_readme_works(folder):
    done = []
    for program, *words in commands():
        if program == "make":
            continue  # `make test` is what runs this
        before: tuple[str, ...] = ()
        if program == "torchrun":
            place = words.index("scratchlm")
            before, words = ("-m", "torch.distributed.run", *words[: place - 1]), words[place + 1 :]
        else:
            assert program == "scratchlm", program
        words, written = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
        if "--resume" in words:
            plain = [word for word in words if word != "--resume"]
            interrupt(plain, folder)
            words = [*words, "train.steps=30"]
        process = scratchlm(tiny(words) if "--resume" not in words else words, folder, before)
        output, _ = process.communicate(timeout=240)
        if written is not None:
            assert output.startswith("#!/bin/bash\n"), written
        assert process.returncode == 0, f"scratchlm {shlex.join(words)}\n{output}"
        done.append(words[0])
    assert {"run", "generate", "evaluate", "plan", "train", "help", "doctor", "bench", "launch"} <= set(done)


def test_every_file_that_the_readme_names_is_there():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
    rooms = re.findall(r"^\| `([a-z0-9_./]+)`", text, re.MULTILINE)
    assert len(rooms) >= 10
    assert [room for room in rooms if not (README.parent / "src" / "scratchlm" / room).exists()] == []
