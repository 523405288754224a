"""Encoding and decoding: equal to the reference, to GPT-2's ids and to tiktoken; round trips; speed."""

import base64
import json
import pickle
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_encode import Encoder
from scratchlm.tokenizer.bpe_reference import encode_reference
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.formats import load_gpt2
from scratchlm.tokenizer.pretokenize import (
    PATTERNS,
    parts,
    pretokenize,
    stable_prefix,
)

ALPHABET = " \n\r\t'0189aBzsretvlmd.!/-\u017f\u00a0\u0301\u00e9\u00bd\u0663\u01c5"
ALPHABET += "\u4e2d\u3002\U0001f600\x00\x1c\u200b"
TEXT = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=60)
CORPUS = [
    "It's a small world; we'll see 12345 caf\u00e9s, they've gone.\n\n  The cat sat there, didn't it?\r\n"
    * 3,
    "\u4e2d\u6587\u3002\u6587\u4e2d the theatre then there \U0001f600\U0001f600 aaaa aaa " * 3,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(CORPUS, vocab_size=400, special_tokens=(END_OF_TEXT, "<|a|>", "<|a|><|a|>"))


@pytest.fixture(scope="module")
def gpt2(shared_data):
    folder = shared_data / "tokenizer" / "vocab"
    return load_gpt2(folder / "gpt2_encoder.json", folder / "gpt2_vocab.bpe")


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=100, deadline=None)
@given(text=TEXT, more=TEXT)
def test_a_stable_prefix_keeps_its_pieces_whatever_follows(pattern, text, more):
    settled = stable_prefix(text, pattern)
    pieces = pretokenize(text[:settled], pattern) if settled else []
    assert pieces == pretokenize(text + more, pattern)[: len(pieces)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_short_text_has_stable_prefixes(pattern):
    rng = random.Random(3)
    for _ in range(4000):
        text = "".join(rng.choices(" \n'rea1.s\u0301", k=rng.randint(3, 12)))
        whole = pretokenize(text, pattern)
        for cut in range(1, len(text)):
            settled = stable_prefix(text[:cut], pattern)
            pieces = pretokenize(text[:settled], pattern) if settled else []
            assert pieces == whole[: len(pieces)], (text, cut)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parts_of_a_long_text_have_the_same_pieces(pattern):
    rng = random.Random(4)
    text = "".join(rng.choices([*ALPHABET, " the", "aaaa", "   ", "don't", "12345"], k=3000)) + "z" * 500
    cut = list(parts(text, pattern, num_characters=50))
    assert len(cut) > 20
    assert [piece for part in cut for piece in pretokenize(part, pattern)] == pretokenize(text, pattern)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_encoding_equals_the_reference(tokenizer, text):
    expected = encode_reference(text, tokenizer.vocab, tokenizer.merges)
    assert tokenizer.encode_ordinary(text) == expected
    assert tokenizer.encode_to_numpy(text).tolist() == expected


@pytest.mark.parametrize("pattern", PATTERNS)
def test_encoding_equals_the_reference_with_every_pattern(pattern):
    trained = train_bpe(CORPUS, vocab_size=350, pattern=pattern)
    for text in [*CORPUS, "DON'T don't 1234567 \n \n x"]:
        assert trained.encode(text) == encode_reference(text, trained.vocab, trained.merges, pattern=pattern)


def test_long_pieces_equal_the_reference(tokenizer):
    rng = random.Random(5)
    for size in (47, 48, 49, 64, 65, 300):
        for alphabet in ("a", "ae", "thea"):
            text = "".join(rng.choices(alphabet, k=size))
            assert tokenizer.encode(text) == encode_reference(text, tokenizer.vocab, tokenizer.merges)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@pytest.mark.parametrize("text", ["", "\x00", "a\r\nb\r\n", "\ufeffx", "\U0010ffff", " ", "\n", "\u0120"])
def test_unusual_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\udc00")) == "\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "\U0001f600"
    trained = train_bpe(["\ud800x" * 9], vocab_size=259)
    assert len(trained.encode("\ufffd")) == 1


def test_partial_characters_decode_to_the_replacement_character(tokenizer):
    ids = [
        id for byte in "\u00e9".encode() for id, token in tokenizer.vocab.items() if token == bytes([byte])
    ]
    assert tokenizer.decode(ids) == "\u00e9"
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode_bytes(ids[:1]) == b"\xc3"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode(ids[:1], errors="strict")
    for id in range(tokenizer.vocab_size):
        tokenizer.decode([id])


def test_ids_out_of_range_are_errors(tokenizer):
    for id in (-1, tokenizer.vocab_size, 10**9):
        with pytest.raises(
            ValueError,
            match=rf"id {id} is not in this tokenizer's vocabulary \(0 to {tokenizer.vocab_size - 1}\)",
        ):
            tokenizer.decode([id])
        with pytest.raises(ValueError, match="vocabulary"):
            tokenizer.token_bytes(id)


def test_arrays_of_ids_decode(tokenizer):
    assert tokenizer.decode(tokenizer.encode_to_numpy("the cat")) == "the cat"


def test_special_tokens_are_never_made_from_text_unless_allowed(tokenizer):
    text = f"the{END_OF_TEXT}cat"
    with pytest.raises(ValueError, match=r"special token '<\|endoftext\|>', which is not allowed here"):
        tokenizer.encode(text)
    plain = tokenizer.encode(text, disallowed_special=())
    assert plain == tokenizer.encode_ordinary(text)
    assert tokenizer.end_of_text_id not in plain
    allowed = tokenizer.encode(text, allowed_special={END_OF_TEXT})
    assert allowed == [*tokenizer.encode("the"), tokenizer.end_of_text_id, *tokenizer.encode("cat")]
    assert tokenizer.decode(allowed) == text
    with pytest.raises(ValueError, match="'<x>' is no special token"):
        tokenizer.encode("a", allowed_special={"<x>"})


def test_the_longest_special_token_wins(tokenizer):
    one, two = tokenizer.special_tokens["<|a|>"], tokenizer.special_tokens["<|a|><|a|>"]
    assert tokenizer.encode("<|a|><|a|><|a|>", allowed_special="all") == [two, one]
    assert tokenizer.encode("<|a|>", allowed_special="all") == [one]


def test_blanks_beside_special_tokens_are_split_for_each_segment(gpt2):
    end = gpt2.end_of_text_id
    assert gpt2.encode("<|endoftext|>\n\n", allowed_special="all") == [end, 198, 198][:1] + gpt2.encode(
        "\n\n"
    )
    ids = gpt2.encode("a  <|endoftext|>\n\ntesting!", allowed_special="all")
    assert ids == [*gpt2.encode("a  "), end, *gpt2.encode("\n\ntesting!")]


def test_special_tokens_missing_from_the_vocabulary_are_added(gpt2):
    extended = BPETokenizer(gpt2.vocab, gpt2.merges, [END_OF_TEXT, "<|pad|>"])
    assert extended.special_tokens == {END_OF_TEXT: 50256, "<|pad|>": 50257}
    assert extended.vocab_size == 50258


def test_batches_do_not_depend_on_the_number_of_threads(tokenizer):
    texts = [text[:size] for text in CORPUS for size in range(1, 120, 7)] * 5
    expected = [tokenizer.encode_ordinary(text) for text in texts]
    for num_threads in (1, 4):
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts, num_threads=num_threads)] == expected
    assert tokenizer.encode_batch([]) == []
    with pytest.raises(ValueError, match="num_threads=0"):
        tokenizer.encode_batch(texts, num_threads=0)


