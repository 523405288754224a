"""What every tokenizer offers: tiktoken's rule, counting, truncating, bytes that are no text, bad input."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chars import CharTokenizer
from scratchlm.tokenizer.pretokenize import PATTERNS

LONG = f"<|{'long' * 3000}|>"
NAMES = (END_OF_TEXT, "<|a|>", "<|a|><|a|>", "<|a", LONG, *(f"<|r{number}|>" for number in range(1000)))
PIECES = [
    *" \n\r'ares1<|>\0\ufeff\u00e9\u0301\u4e2d\U0001f600\ud83d\ude00",
    "\r\n",
    "the ",
    "<|a|>",
    "<|r7|>",
    END_OF_TEXT,
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
BAD_INPUT = {
    "nothing": "",
    "NUL": "\0a\0",
    "BOM": "\ufeffone\ufeff",
    "line ends": "a\r\nb\rc\n\r\n",
    "a lone surrogate": "a\ud800b",
    "surrogates in the wrong order": "\ude00\ud83d",
    "the last code point": "\U0010ffff",
    "blanks": " " * 10_000,
    "half a special token": "<|endoftext|",
    "a special token in another": f"<|endof{END_OF_TEXT}text|>",
    "a very long special token": f"a{LONG}{LONG[:-1]}",
}


@pytest.fixture(scope="module")
def tokenizer():
    corpus = ["The cat sat there, and they're at the end of it \u00e9 \u4e2d \n\n  111 aa\r\n" * 5]
    return train_bpe(corpus, vocab_size=1300, special_tokens=NAMES)


@pytest.fixture(scope="module")
def theirs(tokenizer):
    """The same tokenizer as tiktoken sees it; of the special tokens those that do not overlap."""
    tiktoken = pytest.importorskip("tiktoken")
    special = set(tokenizer.special_tokens.values())
    return tiktoken.Encoding(
        "ours",
        pat_str=PATTERNS["gpt2"],
        mergeable_ranks={token: id for id, token in tokenizer.vocab.items() if id not in special},
        special_tokens={name: tokenizer.special_tokens[name] for name in (END_OF_TEXT, "<|a|>", "<|r7|>")},
    )


def repaired(text):
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXT, st.sets(st.sampled_from([END_OF_TEXT, "<|a|>", "<|r7|>"])))
def test_allowed_special_tokens_are_those_of_tiktoken(tokenizer, theirs, text, allowed):
    expected = theirs.encode(text, allowed_special=allowed, disallowed_special=())
    assert tokenizer.encode(text, allowed_special=allowed, disallowed_special=()) == expected
    assert tokenizer.decode(expected) == theirs.decode(expected) == repaired(text)
    for name in (END_OF_TEXT, "<|a|>", "<|r7|>"):
        refused = name in text and name not in allowed
        try:
            tokenizer.encode(text, allowed_special=allowed, disallowed_special={name})
        except ValueError:
            assert refused
        else:
            assert not refused


def test_a_special_token_in_the_text_is_an_error_unless_the_caller_says_otherwise(tokenizer):
    message = (
        r"the text contains the special token '<\|r999\|>', which is not allowed here. Pass "
        r"allowed_special=\{'<\|r999\|>'\} to encode it as one id, or disallowed_special=\(\) to encode it "
        "as plain text."
    )
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("a<|r999|>")
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_with_offsets("a<|r999|>")
    with pytest.raises(ValueError, match=r"special token '<\|a\|>'"):
        tokenizer.encode("<|a|>", allowed_special={END_OF_TEXT})
    with pytest.raises(ValueError, match=r"'<\|b\|>' is no special token of this tokenizer; it has \['<\|a"):
        tokenizer.encode("", allowed_special={"<|b|>"})
    ids = tokenizer.special_tokens
    assert tokenizer.encode("<|r999|>", allowed_special="all") == [ids["<|r999|>"]]
    assert tokenizer.encode(LONG, allowed_special={LONG}, disallowed_special=()) == [ids[LONG]]


def test_of_overlapping_special_tokens_the_longest_wins(tokenizer):
    ids = tokenizer.special_tokens
    text = "<|a|><|a|><|a|><|a"
    assert tokenizer.encode(text, allowed_special="all") == [ids["<|a|><|a|>"], ids["<|a|>"], ids["<|a"]]
    few = tokenizer.encode(text, allowed_special={"<|a|>"}, disallowed_special=())
    assert [id for id in few if id in ids.values()] == [ids["<|a|>"]] * 3


@pytest.mark.parametrize("text", BAD_INPUT.values(), ids=BAD_INPUT)
def test_ordinary_encoding_never_gives_a_special_id_and_loses_nothing(tokenizer, text):
    special = set(tokenizer.special_tokens.values())
    ids = tokenizer.encode_ordinary(text)
    assert not special & set(ids)
    assert tokenizer.decode(ids) == repaired(text)
    assert tokenizer.encode(text, disallowed_special=()) == ids
    assert tokenizer.encode_to_numpy(text).tolist() == ids
    assert tokenizer.encode_batch([text])[0].tolist() == ids
    assert tokenizer.encode_bytes(repaired(text).encode()).tolist() == ids
    assert list(tokenizer.encode_iterable(text, disallowed_special=())) == ids
    assert tokenizer.count_tokens(text) == len(ids)
    assert tokenizer.truncate(text, 10**6) == (pytest.approx(np.array(ids)), len(repaired(text)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXT, st.integers(0, 40))
@example("\U0001f600" * 3, 5)
@example("\u0301", 1)
def test_truncation_keeps_the_most_ids_that_end_with_a_character(tokenizer, text, num_tokens):
    whole = tokenizer.encode_ordinary(text)
    ids, num_characters = tokenizer.truncate(text, num_tokens)
    assert ids.tolist() == whole[: len(ids)]
    assert len(ids) <= num_tokens
    assert tokenizer.decode(ids, errors="strict") == repaired(text)[:num_characters]
    for more in range(len(ids) + 1, min(num_tokens, len(whole)) + 1):
        with pytest.raises(UnicodeDecodeError):
            tokenizer.decode(whole[:more], errors="strict")


def test_truncation_reads_no_more_than_it_needs(tokenizer):
    text = "the cat sat there. " * 500_000  # encoding all of it takes a second
    began = time.process_time()
    for num_tokens in (0, 1, 10, 1000):
        ids, num_characters = tokenizer.truncate(text, num_tokens)
        assert len(ids) == num_tokens
        assert tokenizer.decode(ids) == text[:num_characters]
    assert time.process_time() - began < 0.2
    with pytest.raises(ValueError, match="num_tokens=-1 must be at least 0"):
        tokenizer.truncate(text, -1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([b"the ", b"\xff", b"\xe4", b"\xb8", b"\xad", b"\xed\xa0\x80", b"\0"])))
def test_bytes_are_encoded_like_their_text_or_refused(tokenizer, pieces):
    data = b"".join(pieces)
    text = data.decode(errors="replace")
    assert tokenizer.encode_bytes(data, errors="replace").tolist() == tokenizer.encode_ordinary(text)
    if text.encode() == data:
        for errors in ("strict", "lossless"):
            assert tokenizer.encode_bytes(data, errors=errors).tolist() == tokenizer.encode_ordinary(text)
        return
    with pytest.raises(UnicodeDecodeError) as bad:
        data.decode()
    with pytest.raises(ValueError, match=f"the text: not UTF-8 text at byte {bad.value.start}; convert it"):
        tokenizer.encode_bytes(memoryview(data))


def test_a_rule_for_bytes_that_does_not_exist_is_refused(tokenizer):
    with pytest.raises(ValueError, match="rule for bytes that are no UTF-8 'ignore' is not known"):
        tokenizer.encode_bytes(b"a", errors="ignore")
    with pytest.raises(ValueError, match="errors='lossless' needs a tokenizer with an id for every byte"):
        CharTokenizer("abc").encode_bytes(b"\xff", errors="lossless")


def test_every_token_is_found_by_its_bytes(tokenizer):
    for id, token in tokenizer.vocab.items():
        assert tokenizer.encode_single_token(token) == id
    assert tokenizer.encode_single_token(END_OF_TEXT) == tokenizer.end_of_text_id
    for missing in ("no such token", b"", b"\xff\xfe"):
        with pytest.raises(ValueError, match="is no single token of this tokenizer"):
            tokenizer.encode_single_token(missing)


@pytest.mark.parametrize("ids", [np.array([[65, 66]]), np.array(65), np.array([65.0])])
def test_an_array_that_is_no_list_of_whole_numbers_is_refused(tokenizer, ids):
    for decode in (tokenizer.decode, tokenizer.decode_bytes, tokenizer.decode_with_offsets):
        with pytest.raises(ValueError, match="ids are whole numbers in one dimension"):
            decode(ids)


@pytest.mark.parametrize("id", [-1, 1.5, 1 << 70])
def test_decoding_with_offsets_refuses_what_is_no_id(tokenizer, id):
    with pytest.raises(ValueError, match="is not in this tokenizer's vocabulary"):
        tokenizer.decode_with_offsets([id])


def test_a_special_token_in_place_of_a_collection_is_refused(tokenizer):
    for choice in ({"allowed_special": END_OF_TEXT}, {"disallowed_special": "a"}):
        with pytest.raises(ValueError, match="pass a collection of them"):
            tokenizer.encode("a", **choice)


def test_decoding_takes_ids_of_any_kind(tokenizer):
    text = "the cat \u4e2d\U0001f600"
    ids = tokenizer.encode(text)
    for kind in (list, tuple, iter, np.array, lambda ids: np.array(ids, np.uint16)):
        assert tokenizer.decode(kind(ids)) == text
        assert b"".join(tokenizer.decode_tokens_bytes(kind(ids))) == text.encode()
    texts = [text[:size] for size in range(len(text))]
    for num_threads in (1, 3):
        batch = tokenizer.encode_batch(texts)
        assert tokenizer.decode_batch(batch, num_threads=num_threads) == texts
    for wrong in (-1, tokenizer.vocab_size, 2**40):
        with pytest.raises(ValueError, match=rf"id {wrong} is not in this tokenizer's vocabulary \(0 to "):
            tokenizer.decode([ids[0], wrong])
        with pytest.raises(ValueError, match=f"id {wrong} is not in"):
            tokenizer.decode_batch([[wrong]])


def test_many_special_tokens_cost_ordinary_text_nothing(tokenizer):
    text = "the cat sat there, and they're at the end of it <or not>.\n" * 3000

    def seconds(names):
        def once():
            began = time.process_time()
            tokenizer.encode(text, allowed_special=names, disallowed_special=())
            return time.process_time() - began

        return min(once() for _ in range(5))

    assert seconds(NAMES) < 1.5 * seconds({END_OF_TEXT}) + 0.002


def test_a_stream_of_chunks_may_end_anywhere(tokenizer):
    for text in BAD_INPUT.values():
        for size in (1, 2, 5):
            chunks = (text[start : start + size] for start in range(0, len(text), size))
            expected = tokenizer.encode(text, allowed_special={LONG}, disallowed_special=())
            ids = tokenizer.encode_iterable(chunks, allowed_special={LONG}, disallowed_special=())
            assert list(ids) == expected
    assert list(itertools.islice(tokenizer.encode_iterable(itertools.repeat("the cat ")), 5))
