"""Engines: the same bytes from threads and processes, after a death, an interruption, a change of engine."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from scratchlm.data.corpora import Chunk, Portion
from scratchlm.data.files import FilesCorpus
from scratchlm.data.prepare import encode_in_threads, encode_portion, prepare
from scratchlm.data.processes import MAX_LOST, encode_in_processes
from scratchlm.data.sums import Content
from scratchlm.tokenizer.chars import CharTokenizer

ENGINES = {"threads": encode_in_threads, "processes": encode_in_processes}
ALPHABET = " .0123456789Aorsty"


@pytest.fixture
def corpus(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(f"{n} A story. " * (n % 9) for n in range(2_000)), encoding="utf-8")
    return FilesCorpus(paths=(str(text),))


@pytest.fixture
def tokenizer():
    return CharTokenizer(ALPHABET)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(corpus, tokenizer, folder, engine="threads", **settings):
    settings = {"split": "train", "tokens_per_shard": 20_000, "chunk_size": 2_000} | settings
    prepare(corpus, tokenizer, folder, engine=ENGINES[engine], **settings)
    return files_of(folder)


@pytest.mark.distributed
def test_processes_make_the_same_bytes_and_a_killed_one_is_replaced(corpus, tokenizer, tmp_path, caplog):
    expected = shards(corpus, tokenizer, tmp_path / "threads")
    killed = []

    def kill_one(done, total, documents, tokens):
        if not killed and documents > 200:
            killed.append(multiprocessing.active_children()[0])
            os.kill(killed[0].pid, signal.SIGKILL)

    folder = tmp_path / "processes"
    assert shards(corpus, tokenizer, folder, "processes", workers=2, progress=kill_one) == expected
    assert killed[0].exitcode == -signal.SIGKILL
    assert caplog.messages == ["a process died (exit code -9) while it encoded; another does its part."]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("first", ["threads", "processes"])
@pytest.mark.parametrize("second", ["threads", "processes"])
def test_another_engine_goes_on_where_one_was_interrupted(
    corpus, tokenizer, tmp_path, monkeypatch, first, second
):
    expected = shards(corpus, tokenizer, tmp_path / "whole")

    def stop(done, total, documents, tokens):
        if tokens > 90_000:
            raise KeyboardInterrupt

    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        shards(corpus, tokenizer, folder, first, workers=1, progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("again.partial/tokens-*.npy")}
    assert len(kept) == 4
    works = []
    monkeypatch.setitem(ENGINES, "seen", lambda work: works.append(work) or ENGINES[second](work))
    assert shards(corpus, tokenizer, folder, "seen", workers=1) == expected
    assert works[0].num_chunks_done > 500
    assert all((folder / path.name).stat().st_mtime_ns == seen for path, seen in kept.items())


def test_a_text_that_changes_while_it_is_read_is_an_error(tokenizer):
    portion = Portion(2, lambda: iter([Chunk("A story. ", ends_document=True)]))
    with pytest.raises(ValueError, match=r"has changed while it was read \(1 pieces where 2 were\); run"):
        encode_portion(portion, 0, tokenizer)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _fail():
    raise ValueError("text.txt: byte 7 is not UTF-8")


class _Corpus(FilesCorpus):
    def __init__(self, read):
        super().__init__(paths=("nothing",))
        self.read = read

    def portions(self, split, num_characters):
        yield Portion(1, self.read)

    def content(self):
        return Content([], [])

    def fingerprint(self):
        return "0"

    def num_bytes(self, split):
        return None


@pytest.mark.distributed
def test_errors_of_processes_come_out_here(tokenizer, tmp_path):
    message = f"{MAX_LOST} processes died while they encoded the same part of the text; where memory is short"
    with pytest.raises(ValueError, match=message):
        shards(_Corpus(_die), tokenizer, tmp_path / "dead", "processes")
    with pytest.raises(ValueError, match=r"text\.txt: byte 7 is not UTF-8"):
        shards(_Corpus(_fail), tokenizer, tmp_path / "damaged", "processes")
    assert multiprocessing.active_children() == []


@pytest.mark.distributed
def test_processes_end_with_the_one_that_started_them(tmp_path):
    CharTokenizer("abc").save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "scratchlm", "data", "prepare", "stories", "num_train=10000000"]
    command += ["-t", str(tmp_path / "tokenizer.json"), "-o", str(tmp_path / "out"), "--engine", "processes"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline, children = time.monotonic() + 120, []
        while len(children) < 2 and time.monotonic() < deadline and child.poll() is None:
            found = psutil.Process(child.pid).children(recursive=True)
            children = [each for each in found if "spawn_main" in " ".join(each.cmdline())]
            time.sleep(0.02)
        assert len(children) == 2
    finally:
        child.kill()
        child.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray", "--task", "0", "--num-tasks", "2"], "a task of --num-tasks has threads"),
        (
            ["--task", "0", "--num-tasks", "2", "--chunk-size", "9"],
            "all tasks of --num-tasks cut the text alike",
        ),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: is for --engine ray"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(tmp_path, capsys, words, message):
    from scratchlm.cli import main

    assert main(["data", "prepare", "stories", "-t", str(tmp_path), "-o", str(tmp_path / "x"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
