"""A small corpus and a byte tokenizer: what the data tests need without training anything."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scratchlm.data.corpora import Chunk, Corpus
from scratchlm.data.shard_writer import ShardWriter
from scratchlm.data.shards import TokenDataset
from scratchlm.tokenizer import END_OF_TEXT, Tokenizer

END = 256


class ByteTokenizer(Tokenizer):
    """Each byte of UTF-8 is its own id; 256 ends a text."""

    def __init__(self, num_unused: int = 0):
        self.special_tokens = {END_OF_TEXT: END}
        self._token_bytes = {value: bytes([value]) for value in range(256)} | {END: END_OF_TEXT.encode()}
        self._token_bytes |= {END + 1 + number: b"?" for number in range(num_unused)}

    def _encode_array(self, text):
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def _stable_prefix(self, text):
        return len(text)

    def _content(self):
        return {"type": "bytes", "num_unused": len(self._token_bytes)}

    @classmethod
    def load(cls, path):
        return cls()


class ListCorpus(Corpus):
    """Documents from a list; one that is itself a list comes in chunks."""

    name = "list"
    licence = "MIT"

    def __init__(self, documents):
        self.documents = documents

    def chunks(self, split) -> Iterator[Chunk]:
        for document in self.documents:
            pieces = [document] if isinstance(document, str) else document
            for number, piece in enumerate(pieces, start=1):
                yield Chunk(piece, ends_document=number == len(pieces))

    def fingerprint(self):
        return repr(self.documents)


@pytest.fixture
def byte_tokenizer():
    return ByteTokenizer()


@pytest.fixture
def make_corpus():
    return ListCorpus


@pytest.fixture
def make_tokenizer():
    return ByteTokenizer


@pytest.fixture
def make_dataset(tmp_path):
    """Write documents given as lists of ids (without the end) and open them."""

    def make(documents, *, tokens_per_shard=1_000, folder=None, vocab_size=257) -> TokenDataset:
        folder = Path(folder or tmp_path / "made")
        with ShardWriter(
            folder, vocab_size=vocab_size, tokenizer_fingerprint="f" * 64, tokens_per_shard=tokens_per_shard
        ) as writer:
            for document in documents:
                ids = np.array([*document, END], dtype=np.int64)
                writer.add(ids, ends_document=True, num_bytes=len(document))
            writer.close({"end_of_text_id": END})
        return TokenDataset.open(folder)

    return make
