"""Streams: wherever text is cut the ids are the same; ids that come one at a time decode to the same text."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT, Tokenizer, base
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.pretokenize import PATTERNS
from scratchlm.tokenizer.streaming import cut_stream

PARTS = [
    *" \n\r'ares1.\u00e9\u0301\u4e2d",
    "   ",
    "'ll",
    "the ",
    "<|",
    "<|a|>",
    "|>",
    END_OF_TEXT,
    "\ud83d",
    "\ude00",
]
SPECIALS = (END_OF_TEXT, "<|a|>", "<|a|><|a|>")


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request):
    corpus = ["It's the end, they're there \u00e9\u00e9 \u4e2d\u4e2d \n\n\n  the 111 aaaa... \r\n" * 5]
    return train_bpe(corpus, vocab_size=330, special_tokens=SPECIALS, pattern=request.param)


def _with_small_cuts(monkeypatch, held_characters):
    def small(chunks, **settings):
        return cut_stream(chunks, **settings, held_characters=held_characters)

    monkeypatch.setattr(base, "cut_stream", small)


def test_chunks_encode_like_the_whole(tokenizer, monkeypatch):
    rng = random.Random(7)
    for held_characters in (1, 2, 7):
        _with_small_cuts(monkeypatch, held_characters)
        for _ in range(150):
            text = "".join(rng.choices(PARTS, k=rng.randint(0, 25)))
            cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
            chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            for allowed in ("all", {END_OF_TEXT}):
                ids = tokenizer.encode_iterable(chunks, allowed_special=allowed, disallowed_special=())
                whole = tokenizer.encode(text, allowed_special=allowed, disallowed_special=())
                assert list(ids) == whole, (text, chunks)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=12))
def test_any_chunks_encode_like_the_whole(tokenizer, chunks):
    expected = tokenizer.encode("".join(chunks), disallowed_special=())
    assert list(tokenizer.encode_iterable(chunks, disallowed_special=())) == expected


def test_long_chunks_encode_like_the_whole(tokenizer):
    rng = random.Random(8)
    text = "".join(rng.choices(PARTS, k=30_000))
    for size in (1, 1000, 9000):
        chunks = (text[start : start + size] for start in range(0, len(text), size))
        ids = tokenizer.encode_iterable(chunks, allowed_special="all")
        assert list(ids) == tokenizer.encode(text, allowed_special="all")


def test_a_disallowed_special_token_over_an_edge_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="not allowed here"):
        list(tokenizer.encode_iterable(["a <|endof", "text|> b"]))


def test_a_stream_is_lazy_and_bounded_in_memory(tokenizer):
    line = "the 2 cats sat there, and they're at the end of it.\n"  # superbpe cuts at numbers only
    taken = 0

    def lines():
        nonlocal taken
        for _ in range(30_000):  # 1.5 MB
            taken += 1
            yield line

    ids = tokenizer.encode_iterable(lines())
    next(ids)
    assert taken < 1000
    tracemalloc.start()
    try:
        for _ in ids:
            pass
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert taken == 30_000


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_stream_decoder_gives_the_text_of_all_ids(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    decoder = tokenizer.stream_decoder()
    assert "".join(decoder.push(id) for id in ids) + decoder.flush() == tokenizer.decode(ids)


def test_a_stream_decoder_waits_for_whole_characters(tokenizer: Tokenizer):
    ids = [
        id
        for byte in "\U0001f600".encode()
        for id in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(id) == bytes([byte])
    ]
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(id) for id in ids] == ["", "", "", "\U0001f600"]
    assert decoder.push(ids[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
