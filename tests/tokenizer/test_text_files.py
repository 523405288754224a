"""Files to ids in memory: the documents' own ids, whatever the threads and the ranges."""

import numpy as np
import pytest

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.text_files import encode_text_file

DOCUMENTS = ["One day a cat sat.\n", "", "caf\u00e9 \u4f60\u597d <|pad|> 123", "x" * 3000, "the end " * 500]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, vocab_size=300, special_tokens=(END_OF_TEXT, "<|pad|>"))


def check(documents, found, tokenizer):
    assert found.ids.dtype == tokenizer.dtype
    assert [ids.tolist() for ids in found.arrays()] == [tokenizer.encode_ordinary(text) for text in documents]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_documents_get_the_ids_of_their_text(tokenizer, tmp_path, monkeypatch, num_threads):
    monkeypatch.setattr("scratchlm.tokenizer.windows.RANGE_BYTES", 1000)
    path = tmp_path / "text.txt"
    path.write_text(END_OF_TEXT.join(DOCUMENTS * 5), encoding="utf-8", newline="")
    check(DOCUMENTS * 5, encode_text_file(tokenizer, path, num_threads=num_threads), tokenizer)


def test_a_separator_at_the_end_opens_no_document(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one" + END_OF_TEXT + "two" + END_OF_TEXT, encoding="utf-8")
    check(["one", "two"], encode_text_file(tokenizer, path), tokenizer)
    path.write_text("one", encoding="utf-8")
    check(["one"], encode_text_file(tokenizer, path), tokenizer)
    path.write_text("one,two", encoding="utf-8")
    check(["one", "two"], encode_text_file(tokenizer, path, separator=","), tokenizer)


def test_an_empty_file_has_no_document(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"")
    found = encode_text_file(tokenizer, path)
    assert (len(found.ids), found.offsets.tolist()) == (0, [0])


def test_bytes_that_are_no_utf8(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"good \xff\xfe bad")
    with pytest.raises(ValueError, match=r"text\.txt: not UTF-8 text at byte 5"):
        encode_text_file(tokenizer, path)
    kept = encode_text_file(tokenizer, path, errors="lossless")
    assert tokenizer.decode_bytes(kept.ids) == b"good \xff\xfe bad"
    replaced = encode_text_file(tokenizer, path, errors="replace")
    assert tokenizer.decode(replaced.ids) == "good \ufffd\ufffd bad"
    with pytest.raises(ValueError, match="no such file"):
        encode_text_file(tokenizer, tmp_path / "gone.txt")


def test_a_tokenizer_of_another_kind(tmp_path):
    characters = TOKENIZERS.build("chars", unknown="replace").train(["abc def"])
    path = tmp_path / "text.txt"
    path.write_text("abc" + END_OF_TEXT + "fed", encoding="utf-8")
    found = encode_text_file(characters, path)
    assert [characters.decode(ids) for ids in found.arrays()] == ["abc", "fed"]
    assert np.array_equal(found.offsets, [0, 3, 6])
