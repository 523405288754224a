import json

import numpy as np
import pytest

from scratchlm.data.shard_writer import ShardWriter
from scratchlm.data.shards import TokenDataset, npy_header

DOCUMENTS = [[1, 2, 3], [], list(range(4, 30)), [7], [8, 9]]
FLAT = [token for document in DOCUMENTS for token in [*document, 256]]


@pytest.mark.parametrize("tokens_per_shard", [1, 2, 3, 7, 36, 1_000])
def test_shards_give_back_every_document_and_range_across_their_borders(make_dataset, tokens_per_shard):
    dataset = make_dataset(DOCUMENTS, tokens_per_shard=tokens_per_shard)
    assert [dataset.document(index).tolist() for index in range(len(DOCUMENTS))] == [
        [*document, 256] for document in DOCUMENTS
    ]
    for start in range(len(FLAT)):
        for length in range(len(FLAT) - start + 1):
            assert dataset.read(start, length).tolist() == FLAT[start : start + length]
    assert (dataset.num_tokens, dataset.num_documents, dataset.num_bytes) == (len(FLAT), 5, 32)
    assert dataset.document_starts.tolist() == [0, 4, 5, 32, 34]


def test_files_open_with_plain_numpy(make_dataset):
    dataset = make_dataset(DOCUMENTS, tokens_per_shard=20)
    files = [dataset.folder / shard.tokens for shard in dataset.manifest.shards]
    arrays = [np.load(file, allow_pickle=False) for file in files]
    assert np.concatenate(arrays).tolist() == FLAT
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}


@pytest.mark.parametrize(
    ("count", "dtype"), [(0, np.uint16), (3, np.uint32), (10**12, np.uint16), (5, np.int64)]
)
def test_header_is_what_numpy_reads(tmp_path, count, dtype):
    path = tmp_path / "header.npy"
    path.write_bytes(npy_header(np.dtype(dtype), count))
    with path.open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((count,), False, np.dtype(dtype))
        assert file.tell() == 128


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_the_vocabulary_decides_the_type_of_the_ids(make_dataset, vocab_size, dtype):
    dataset = make_dataset([[0, 100]], vocab_size=vocab_size)
    assert dataset.dtype == dtype
    assert dataset.read(0, 2).dtype == dtype


def test_a_shard_cut_off_is_refused_before_it_is_mapped(make_dataset):
    dataset = make_dataset(DOCUMENTS, tokens_per_shard=20)
    path = dataset.folder / "tokens-00001.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        ValueError, match=r"tokens-00001.npy: 160 bytes long instead of 162: cut off or damaged"
    ):
        TokenDataset.open(dataset.folder)


def test_a_flipped_bit_is_found_by_verify(make_dataset):
    dataset = make_dataset(DOCUMENTS)
    path = dataset.folder / "tokens-00000.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    TokenDataset.open(dataset.folder)
    with pytest.raises(ValueError, match=r"tokens-00000.npy: its sha256 is not the one in manifest.json"):
        TokenDataset.open(dataset.folder, verify=True)


def test_an_untouched_folder_passes_verify(make_dataset):
    dataset = make_dataset(DOCUMENTS, tokens_per_shard=5)
    assert TokenDataset.open(dataset.folder, verify=True).num_tokens == len(FLAT)


def test_shards_of_another_tokenizer_are_refused(make_dataset):
    dataset = make_dataset(DOCUMENTS)
    TokenDataset.open(dataset.folder, tokenizer_fingerprint="f" * 64)
    with pytest.raises(
        ValueError, match="belong to tokenizer ffffffffffff, not to abcabcabcabc; prepare the corpus again"
    ):
        TokenDataset.open(dataset.folder, tokenizer_fingerprint="abc" * 20)


def test_a_wrong_header_is_refused(make_dataset):
    dataset = make_dataset(DOCUMENTS)
    path = dataset.folder / "tokens-00000.npy"
    content = path.read_bytes()
    path.write_bytes(content[:128].replace(b"<u2", b"<i2") + content[128:])
    with pytest.raises(ValueError, match=r"tokens-00000.npy: its header is not that of 37 uint16"):
        TokenDataset.open(dataset.folder)


def test_a_missing_shard_is_named(make_dataset):
    dataset = make_dataset(DOCUMENTS, tokens_per_shard=20)
    (dataset.folder / "starts-00000.npy").unlink()
    with pytest.raises(ValueError, match=r"starts-00000.npy: missing, but manifest.json names it"):
        TokenDataset.open(dataset.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest | {"version": 2}, "version 2"),
        (lambda manifest: manifest | {"dtype": "object"}, "'object'"),
        (lambda manifest: manifest | {"num_tokens": 5}, "do not add up"),
        (lambda manifest: {"a": 1}, "damaged or not a manifest"),
        (
            lambda manifest: (
                manifest | {"shards": [manifest["shards"][0] | {"tokens": "../tokens-00000.npy"}]}
            ),
            "outside its folder",
        ),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(make_dataset, change, message):
    dataset = make_dataset(DOCUMENTS)
    path = dataset.folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        TokenDataset.open(dataset.folder)


