"""Corpora encoded in tasks: the merged shards are the bytes of one call; lost tasks are named."""

import json
import signal
import subprocess
import sys
import time

import pytest

from scratchlm.data import tasks
from scratchlm.data.prepare import prepare
from scratchlm.data.tasks import merge_tasks, prepare_task, tasks_left
from scratchlm.lock import run_lock
from scratchlm.tokenizer.chars import CharTokenizer

DOCUMENTS = ["one two", "x", ["a long ", "document ", "in pieces"], "\u00e9\u00e8\u4e2d"]
DOCUMENTS += [f"story {n} " * n for n in range(1, 60)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(tasks, "BLOCK_CHARACTERS", 500)
    monkeypatch.setattr(tasks, "COPIED_IDS", 300)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_all(corpus, tokenizer, folder, num_tasks, only=None, **settings):
    for task in range(num_tasks) if only is None else only:
        prepare_task(corpus, tokenizer, folder, split="train", task=task, num_tasks=num_tasks, **settings)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 40])
@pytest.mark.parametrize(("workers", "queue_size"), [(1, 1), (3, 2)])
def test_merged_tasks_are_the_bytes_of_one_call(
    tmp_path, byte_tokenizer, make_corpus, num_tasks, workers, queue_size
):
    corpus = make_corpus(DOCUMENTS)
    whole = prepare(corpus, byte_tokenizer, tmp_path / "whole", split="train", tokens_per_shard=1000)
    order = list(range(num_tasks))[::-1]
    folder = tmp_path / "merged"
    run_all(corpus, byte_tokenizer, folder, num_tasks, order, workers=workers, queue_size=queue_size)
    stats = merge_tasks(folder, tokens_per_shard=1000)
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert stats._replace(seconds=0) == whole._replace(seconds=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "whole"]
    assert merge_tasks(folder)._replace(seconds=0) == stats._replace(seconds=0), "merging again does nothing"


def test_blocks_are_dealt_out_in_turn(tmp_path, byte_tokenizer, make_corpus):
    run_all(make_corpus(DOCUMENTS), byte_tokenizer, tmp_path / "out", 3)
    marks = [json.loads((tmp_path / "out.tasks" / f"{task}-of-3.json").read_text()) for task in range(3)]
    assert [[block["number"] % 3 for block in mark["blocks"]] for mark in marks] == [
        [task] * len(mark["blocks"]) for task, mark in enumerate(marks)
    ]
    assert min(len(mark["blocks"]) for mark in marks) >= 5


