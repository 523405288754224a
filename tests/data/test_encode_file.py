"""Files straight to shards: the ids of the whole text, whatever the ranges and the threads."""

import random
import re

import numpy as np
import pytest

from scratchlm.data.encode_file import encode_file
from scratchlm.data.shards import TokenDataset
from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS, windows

TEXTS = {
    "one document": "The quick brown fox.",
    "a last line without an end": f"one\ntwo{END_OF_TEXT}\nthree",
    "a separator at the end": f"one{END_OF_TEXT}two{END_OF_TEXT}",
    "separators alone": END_OF_TEXT * 3,
    "empty documents": f"{END_OF_TEXT}{END_OF_TEXT}one{END_OF_TEXT}{END_OF_TEXT}",
    "half a separator": f"<|endof{END_OF_TEXT}text|><|endoftext|{END_OF_TEXT}<|",
    "BOM, NUL and line ends": f"\ufeffone\r\n\0{END_OF_TEXT}\r\ntwo\r\n\n",
    "characters of all lengths": f"\u00e9\u4e2d\U0001f600{END_OF_TEXT}\u0301 \u2028" * 9,
    "other special tokens": f"<|user|>do this{END_OF_TEXT}<|end|><|user|>",
}


def naive_documents(text):
    """Each document with the separator, as a list of texts."""
    *ended, rest = text.split(END_OF_TEXT)
    return [*ended, rest] if rest else ended


def naive_ids(tokenizer, text):
    return [
        token
        for document in naive_documents(text)
        for token in [*tokenizer.encode_ordinary(document), tokenizer.end_of_text_id]
    ]


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.fixture
def cutting_tokenizer(make_tokenizer):
    """Bytes as ids, and ranges of about `step` bytes that no separator crosses."""

    class CuttingTokenizer(make_tokenizer):
        step = 5
        encoded = 0
        stop_at = None

        def cut_source(self, source, specials):
            buffer = np.empty(source.size, np.uint8)
            source.read_into(buffer, 0)
            data = buffer.tobytes()
            inside = {
                place
                for name in specials
                for match in re.finditer(re.escape(name.encode()), data)
                for place in range(match.start() + 1, match.end())
            }
            start = 0
            for place in range(1, len(data)):
                if place - start >= self.step and place not in inside and data[place] & 0xC0 != 0x80:
                    yield start, place
                    start = place
            if data:
                yield start, len(data)

        def encode_source(self, *arguments, **settings):
            self.encoded += 1
            if self.encoded == self.stop_at:
                raise KeyboardInterrupt
            return super().encode_source(*arguments, **settings)

    return CuttingTokenizer()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_shards_hold_the_ids_of_the_whole_text(tmp_path, cutting_tokenizer, text):
    path = write(tmp_path / "text.txt", text)
    for step in (1, 5, 40, 1000):
        cutting_tokenizer.step = step
        stats = encode_file(cutting_tokenizer, path, tmp_path / str(step), tokens_per_shard=13)
        dataset = TokenDataset.open(tmp_path / str(step), verify=True)
        documents = naive_documents(text)
        assert dataset.read(0, dataset.num_tokens).tolist() == naive_ids(cutting_tokenizer, text)
        assert dataset.num_documents == stats.documents == len(documents)
        found = [dataset.document(index) for index in range(len(documents))]
        assert [cutting_tokenizer.decode(ids[:-1]) for ids in found] == documents
        assert dataset.num_bytes == stats.bytes == len("".join(documents).encode())
        assert dataset.end_of_text_id == cutting_tokenizer.end_of_text_id


def test_the_shards_do_not_depend_on_threads(tmp_path, cutting_tokenizer):
    rng = random.Random(1)
    pieces = ["one ", "two\n", END_OF_TEXT, "\u00e9", "<|", "endoftext|>", "   "]
    path = write(tmp_path / "text.txt", "".join(rng.choices(pieces, k=2000)))
    for num_threads in (1, 2, 3):
        folder = tmp_path / str(num_threads)
        encode_file(cutting_tokenizer, path, folder, num_threads=num_threads, tokens_per_shard=1000)
        assert files_of(folder) == files_of(tmp_path / "1")


def test_the_end_of_a_file_ends_a_document(tmp_path, cutting_tokenizer):
    texts = ["one", "", f"two{END_OF_TEXT}", f"three{END_OF_TEXT}four"]
    paths = [write(tmp_path / f"{number}.txt", text) for number, text in enumerate(texts)]
    stats = encode_file(cutting_tokenizer, paths, tmp_path / "shards")
    dataset = TokenDataset.open(tmp_path / "shards")
    found = [cutting_tokenizer.decode(dataset.document(index)[:-1]) for index in range(stats.documents)]
    assert found == ["one", "two", "three", "four"]


@pytest.mark.parametrize("data", [b"one \xff two", b"\xe4\xb8", b"a" * 70_000 + b"\xed\xa0\x80", b"ok \xc3"])
def test_bytes_that_are_no_text_are_refused_or_replaced(tmp_path, make_tokenizer, data):
    path = write(tmp_path / "text.txt", data)
    tokenizer = make_tokenizer()
    with pytest.raises(UnicodeDecodeError) as bad:
        data.decode()
    place = bad.value.start
    with pytest.raises(ValueError, match=rf"text.txt: not UTF-8 text at byte {place}; convert it, or choose"):
        encode_file(tokenizer, path, tmp_path / "strict")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    encode_file(tokenizer, path, tmp_path / "replaced", errors="replace")
    dataset = TokenDataset.open(tmp_path / "replaced")
    assert tokenizer.decode(dataset.document(0)[:-1]) == data.decode(errors="replace")
    with pytest.raises(ValueError, match="errors='lossless' needs a tokenizer with an id for every byte"):
        encode_file(tokenizer, path, tmp_path / "lossless", errors="lossless")
    with pytest.raises(ValueError, match="rule for bytes that are no UTF-8 'ignore' is not known"):
        encode_file(tokenizer, path, tmp_path / "ignored", errors="ignore")