def test_a_folder_without_shards_says_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"no token shards here \(manifest.json is missing\); prepare a corpus first"
    ):
        TokenDataset.open(tmp_path / "nothing")


def test_reading_beyond_the_end_is_refused(make_dataset):
    dataset = make_dataset(DOCUMENTS)
    with pytest.raises(ValueError, match="ids 30 to 40 were asked for; there are 37"):
        dataset.read(30, 10)
    with pytest.raises(ValueError, match="no document 5; there are 0 to 4"):
        dataset.document(5)


def test_ids_above_the_vocabulary_are_refused(tmp_path):
    writer = ShardWriter(tmp_path / "new", vocab_size=10, tokenizer_fingerprint="f")
    with writer, pytest.raises(ValueError, match="ids from 3 to 10 do not fit a vocabulary of 10"):
        writer.add(np.array([3, 10]), ends_document=True, num_bytes=2)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_does_not_write_over_a_folder_that_holds_something(tmp_path):
    (tmp_path / "keep.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is there already and not empty"):
        ShardWriter(tmp_path, vocab_size=10, tokenizer_fingerprint="f")


def test_nothing_to_write_is_an_error_and_leaves_nothing(tmp_path):
    with ShardWriter(tmp_path / "new", vocab_size=10, tokenizer_fingerprint="f") as writer:
        with pytest.raises(ValueError, match="no ids to write; the corpus is empty"):
            writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [False, True])
def test_a_killed_writer_is_continued_unless_its_files_are_damaged(tmp_path, damage):
    """Without `close` or the end of a `with` block the folder is as kill -9 leaves it, open file and all."""
    settings = {
        "vocab_size": 300,
        "tokenizer_fingerprint": "f",
        "tokens_per_shard": 10,
        "source": lambda: "text",
    }
    chunks = [np.arange(first, first + 7) for first in range(0, 70, 7)]
    killed = ShardWriter(tmp_path / "new", **settings)
    for chunk in chunks[:5]:
        killed.add(chunk, ends_document=True, num_bytes=7)
    names = {path.name for path in killed.partial.iterdir()}
    assert {"tokens-00002.npy", "tokens-00003.npy.tmp", "progress.json"} <= names
    if damage:
        path = killed.partial / "tokens-00001.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with ShardWriter(tmp_path / "new", **settings) as writer:
        assert writer.num_chunks_done == (0 if damage else 4)
        for chunk in chunks[writer.num_chunks_done :]:
            writer.add(chunk, ends_document=True, num_bytes=7)
        writer.close()
    dataset = TokenDataset.open(tmp_path / "new", verify=True)
    assert dataset.read(0, 70).tolist() == list(range(70))
    assert dataset.document_starts.tolist() == list(range(0, 70, 7))
    assert dataset.num_bytes == 70


@pytest.mark.parametrize("tokens_per_shard", [1, 3, 7, 100])
def test_many_documents_at_once_are_as_one_after_the_other(tmp_path, tokens_per_shard):
    settings = {"vocab_size": 257, "tokenizer_fingerprint": "f", "tokens_per_shard": tokens_per_shard}
    ends = np.cumsum([len(document) + 1 for document in DOCUMENTS])
    for size in (1, 2, 5, 11, 36, 50):
        folder = tmp_path / str(size)
        with ShardWriter(folder, **settings) as writer:
            for first in range(0, len(FLAT), size):
                ids = np.array(FLAT[first : first + size])
                inside = ends[(ends > first) & (ends <= first + size)] - first
                writer.add_documents(ids, inside, num_bytes=len(ids) - len(inside))
            writer.close({"end_of_text_id": 256})
        dataset = TokenDataset.open(folder, verify=True)
        assert dataset.document_starts.tolist() == [0, 4, 5, 32, 34]
        assert dataset.read(0, len(FLAT)).tolist() == FLAT
        assert (dataset.num_documents, dataset.num_bytes) == (5, 32)


def test_an_input_that_became_shorter_than_what_is_stored_is_refused(tmp_path):
    settings = {
        "vocab_size": 300,
        "tokenizer_fingerprint": "f",
        "tokens_per_shard": 10,
        "source": lambda: "text",
    }
    killed = ShardWriter(tmp_path / "new", **settings)
    killed.add(np.arange(18), ends_document=True, num_bytes=18)
    with ShardWriter(tmp_path / "new", **settings) as writer:
        assert writer.num_chunks_done == 0
        writer.add(np.arange(7), ends_document=True, num_bytes=7)
        with pytest.raises(ValueError, match="the input has changed since it was interrupted"):
            writer.close()
