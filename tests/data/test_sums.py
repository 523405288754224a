"""Checksums in leaves: whoever computes them, the fingerprint is the same, and every byte counts."""

import hashlib

import pytest

from scratchlm.data import sums, tasks
from scratchlm.data.files import FilesCorpus
from scratchlm.data.prepare import prepare
from scratchlm.data.sums import Leaf, content_of, fingerprint_of, hash_of, leaf_sum
from scratchlm.data.tasks import merge_tasks, prepare_task


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "LEAF_BYTES", 1_000)
    monkeypatch.setattr(tasks, "BLOCK_CHARACTERS", 1_500)
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} a story{'<|endoftext|>' * (n % 7 == 0)}" for n in range(900)))
    return path


@pytest.fixture
def computed(monkeypatch):
    """Every leaf that is read, in order."""
    found = []
    for module in ("prepare", "tasks", "sums"):
        monkeypatch.setattr(
            f"scratchlm.data.{module}.leaf_sum", lambda leaf: found.append(leaf.number) or leaf_sum(leaf)
        )
    return found


def test_a_form_has_every_file_once_and_a_sum_for_all_of_its_bytes(text, tmp_path):
    small = tmp_path / "small.txt"
    small.write_text("small", encoding="utf-8")
    form, leaves = content_of(["files", [0.5], [[small, text], [small]]])
    assert form[:2] == ["files", [0.5]]
    assert form[2] == [[{"leaves": [0, 1]}, {"leaves": [1, len(leaves)]}], [{"leaves": [0, 1]}]]
    data = text.read_bytes()
    of_leaves = [hashlib.sha256(data[n : n + 1_000]).hexdigest() for n in range(0, len(data), 1_000)]
    assert [leaf_sum(leaf) for leaf in leaves[1:]] == of_leaves
    own, whole = hashlib.sha256(b"small").hexdigest(), hashlib.sha256("\n".join(of_leaves).encode())
    expected = hash_of("files", [0.5], [[own, whole.hexdigest()], [own]])
    assert fingerprint_of(form, [leaf_sum(leaf) for leaf in leaves]) == expected


def test_an_empty_file_has_one_leaf(tmp_path):
    (tmp_path / "empty").touch()
    assert content_of([tmp_path / "empty"]).leaves == [Leaf(tmp_path / "empty", 0)]


def test_one_byte_changes_the_fingerprint(text):
    before = FilesCorpus(paths=(str(text),)).fingerprint()
    data = bytearray(text.read_bytes())
    data[5_500] ^= 1
    text.write_bytes(data)
    assert FilesCorpus(paths=(str(text),)).fingerprint() != before


def test_preparing_reads_every_leaf_once(text, byte_tokenizer, tmp_path, computed):
    corpus = FilesCorpus(paths=(str(text),))
    prepare(corpus, byte_tokenizer, tmp_path / "out", split="train", workers=2, chunk_size=3_000)
    num_leaves = len(corpus.content().leaves)
    assert num_leaves > 10
    assert sorted(computed) == list(range(num_leaves))
    computed.clear()
    fingerprint = corpus.fingerprint()
    assert computed == []
    assert fingerprint == FilesCorpus(paths=(str(text),)).fingerprint()


def test_tasks_share_the_leaves_and_agree_with_one_call(text, byte_tokenizer, tmp_path, computed):
    corpus = FilesCorpus(paths=(str(text),))
    folder, num_leaves = tmp_path / "out", len(corpus.content().leaves)
    for task in range(3):
        prepare_task(
            FilesCorpus(paths=(str(text),)), byte_tokenizer, folder, split="train", task=task, num_tasks=3
        )
        assert len(computed) == pytest.approx(num_leaves / 3, abs=1)
        assert {number % 3 for number in computed} == {task}
        computed.clear()
    merge_tasks(folder)
    prepare(corpus, byte_tokenizer, tmp_path / "whole", split="train")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_a_task_that_read_another_text_of_the_same_size_is_refused(text, byte_tokenizer, tmp_path):
    folder = tmp_path / "out"

    def run(task):
        prepare_task(
            FilesCorpus(paths=(str(text),)), byte_tokenizer, folder, split="train", task=task, num_tasks=2
        )

    run(0)
    text.write_text(text.read_text(encoding="utf-8").replace("<|endoftext|>", "<|endofTEXT|>", 3))
    with pytest.raises(ValueError, match=r"0-of-2\.json: of another corpus, split or tokenizer"):
        run(0)
    run(1)
    with pytest.raises(ValueError, match="task 1 is of another corpus, split or tokenizer than task 0"):
        merge_tasks(folder)
