"""BPE-dropout: equal to the plain version with the same random numbers; 0 and 1; seeds; how often."""

import collections
import random

import numpy as np
import pytest

from scratchlm.tokenizer import TOKENIZERS
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_dropout import (
    DropoutEncoder,
    encode_piece_with_dropout_reference,
    encode_with_dropout,
    random_number,
)
from scratchlm.tokenizer.pretokenize import pretokenize

HARD = "a" * 60 + " \u4e2d\u6587\u4e2d\u6587 \U0001f600\n\n  It's 12345 "


@pytest.fixture(scope="module")
def text(shared_data):
    return (shared_data / "pretrain" / "owt_a_valid.txt").read_text(encoding="utf-8")[:200_000]


@pytest.fixture(scope="module")
def tokenizer(text):
    return TOKENIZERS.build("bpe", vocab_size=1000).train([text, HARD])


def encoded_by_reference(tokenizer, text, *, probability, seed):
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    tokens, place = [], 0
    for piece in pretokenize(text, tokenizer.pattern):
        data = piece.encode("utf-8")
        tokens += encode_piece_with_dropout_reference(
            data, ranks, probability=probability, seed=seed, place=place
        )
        place += len(data)
    return tokens


@pytest.mark.parametrize("probability", [0, 0.1, 0.5, 0.9, 1])
def test_the_compiled_loop_equals_the_plain_version(tokenizer, text, probability):
    encoder = DropoutEncoder(tokenizer, probability=probability)
    rng = random.Random(7)
    for _ in range(4):
        start, seed = rng.randrange(len(text) - 500), rng.getrandbits(64)
        part = text[start : start + 500] + HARD
        ids = encoder.encode(part, seed=seed)
        expected = encoded_by_reference(tokenizer, part, probability=probability, seed=seed)
        assert [tokenizer.token_bytes(id) for id in ids.tolist()] == expected


def test_probability_0_is_encoding_and_1_is_bytes(tokenizer, text):
    assert np.array_equal(
        encode_with_dropout(tokenizer, text, probability=0, seed=3), tokenizer.encode_to_numpy(text)
    )
    spelled = encode_with_dropout(tokenizer, text, probability=1, seed=3)
    assert len(spelled) == len(text.encode("utf-8"))
    assert tokenizer.decode(spelled) == text


def test_the_seed_decides_and_nothing_is_lost(tokenizer, text):
    encoder = DropoutEncoder(tokenizer, probability=0.1)
    first, again, other = (encoder.encode(text, seed=seed) for seed in (1, 1, 2))
    assert first.dtype == tokenizer.dtype
    assert np.array_equal(first, again)
    assert not np.array_equal(first[: len(other)], other[: len(first)])
    assert tokenizer.decode(first) == tokenizer.decode(other) == text


def test_where_a_long_text_is_cut_changes_nothing(tokenizer, text, monkeypatch):
    whole = encode_with_dropout(tokenizer, text, probability=0.1, seed=9)
    monkeypatch.setattr("scratchlm.tokenizer.bpe_dropout.WINDOW_BYTES", 1000)
    assert np.array_equal(encode_with_dropout(tokenizer, text, probability=0.1, seed=9), whole)


def test_equal_words_at_different_places_are_cut_differently(tokenizer):
    ids = encode_with_dropout(tokenizer, " because" * 200, probability=0.3, seed=1)
    words = tokenizer.decode(ids)
    assert words == " because" * 200
    assert len(ids) > len(tokenizer.encode(" because")) * 200


def test_a_merge_is_left_out_as_often_as_asked():
    """With one merge a pair has one chance: the share of split pairs is the probability."""
    vocab = dict(enumerate([*(bytes([value]) for value in range(256)), b"ab"]))
    single = BPETokenizer(vocab, [(b"a", b"b")])
    for probability in (0.1, 0.5):
        ids = encode_with_dropout(single, "ab\n" * 20_000, probability=probability, seed=11)
        split = int((ids == ord("a")).sum()) / 20_000
        assert abs(split - probability) < 4 * (probability * (1 - probability) / 20_000) ** 0.5


def test_results_are_distributed_as_the_steps_say():
    """Two merges, "aab": (a, b) first, then (a, ab). Each way of cutting has a probability to work out."""
    vocab = dict(enumerate([*(bytes([value]) for value in range(256)), b"ab", b"aab"]))
    double = BPETokenizer(vocab, [(b"a", b"b"), (b"a", b"ab")])
    counts = collections.Counter()
    ids = encode_with_dropout(double, "aab\n" * 30_000, probability=0.25, seed=5).tolist()
    for line in "".join(map(chr, ids)).split("\n"):
        counts[line] += 1
    expected = {"aab": 0.25, "a" + chr(256): 0.75 * 0.25, chr(257): 0.75 * 0.75}
    for cut, share in expected.items():
        assert abs(counts[cut] / 30_000 - share) < 0.012, cut


def test_scaffolds_fall_after_dropout(text):
    tokenizer = TOKENIZERS.build("scaffold", vocab_size=600).train([text])
    assert tokenizer.scaffolds
    assert encode_with_dropout(tokenizer, text, probability=0, seed=1).tolist() == tokenizer.encode_ordinary(
        text
    )
    ids = encode_with_dropout(tokenizer, text, probability=0.2, seed=1)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text


def test_random_numbers_are_those_of_splitmix64():
    """seed 0 and place 2^64 - 1 begin at counter 0: the outputs for seed 0 of Vigna's splitmix64.c."""
    place = 2**64 - 1
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [random_number(0, place, draw) for draw in (1, 2, 3)] == [number >> 11 for number in expected]


def test_a_very_long_piece_takes_no_quadratic_time(tokenizer):
    """300,000 places need 18 levels of a heap; looking at all pairs for each merge would take hours."""
    ids = encode_with_dropout(tokenizer, "a" * 300_000, probability=0.1, seed=1)
    assert tokenizer.decode(ids) == "a" * 300_000


def test_empty_text_and_special_tokens(tokenizer):
    assert len(encode_with_dropout(tokenizer, "", probability=0.1, seed=1)) == 0
    ids = encode_with_dropout(tokenizer, "a<|endoftext|>b", probability=0.1, seed=1)
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(encode_with_dropout(tokenizer, "x\ud800", probability=1, seed=1)) == "x\ufffd"


def test_errors_are_clear(tokenizer):
    with pytest.raises(ValueError, match=r"probability=1.5: must be from 0"):
        DropoutEncoder(tokenizer, probability=1.5)
    with pytest.raises(ValueError, match=r"seed=-1: must be from 0"):
        encode_with_dropout(tokenizer, "a", probability=0.1, seed=-1)
    with pytest.raises(ValueError, match="a CharTokenizer has none"):
        DropoutEncoder(TOKENIZERS.build("chars").train(["a"]), probability=0.1)