def encoders(tokenizer, **options):
    ids = {token: id for id, token in tokenizer.vocab.items()}
    return Encoder(ids, tokenizer.merges, pattern=tokenizer.pattern, **options)


def test_the_size_of_the_cache_does_not_change_the_result(tokenizer):
    rng = random.Random(7)
    text = "".join(rng.choices([*ALPHABET, " the", "theatre", "aaaaaaaaaaaaaaaaaaaaa", " didn't"], k=40_000))
    expected = encoders(tokenizer).encode_text(text)
    for cache_bytes in (0, 10_000, 1 << 18):
        small = encoders(tokenizer, cache_bytes=cache_bytes)
        for _ in range(3):
            assert np.array_equal(small.encode_text(text), expected)


def test_dtype_follows_the_size_of_the_vocabulary(tokenizer, gpt2):
    assert tokenizer.encode_to_numpy("a").dtype == gpt2.encode_to_numpy("a").dtype == np.uint16
    large = BPETokenizer({**gpt2.vocab, 70_000: b"unreachable"}, gpt2.merges)
    assert large.encode_to_numpy("a").dtype == np.uint32


def test_a_pickled_tokenizer_is_equal(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("the cat") == tokenizer.encode("the cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab, merges: vocab.pop(5), "single byte 0x05 has no id"),
        (lambda vocab, merges: vocab.update({300: b"a"}), "both stand for b'a'"),
        (lambda vocab, merges: vocab.update({-3: b"abc"}), "id -3"),
        (lambda vocab, merges: merges.append((b"x", b"y")), "merge 0 .* is not in the vocabulary"),
    ],
)
def test_contradictory_vocabularies_are_errors(change, message):
    vocab, merges = {value: bytes([value]) for value in range(256)}, []
    change(vocab, merges)
    with pytest.raises(ValueError, match=message):
        BPETokenizer(vocab, merges)


