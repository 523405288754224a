"""The encoder's engine against the naive twin and tiktoken: every path, every size of cache and piece."""

import base64
import functools
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer.bpe_encode import Encoder
from scratchlm.tokenizer.bpe_reference import encode_piece_reference
from scratchlm.tokenizer.formats import load_gpt2
from scratchlm.tokenizer.formats.tiktoken_ranks import recover_merges
from scratchlm.tokenizer.pretokenize import pretokenize
from scratchlm.tokenizer.sources import BytesSource
from scratchlm.tokenizer.windows import ranges

BYTES = [bytes([value]) for value in range(256)]


def random_merges(rng, count, alphabet, longest=30):
    """Pairs of tokens made so far; several may give the same product, some may have parts nobody makes."""
    tokens = [*alphabet, *alphabet]
    merges = []
    while len(merges) < count:
        pair = rng.choice(tokens), rng.choice(tokens[-12:])
        pair = pair if rng.random() < 0.5 else pair[::-1]
        if len(pair[0] + pair[1]) <= longest and pair not in merges:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return merges


def number(merges, rng):
    """Ids in random order."""
    tokens = list(dict.fromkeys([*BYTES, *(left + right for left, right in merges), b"zz", b"theta"]))
    ids = list(range(len(tokens)))
    rng.shuffle(ids)
    return dict(zip(tokens, ids, strict=True))


def expected_ids(text, ids, merges, *, whole=False):
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    found = []
    for piece in pretokenize(text):
        data = piece.encode()
        found += [data] if whole and data in ids else encode_piece_reference(data, ranks)
    return [ids[token] for token in found]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.sampled_from([2, 3, 5]))
def test_any_merges_with_ids_in_any_order_equal_the_reference(rng, count, letters):
    merges = random_merges(rng, count, [b"a", b"b", b"\xc3", b"\xa9", b" "][:letters])
    ids = number(merges, rng)
    encoder = Encoder(ids, merges, pattern="gpt2")
    for size in (1, 2, 7, 15, 16, 30, 64, 65, 130):
        text = "".join(rng.choices(["a", "b", "\u00e9", " a", "ab", "aab"], k=size))
        assert encoder.encode_text(text).tolist() == expected_ids(text, ids, merges)
        assert encoder.encode_text(text).tolist() == expected_ids(text, ids, merges)


@pytest.mark.parametrize("size", [14, 15, 16, 17, 31, 32, 63, 64, 65, 66, 255, 256, 257, 258, 300])
def test_pieces_at_the_borders_of_the_paths_equal_the_reference(size):
    rng = random.Random(size)
    merges = random_merges(rng, 80, [b"a", b"b"], longest=200)
    ids = number(merges, rng)
    encoder = Encoder(ids, merges, pattern="gpt2")
    for _ in range(4):
        piece = "".join(rng.choices("ab", k=size))
        for text in (piece, f"{piece} {piece[:-1]}", piece):
            assert encoder.encode_text(text).tolist() == expected_ids(text, ids, merges)


def test_of_equal_pairs_the_first_counts_and_parts_that_nobody_makes_do_no_harm():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"a", b"bc"), (b"x", b"yz")]
    ids = {token: id for id, token in enumerate([*BYTES, b"ab", b"bc", b"abc", b"yz", b"xyz"])}
    encoder = Encoder(ids, merges, pattern="gpt2")
    for text in ("abc", "bcabc", "xyz", "aabcc", "abcabcabcabcabcabcabcabc"):
        assert encoder.encode_text(text).tolist() == expected_ids(text, ids, merges)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 26])
def test_a_piece_that_is_a_token_is_that_token_only_when_merges_are_ignored(cache_bytes):
    merges = [(b"a", b"b"), (b"b", b"c"), (b"t", b"h"), (b"e", b"t"), (b"ab", b"ab")]
    whole = [b"abc", b"a" * 15, b"a" * 16, b"ab" * 40, b"ab" * 300, b" theta", b"\xff\xfe"]
    products = [left + right for left, right in merges]
    ids = {token: id for id, token in enumerate(dict.fromkeys([*BYTES, *products, *whole]))}
    make = functools.partial(Encoder, ids, merges, pattern="gpt2", cache_bytes=cache_bytes)
    plain, ignoring = make(), make(ignore_merges=True)
    texts = ["abc", "abcd", "a" * 15, "a" * 16, "a" * 17, "ab" * 40, "ab" * 300, "ab" * 301, "x theta"]
    texts.append(" ".join(texts))
    for text in texts * 2:
        assert plain.encode_text(text).tolist() == expected_ids(text, ids, merges)
        assert ignoring.encode_text(text).tolist() == expected_ids(text, ids, merges, whole=True)


