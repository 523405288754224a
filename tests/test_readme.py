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


BEFORE = {"From one process to many": ["scratchlm tokenizer train notes.txt --vocab-size 300 -o notes.json"]}
"""What a section reads that another one has made."""

SLOW = {"From one process to many"}
"""Sections of more than half a minute; what they show is tested on its own in tests/distributed."""


def sections() -> dict[str, list[list[str]]]:
    """The commands of each section that has some that shall work as they stand."""
    found = {}
    for part in README.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        found[title] = [words for line in lines if (words := shlex.split(line, comments=True))]
    return {title: lines for title, lines in found.items() if lines}


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = "It was a bright cold day in April, and the clocks were striking thirteen. " * 300
    (tmp_path / "my-texts").mkdir()
    (tmp_path / "my-texts" / "one.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=[pytest.mark.slow] * (title in SLOW)) for title in sections()]
)
def test_every_command_of_a_section_works(folder, title):
    for program, *words in [*map(shlex.split, BEFORE.get(title, [])), *sections()[title]]:
        run(program, words, folder)


def test_the_sections_show_what_the_package_is_for():
    words = {line[1] for lines in sections().values() for line in lines if line[0] == "scratchlm"}
    assert {"run", "generate", "evaluate", "plan", "train", "help", "doctor", "bench", "launch"} <= words


def run(program: str, words: list[str], folder: Path) -> None:
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


def test_every_file_that_the_readme_names_is_there():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
    rooms = re.findall(r"^\| `([a-z0-9_./]+)`", text, re.MULTILINE)
    assert len(rooms) >= 10
    assert [room for room in rooms if not (README.parent / "src" / "scratchlm" / room).exists()] == []
