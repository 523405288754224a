"""Ray: the same bytes from a local cluster of two workers, one of them killed in the middle."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from scratchlm.data import ray_engine
from scratchlm.data.corpora import StoriesCorpus
from scratchlm.data.prepare import Work, prepare
from scratchlm.data.ray_engine import encode_on_ray
from scratchlm.tokenizer.chars import CharTokenizer

STORIES = 20_000


def encoding(pid):
    """Workers of Ray below a process that encode a portion right now."""
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        try:
            found += [each] if " ".join(each.cmdline()).startswith("ray::_encode") else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.distributed
def test_a_worker_of_ray_that_is_killed_costs_nothing_but_time(tmp_path):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    corpus = StoriesCorpus(num_train=STORIES)
    tokenizer = CharTokenizer(
        "".join(sorted({letter for chunk in corpus.chunks("valid") for letter in chunk.text}))
    )
    tokenizer.save(tmp_path / "tokenizer.json")
    prepare(corpus, tokenizer, tmp_path / "threads", split="train")
    command = [sys.executable, "-m", "scratchlm", "data", "prepare", "stories", f"num_train={STORIES}"]
    command += ["-t", str(tmp_path / "tokenizer.json"), "-o", str(tmp_path / "ray"), "--engine", "ray"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline, victims = time.monotonic() + 180, []
        while not victims and time.monotonic() < deadline and child.poll() is None:
            victims = encoding(child.pid)
            time.sleep(0.01)
        assert victims, child.communicate()
        victims[0].send_signal(signal.SIGKILL)
        out, errors = child.communicate(timeout=180)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, errors
    assert f"{STORIES:,} documents" in out
    for path in (tmp_path / "threads").iterdir():
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    work = Work(StoriesCorpus(), "train", CharTokenizer("a"), 0, workers=1, chunk_size=1, queue_size=1)
    with pytest.raises(
        ValueError, match=r"--address 127\.0\.0\.1:1: no Ray answers there .*ray start --head"
    ):
        next(encode_on_ray(work, address="127.0.0.1:1"))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs the 'ray' extra: pip install 'scratchlm\[ray\]'"):
        ray_engine._import_ray()