def test_a_special_token_that_text_can_make_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="special token 'the': ordinary text gives the same token"):
        BPETokenizer({**tokenizer.vocab}, tokenizer.merges, ["the"])
    with pytest.raises(ValueError, match="this tokenizer has no"):
        _ = BPETokenizer(tokenizer.vocab, tokenizer.merges).end_of_text_id


def test_gpt2_ids_equal_the_golden_ids(shared_data, gpt2):
    lines = (shared_data / "tokenizer" / "golden" / "strings_gpt2.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.split("\n") if line]
    assert len(rows) > 100
    for row in rows:
        assert gpt2.encode_ordinary(row["text"]) == row["ids"]
        assert gpt2.decode(row["ids"]) == row["text"]


def test_gpt2_ids_of_four_megabytes_equal_the_golden_ids(shared_data, gpt2):
    golden = np.fromfile(shared_data / "tokenizer" / "golden" / "owt_a_train.gpt2.u16", np.uint16)
    with (shared_data / "pretrain" / "owt_a_train.txt").open(encoding="utf-8", newline="") as file:
        text = file.read()
    ids = np.array(gpt2.encode(text, allowed_special="all"), np.uint16)
    assert np.array_equal(ids, golden)


def test_gpt2_ids_equal_tiktokens(shared_data, gpt2):
    tiktoken = pytest.importorskip("tiktoken")
    lines = (shared_data / "tokenizer" / "vocab" / "r50k_base.tiktoken").read_bytes().split(b"\n")
    ranks = {
        base64.b64decode(token): int(rank)
        for token, _, rank in (line.partition(b" ") for line in lines if line)
    }
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )
    rng = random.Random(6)
    for _ in range(300):
        text = "".join(rng.choices([*ALPHABET, " the", "ing", "\ud800", END_OF_TEXT], k=30))
        assert gpt2.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")


def test_every_kind_of_text_comes_back_through_gpt2(shared_data, gpt2):
    for name in ("japanese_wagahai.txt", "gutenberg_french.txt", "utf8_sequence_0x10ffff.txt"):
        text = (shared_data / "tokenizer" / name).read_text(encoding="utf-8", errors="replace")
        assert gpt2.decode(gpt2.encode_to_numpy(text)) == text


@pytest.mark.parametrize("unit", ["a", " ", "\n", "^", "0", "'s", "\u4e2d"])
def test_a_million_equal_characters_take_about_twice_as_long_as_half_a_million(gpt2, unit):
    def seconds(count):
        start = time.process_time()
        gpt2.encode_to_numpy(unit * count)
        return time.process_time() - start

    gpt2.encode_to_numpy(unit * 1000)
    half = min(seconds(500_000) for _ in range(2))
    whole = min(seconds(1_000_000) for _ in range(2))
    assert whole < max(3 * half, 1.0)
    assert whole < 5


def test_english_encodes_faster_than_20_megabytes_a_second(shared_data, gpt2):
    text = (shared_data / "tokenizer" / "cs336_fixtures" / "corpus.en").read_text(encoding="utf-8") * 20
    best = float("inf")
    for _ in range(8):
        start = time.process_time()
        gpt2.encode_to_numpy(text)
        best = min(best, time.process_time() - start)
    assert len(text) / best > 20e6
