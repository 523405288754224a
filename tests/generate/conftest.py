"""What the engine's tests share."""

import pytest

from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """One id per byte; 0 ends a text."""
    vocab = {0: END_OF_TEXT.encode(), **{i + 1: bytes([i]) for i in range(256)}}
    return BPETokenizer(vocab, [], [END_OF_TEXT])