def test_more_tokens_than_two_bytes_can_number():
    rng = random.Random(3)
    names = dict.fromkeys(bytes(rng.choices(b"abcdefghij", k=4)) for _ in range(12_000))
    merges = []
    for name in names:
        merges += [(name[:1], name[1:2]), (name[2:3], name[3:]), (name[:2], name[2:])]
    merges = list(dict.fromkeys(merges))
    tokens = dict.fromkeys([*BYTES, *(left + right for left, right in merges)])
    ids = {token: 70_000 + 7 * id for id, token in enumerate(tokens)}
    encoder = Encoder(ids, merges, pattern="gpt2")
    text = " ".join("".join(rng.choices("abcdefghij", k=rng.randint(1, 12))) for _ in range(2000))
    assert encoder.dtype == np.uint32
    for _ in range(2):
        assert encoder.encode_text(text).tolist() == expected_ids(text, ids, merges)


# GPT-2 and its successors


@functools.cache
def load_ranks(path):
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}


@pytest.fixture(scope="module")
def gpt2(shared_data):
    folder = shared_data / "tokenizer" / "vocab"
    return load_gpt2(folder / "gpt2_encoder.json", folder / "gpt2_vocab.bpe")


@pytest.fixture(scope="module")
def encoder(gpt2):
    return Encoder({token: id for id, token in gpt2.vocab.items()}, gpt2.merges, pattern="gpt2")


def tiktoken_for(shared_data, name, file):
    tiktoken = pytest.importorskip("tiktoken")
    folder = shared_data / "tokenizer" / "vocab"
    pattern = json.loads((folder / "patterns.json").read_text(encoding="utf-8"))[name]["pat_str"]
    return tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=load_ranks(folder / file), special_tokens={}
    )


def texts_of(shared_data):
    for path in sorted((shared_data / "tokenizer").rglob("*.*")):
        if path.suffix in (".txt", ".jsonl", ".json", ".en", ".inp"):
            yield path.read_bytes()[:300_000].decode("utf-8", "replace")


def test_every_kind_of_text_gives_tiktokens_ids(shared_data, encoder):
    theirs = tiktoken_for(shared_data, "gpt2", "r50k_base.tiktoken")
    for text in texts_of(shared_data):
        expected = theirs.encode_ordinary(text)
        assert encoder.encode_text(text).tolist() == expected
        assert encoder.count_tokens(text) == len(expected)


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_large_vocabularies_give_tiktokens_ids(shared_data, name):
    theirs = tiktoken_for(shared_data, f"{name}_base", f"{name}_base.tiktoken")
    ranks = load_ranks(shared_data / "tokenizer" / "vocab" / f"{name}_base.tiktoken")
    encoder = Encoder(ranks, recover_merges(list(ranks)), pattern=name)
    for text in texts_of(shared_data):
        assert encoder.encode_text(text).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("size", [255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537, 262_145])
def test_pieces_at_the_borders_of_the_trees_levels_give_tiktokens_ids(shared_data, encoder, size):
    theirs = tiktoken_for(shared_data, "gpt2", "r50k_base.tiktoken")
    rng = random.Random(size)
    text = "".join(rng.choices("etaoinshrdlu", k=size))
    for piece in (text, "a" * size, "=" * size):
        assert encoder.encode_text(piece).tolist() == theirs.encode_ordinary(piece)


def test_a_text_of_many_windows_equals_its_parts(shared_data, encoder):
    text = "".join(texts_of(shared_data)) + "x" * 300_000 + " end"
    theirs = tiktoken_for(shared_data, "gpt2", "r50k_base.tiktoken")
    expected = theirs.encode_ordinary(text)
    assert encoder.encode_text(text).tolist() == expected
    assert encoder.count_tokens(text) == len(expected)
    source = BytesSource(text.encode())
    parts = [part.ids.copy() for part in encoder.encode(source)]
    assert np.concatenate(parts).tolist() == expected
    assert sum(part.num_bytes for part in encoder.encode(source)) == source.size


