"""Offsets: tokens are the bytes of the text cut up, and each lies in the character that it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chars import CharTokenizer
from scratchlm.tokenizer.offsets import token_lengths
from scratchlm.tokenizer.pretokenize import PATTERNS

TEXT = st.text(st.one_of(st.sampled_from(" the\n\u00e9\u4e2d\U0001f600\u0301"), st.characters(codec="utf-8")))


@pytest.fixture(scope="module")
def tokenizer():
    corpus = ["the cat at the end \u00e9\u4e2d\u6587\u4e2d \U0001f600\U0001f601 \u4e2d" * 9]
    return train_bpe(corpus, vocab_size=300, special_tokens=(END_OF_TEXT,))


def naive_offsets(tokens):
    """Byte by byte: where each token begins, and the character in which that byte lies."""
    whole = b"".join(tokens)
    character_of_byte, number = [], -1
    for value in whole:
        number += value & 0xC0 != 0x80
        character_of_byte.append(number)
    starts = [sum(map(len, tokens[:count])) for count in range(len(tokens) + 1)]
    return starts, [*(character_of_byte[start] for start in starts[:-1]), number + 1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXT)
def test_offsets_are_those_counted_byte_by_byte(tokenizer, text):
    ids, starts, characters = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    tokens = tokenizer.decode_tokens_bytes(ids)
    assert (starts.tolist(), characters.tolist()) == naive_offsets(tokens)
    data = text.encode()
    assert [data[starts[i] : starts[i + 1]] for i in range(len(ids))] == tokens
    decoded = tokenizer.decode_with_offsets(ids)
    assert decoded.text == text
    assert np.array_equal(decoded.byte_offsets, starts)
    assert np.array_equal(decoded.character_offsets, characters)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXT)
def test_character_offsets_are_tiktokens(tokenizer, text):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding(
        "ours",
        pat_str=PATTERNS["gpt2"],
        mergeable_ranks={token: id for id, token in tokenizer.vocab.items() if id != 0},
        special_tokens={END_OF_TEXT: 0},
    )
    ids = tokenizer.encode(text)
    found = tokenizer.decode_with_offsets(np.array(ids, np.uint16))
    assert (found.text, found.character_offsets.tolist()[:-1]) == theirs.decode_with_offsets(ids)


def test_a_worked_example(tokenizer):
    ids, starts, characters = tokenizer.encode_with_offsets(
        f"\u0416{END_OF_TEXT}!", allowed_special={END_OF_TEXT}
    )
    assert tokenizer.decode_tokens_bytes(ids) == [b"\xd0", b"\x96", END_OF_TEXT.encode(), b"!"]
    assert starts.tolist() == [0, 1, 2, 15, 16]
    assert characters.tolist() == [0, 0, 1, 14, 15]


def test_no_ids_have_one_offset(tokenizer):
    for found in (tokenizer.encode_with_offsets(""), tokenizer.decode_with_offsets([])):
        assert found.byte_offsets.tolist() == found.character_offsets.tolist() == [0]


def test_ids_that_are_no_text_together_are_refused(tokenizer):
    half = tokenizer.encode("\u0416")[:1]
    with pytest.raises(ValueError, match="utf-8"):
        tokenizer.decode_with_offsets(half)
    with pytest.raises(ValueError, match="id 300 is not in this tokenizer's vocabulary"):
        tokenizer.decode_with_offsets([300])


def test_a_tokenizer_that_changes_the_text_says_so():
    for unknown in ("drop", "replace"):
        tokenizer = CharTokenizer("abc", unknown=unknown)
        assert tokenizer.encode_with_offsets("abba").byte_offsets.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="this tokenizer changes the text before it makes ids of it"):
            tokenizer.encode_with_offsets("abxba")
        with pytest.raises(ValueError, match="this tokenizer changes the text before it makes ids of it"):
            tokenizer.truncate("abxba", 2)


def test_ids_that_do_not_exist_count_as_empty():
    lengths = token_lengths({0: b"a", 3: "\u00e9".encode(), 5: b"\xa9b"})
    assert lengths.num_bytes.tolist() == [1, 0, 0, 2, 0, 2]
    assert lengths.num_characters.tolist() == [1, 0, 0, 1, 0, 1]
    assert lengths.begins_inside.tolist() == [False] * 5 + [True]