def test_nothing_to_encode_is_an_error_and_leaves_nothing(tmp_path, byte_tokenizer):
    path = write(tmp_path / "empty.txt", "")
    with pytest.raises(ValueError, match=r"empty.txt: empty, there is no text to encode"):
        encode_file(byte_tokenizer, path, tmp_path / "shards")
    with pytest.raises(ValueError, match=r"gone.txt: no such file"):
        encode_file(byte_tokenizer, [path, tmp_path / "gone.txt"], tmp_path / "shards")
    with pytest.raises(ValueError, match=r"'<\|sep\|>' is no special token of this tokenizer"):
        encode_file(byte_tokenizer, path, tmp_path / "shards", separator="<|sep|>")
    with pytest.raises(ValueError, match="num_threads=0: must be at least 1"):
        encode_file(byte_tokenizer, path, tmp_path / "shards", num_threads=0)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_a_folder_that_holds_something_is_kept(tmp_path, byte_tokenizer):
    path = write(tmp_path / "text.txt", "one")
    write(tmp_path / "keep.txt", "mine")
    with pytest.raises(ValueError, match="is there already and not empty"):
        encode_file(byte_tokenizer, path, tmp_path)


@pytest.mark.parametrize("stop_at", [1, 2, 9, 30])
def test_an_interruption_leaves_no_folder_and_the_next_call_goes_on(tmp_path, cutting_tokenizer, stop_at):
    path = write(tmp_path / "text.txt", f"some text{END_OF_TEXT}" * 40)
    encode_file(cutting_tokenizer, path, tmp_path / "plain", tokens_per_shard=7)
    whole = cutting_tokenizer.encoded
    cutting_tokenizer.encoded, cutting_tokenizer.stop_at = 0, stop_at
    settings = {"tokens_per_shard": 7, "num_threads": 1}
    with pytest.raises(KeyboardInterrupt):
        encode_file(cutting_tokenizer, path, tmp_path / "stopped", **settings)
    assert not (tmp_path / "stopped").exists()
    cutting_tokenizer.encoded, cutting_tokenizer.stop_at = 0, None
    encode_file(cutting_tokenizer, path, tmp_path / "stopped", **settings)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "plain")
    assert cutting_tokenizer.encoded <= whole - stop_at + 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "stopped", "text.txt"]


def test_a_file_changed_since_an_interruption_starts_over(tmp_path, cutting_tokenizer):
    path = write(tmp_path / "text.txt", "old text " * 30)
    cutting_tokenizer.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        encode_file(cutting_tokenizer, path, tmp_path / "new", tokens_per_shard=4, num_threads=1)
    write(path, "new")
    encode_file(cutting_tokenizer, path, tmp_path / "new", tokens_per_shard=4)
    assert cutting_tokenizer.decode(TokenDataset.open(tmp_path / "new").document(0)[:-1]) == "new"


def test_progress_counts_up_to_the_statistics(tmp_path, cutting_tokenizer):
    path = write(tmp_path / "text.txt", "some text. " * 40)
    calls = []
    stats = encode_file(cutting_tokenizer, path, tmp_path / "new", progress=lambda *done: calls.append(done))
    assert calls == sorted(calls)
    assert len(calls) > 5
    assert calls[-1] == (stats.bytes, path.stat().st_size, stats.documents, stats.tokens)


@pytest.fixture(scope="module")
def bpe():
    corpus = ["The cat sat there, and they're at the end of it \u00e9\u4e2d.\n\n  x = 111\r\n" * 9]
    trainer = TOKENIZERS.build("bpe", vocab_size=330, special_tokens=(END_OF_TEXT, "<|user|>", "<|end|>"))
    return trainer.train(corpus)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_bpe_gives_the_ids_of_encode(tmp_path, bpe, text):
    encode_file(bpe, write(tmp_path / "text.txt", text), tmp_path / "shards")
    dataset = TokenDataset.open(tmp_path / "shards", tokenizer_fingerprint=bpe.fingerprint)
    ids = bpe.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())
    if not text.endswith(END_OF_TEXT):
        ids.append(bpe.end_of_text_id)
    assert dataset.read(0, dataset.num_tokens).tolist() == ids == naive_ids(bpe, text)


@pytest.mark.parametrize("num_bytes", [1000, 50_000])
def test_real_text_in_several_ranges_is_encoded_as_one(tmp_path, bpe, shared_data, monkeypatch, num_bytes):
    """A document of 50 KB that ranges cut, then stories with separators on the edges of ranges."""

    def cut_source(source, specials):
        return windows.ranges(source, bpe.pattern, specials, num_bytes)

    monkeypatch.setattr(bpe, "cut_source", cut_source)
    stories = (shared_data / "pretrain" / "tinystories_train.txt").read_text(encoding="utf-8")[:150_000]
    novel = (shared_data / "tokenizer" / "japanese_wagahai.txt").read_text(encoding="utf-8")[:20_000]
    text = novel + stories.replace("\n", "\r\n", 50) + novel
    path = write(tmp_path / "text.txt", text)
    for num_threads in (1, 2, 3):
        folder = tmp_path / str(num_threads)
        stats = encode_file(bpe, path, folder, num_threads=num_threads, tokens_per_shard=2**14)
        assert files_of(folder) == files_of(tmp_path / "1")
    dataset = TokenDataset.open(tmp_path / "1")
    assert stats.documents == len(naive_documents(text))
    assert dataset.read(0, dataset.num_tokens).tolist() == naive_ids(bpe, text)