def test_ranges_encoded_by_threads_equal_the_whole(shared_data, encoder):
    data = "<|x|>".join(texts_of(shared_data)).encode()
    source = BytesSource(data)
    expected = np.concatenate([part.ids.copy() for part in encoder.encode(source, specials={"<|x|>": 7})])

    def encode(borders):
        parts = encoder.encode(source, *borders, specials={"<|x|>": 7})
        return np.concatenate([part.ids.copy() for part in parts])

    for num_bytes in (50_000, 1 << 19):
        cuts = list(ranges(source, "gpt2", ["<|x|>"], num_bytes))
        assert len(cuts) > 4
        for num_threads in (1, 4):
            with ThreadPoolExecutor(num_threads) as pool:
                assert np.array_equal(np.concatenate(list(pool.map(encode, cuts))), expected)


def test_special_tokens_end_segments_and_are_written_on_request(encoder):
    source = BytesSource(b"one<|a|>two words<|b|><|a|>x")
    plain = [encoder.encode_text(text).tolist() for text in ("one", "two words", "", "x")]
    for ids in ((-1, -1), (50_000, 50_001)):
        (part,) = encoder.encode(source, specials={"<|a|>": ids[0], "<|b|>": ids[1]})
        behind = [[id] if id >= 0 else [] for id in (ids[0], ids[1], ids[0])] + [[]]
        for i in range(4):
            assert part.ids[part.bounds[i] : part.bounds[i + 1]].tolist() == plain[i] + behind[i]
        assert part.specials.tolist() == [0, 1, 0, -2]
    with pytest.raises(ValueError, match="id 70000 does not fit into uint16; make the encoder with dtype"):
        list(encoder.encode(source, specials={"<|a|>": 70_000}))


def test_texts_encoded_together_equal_texts_encoded_alone(shared_data, encoder):
    rng = random.Random(1)
    text = next(texts_of(shared_data))
    starts = [rng.randrange(len(text)) for _ in range(300)]
    texts = [
        "",
        *(text[start : start + rng.randrange(90)] for start in starts),
        text * 30,
        "\ud800",
        "",
        "end",
    ]
    documents = encoder.encode_texts(texts)
    assert documents.offsets[0] == 0
    for ids, single in zip(documents.arrays(), texts, strict=True):
        assert np.array_equal(ids, encoder.encode_text(single))
    assert encoder.encode_texts([]).offsets.tolist() == [0]


def test_bytes_that_are_no_text_are_kept_one_by_one(gpt2, encoder):
    for data in (b"\xff", b"a\xc3", b"\xc3\xa9\xa9 \xf0\x9f\x98", bytes(range(256)) * 3):
        ids = np.concatenate([part.ids.copy() for part in encoder.encode(BytesSource(data))])
        assert gpt2.decode_bytes(ids) == data
        with pytest.raises(ValueError, match="not UTF-8 text at byte"):
            list(encoder.encode(BytesSource(data), errors="strict"))


def test_an_error_in_the_middle_leaves_a_working_encoder(encoder):
    parts = encoder.encode(BytesSource(b"good text " * 60_000 + b"\xff"), errors="strict")
    next(parts)
    assert encoder.encode_text("Hello").tolist() == [15496]
    with pytest.raises(ValueError, match="byte 600000"):
        list(parts)
    assert encoder.encode_text("Hello").tolist() == [15496]


def long_texts(shared_data):
    chinese = (shared_data / "tokenizer" / "japanese_wagahai.txt").read_text(encoding="utf-8")
    rng = random.Random(1)
    yield "cjk", "".join(character for character in chinese if "\u3040" < character < "\u9fff")
    yield "base64", base64.b64encode(rng.randbytes(750_000)).decode().replace("+", "a").replace("/", "b")
    yield "letters", "".join(rng.choices("etaoinshrdlu", k=1_000_000))
    yield "equal letters", "a" * 1_000_000
    yield "blanks", " " * 1_000_000
    yield "lines", "\n \t" * 333_333


@pytest.mark.slow
def test_pieces_of_any_length_take_linear_time(shared_data, encoder):
    """Twice the length takes at most 2.6 times as long; least processor time of seven runs."""

    def seconds(text):
        start = time.process_time()
        encoder.encode_text(text)
        return time.process_time() - start

    for name, text in long_texts(shared_data):
        half = text[: len(text) // 2]
        encoder.encode_text(text)
        ratio = min(seconds(text) for _ in range(7)) / min(seconds(half) for _ in range(7))
        assert ratio < 2.6, (name, ratio)


def test_a_short_text_takes_microseconds(encoder):
    text = "The cat sat on a mat"
    encoder.encode_text(text)

    def seconds():
        start = time.process_time()
        for _ in range(2000):
            encoder.encode_text(text)
        return (time.process_time() - start) / 2000

    assert min(seconds() for _ in range(5)) < 20e-6  # 8 on a quiet machine