def test_a_missing_task_is_named_and_only_it_runs_again(tmp_path, byte_tokenizer, make_corpus):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    with pytest.raises(ValueError, match="no task is done; run scratchlm data prepare"):
        merge_tasks(folder)
    run_all(corpus, byte_tokenizer, folder, 4, [0, 2, 3])
    assert tasks_left(folder, 4) == [1]
    with pytest.raises(ValueError, match=r"task 1 of 4 is not done; run .* --task 1 --num-tasks 4"):
        merge_tasks(folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.tasks").rglob("*.*[!k]")}
    run_all(corpus, byte_tokenizer, folder, 4)
    assert all(path.stat().st_mtime_ns == seen for path, seen in before.items() if path.is_file())
    merge_tasks(folder)


def test_damaged_and_foreign_tasks_are_refused_by_name(tmp_path, byte_tokenizer, make_corpus):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    run_all(corpus, byte_tokenizer, folder, 2)
    shard = tmp_path / "out.tasks" / "1-of-2" / "tokens-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"1-of-2/tokens-00000\.npy: its sha256 is not"):
        merge_tasks(folder)
    assert not folder.exists()
    (tmp_path / "out.tasks" / "1-of-2.json").write_text("{")
    with pytest.raises(ValueError, match=r"1-of-2\.json: damaged .* run its task again"):
        merge_tasks(folder)
    (tmp_path / "out.tasks" / "1-of-2.json").unlink()
    run_all(make_corpus(DOCUMENTS[1:]), byte_tokenizer, folder, 2, [1])
    with pytest.raises(ValueError, match="task 1 is of another corpus, split or tokenizer than task 0"):
        merge_tasks(folder)
    with pytest.raises(ValueError, match=r"0-of-2\.json: of another corpus, split or tokenizer"):
        run_all(make_corpus(DOCUMENTS[1:]), byte_tokenizer, folder, 2, [0])
    run_all(corpus, byte_tokenizer, folder, 3, [0])
    with pytest.raises(ValueError, match="tasks of 2 and of 3; remove those of one number"):
        merge_tasks(folder)


def test_a_merge_that_was_killed_while_tidying_up_is_finished_by_the_next(
    tmp_path, byte_tokenizer, make_corpus, monkeypatch
):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    run_all(corpus, byte_tokenizer, folder, 2)
    with monkeypatch.context() as patched:
        patched.setattr(tasks.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_tasks(folder)
    assert (tmp_path / "out.tasks").is_dir()
    before = files_of(folder)
    merge_tasks(folder)
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_task_that_comes_after_the_merge_does_nothing(tmp_path, byte_tokenizer, make_corpus):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    run_all(corpus, byte_tokenizer, folder, 2)
    merge_tasks(folder)
    again = prepare_task(corpus, byte_tokenizer, folder, split="train", task=1, num_tasks=2)
    assert again is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="holds shards with another corpus_fingerprint"):
        run_all(make_corpus(DOCUMENTS[1:]), byte_tokenizer, folder, 2, [1])


def test_one_process_works_on_a_task_at_a_time(tmp_path, byte_tokenizer, make_corpus):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    with run_lock(tmp_path / "out.tasks" / "0-of-2.lock"):
        with pytest.raises(ValueError, match=r"0-of-2\.lock: process .* has been encoding here since"):
            run_all(corpus, byte_tokenizer, folder, 2, [0])
        run_all(corpus, byte_tokenizer, folder, 2, [1])


def test_tasks_that_cut_the_corpus_otherwise_are_not_merged(
    tmp_path, byte_tokenizer, make_corpus, monkeypatch
):
    corpus, folder = make_corpus(DOCUMENTS), tmp_path / "out"
    run_all(corpus, byte_tokenizer, folder, 2, [0])
    monkeypatch.setattr(tasks, "BLOCK_CHARACTERS", 900)
    run_all(corpus, byte_tokenizer, folder, 2, [1])
    with pytest.raises(ValueError, match="task 1 is of another corpus, split or tokenizer than task 0, or"):
        merge_tasks(folder)


@pytest.mark.parametrize(("task", "num_tasks"), [(-1, 2), (2, 2), (0, 0)])
def test_tasks_that_do_not_exist_are_refused(tmp_path, byte_tokenizer, make_corpus, task, num_tasks):
    with pytest.raises(ValueError, match=f"task={task}: must be 0 to"):
        prepare_task(
            make_corpus(["a"]),
            byte_tokenizer,
            tmp_path / "out",
            split="train",
            task=task,
            num_tasks=num_tasks,
        )


def test_a_killed_task_leaves_no_mark_and_runs_again(tmp_path):
    text, folder = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("".join(f"{n} A story. " for n in range(900_000)), encoding="utf-8")  # four blocks
    CharTokenizer(" .0123456789Aorsty").save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "scratchlm", "data"]
    words = [str(text), "-t", str(tmp_path / "tokenizer.json"), "-o"]
    part = [*command, "prepare", *words, str(folder), "--num-tasks", "2", "--task"]
    child = subprocess.Popen([*part, "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(tmp_path.glob("out.tasks/0-of-2.partial/*")):
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert tasks_left(folder, 2) == [0, 1]
    for task in ("0", "1"):
        done = subprocess.run([*part, task], capture_output=True, text=True, check=True)
    assert f"all are done: scratchlm data merge {folder}" in " ".join(done.stdout.split())
    merged = subprocess.run([*command, "merge", str(folder)], capture_output=True, text=True, check=True)
    assert "tokens" in merged.stdout
    subprocess.run([*command, "prepare", *words, str(tmp_path / "whole")], capture_output=True, check=True)
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_a_task_without_its_number_of_tasks_is_refused(tmp_path):
    command = [sys.executable, "-m", "scratchlm", "data", "prepare", "stories", "-t", str(tmp_path), "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "x"), "--task", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--task and --num-tasks go together" in done.stderr
