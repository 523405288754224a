"""BPETokenizer: what its constructor refuses, settings, unreachable entries; ids equal the naive twin's."""

import pickle
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import encode_piece_reference, train_bpe_reference
from scratchlm.tokenizer.normalization import normalize
from scratchlm.tokenizer.pretokenize import PATTERNS, compiled
from scratchlm.tokenizer.sources import BytesSource

BYTES = dict(enumerate(bytes([value]) for value in range(256)))
SPECIALS = ("<|a|>", "<|a|><|b|>")
CORPUS = [
    "It's a small world; we'll see 12345 caf\u00e9s, they've gone.\n\n  The cat sat there, didn't it?\r\n"
    * 3,
    "\u4e2d\u6587\u3002\u6587\u4e2d the theatre then there \U0001f600\U0001f600 aaaa aaa  \t x " * 3,
]
ALPHABET = " \n\r\t'0189aBzsretvlmd.!/-\u017f\u00a0\u0301\u00e9\u00bd\u0663\u01c5"
ALPHABET += "\u4e2d\u3002\U0001f600\x00\x1c\u200b"
TEXT = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=60)
DATA = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from(["the", " ", "\n", "e\u0301", "\u00e9", "'s", "12", "  "]).map(str.encode),
        st.sampled_from(
            [b"\xf5", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8", b"\xf0\x9f\x98"]
        ),
    ),
    max_size=12,
).map(b"".join)


def make(pattern="gpt2", **settings):
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=340, special_tokens=SPECIALS, pattern=pattern)
    return BPETokenizer(vocab, merges, SPECIALS, pattern=pattern, **settings)


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request):
    return make(request.param)


def naive(tokenizer, data):
    """Ids by the expression itself and the naive merges; each byte that is no UTF-8 is one odd character."""
    ranks = {}
    for rank, pair in enumerate(tokenizer.merges):
        ranks.setdefault(pair, rank)
    ordinary = {
        token: id for id, token in tokenizer.vocab.items() if id not in tokenizer.special_tokens.values()
    }
    text = normalize(data.decode("utf-8", "surrogateescape"), tokenizer.normalization)
    ids = []
    for piece in compiled(tokenizer.pattern).findall(text):
        piece = piece.encode("utf-8", "surrogateescape")
        if tokenizer.ignore_merges and piece in ordinary:
            ids.append(ordinary[piece])
        else:
            ids += [ordinary[token] for token in encode_piece_reference(piece, ranks)]
    return ids


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXT)
def test_ids_of_text_equal_the_naive_twins(tokenizer, text):
    expected = naive(tokenizer, text.encode())
    assert tokenizer.encode_ordinary(text) == expected
    assert tokenizer.count_tokens(text) == len(expected)
    assert tokenizer.encode_batch([text, "x", text])[2].tolist() == expected
    assert tokenizer.decode(expected) == text


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=DATA)
def test_ids_of_any_bytes_equal_the_naive_twins(tokenizer, data):
    expected = naive(tokenizer, data)
    assert tokenizer.encode_bytes(data, errors="lossless").tolist() == expected
    assert tokenizer.decode_bytes(expected) == data
    replaced = data.decode("utf-8", "replace")
    assert tokenizer.encode_bytes(data, errors="replace").tolist() == naive(tokenizer, replaced.encode())
    assert tokenizer.decode(expected) == replaced


def test_ids_of_random_tokens_joined_equal_the_naive_twins(tokenizer):
    rng = random.Random(7)
    tokens = list(tokenizer.vocab.values())
    for _ in range(400):
        data = b"".join(rng.choices(tokens, k=rng.randint(1, 12)))
        assert tokenizer.encode_bytes(data, errors="lossless").tolist() == naive(tokenizer, data)


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("normalization", [None, "NFC"])
def test_settings_do_what_the_naive_twin_does(ignore_merges, normalization):
    rng = random.Random(11)
    plain = make("cl100k")
    extra = [b" theirs", "\u00e9\u00e8\u4e2d".encode(), b"catcatcatcatcatcatcat", b"\xe4\x9a", b" 12"]
    vocab = plain.vocab | dict(enumerate(extra, plain.vocab_size))
    ours = BPETokenizer(
        vocab,
        plain.merges,
        SPECIALS,
        pattern="cl100k",
        ignore_merges=ignore_merges,
        normalization=normalization,
    )
    parts = [*ALPHABET, " theirs", "cat", "catcatcatcatcatcatcat", "\u00e9\u00e8\u4e2d", "e\u0301", "e\u0300"]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(1000)]
    for text in texts:
        assert ours.encode_ordinary(text) == naive(ours, text.encode())
    arrays = ours.encode_batch(texts)
    assert [array.tolist() for array in arrays] == [naive(ours, text.encode()) for text in texts]
    source = BytesSource("".join(texts).encode())
    found = [
        part.ids.copy()
        for start, stop in ours.cut_source(source, ())
        for part in ours.encode_source(source, start, stop, specials={}, errors="strict")
    ]
    assert np.concatenate(found).tolist() == naive(ours, "".join(texts).encode())
    if normalization is not None:
        with pytest.raises(ValueError, match=r"errors='lossless' keeps bytes .* normalizes text \(NFC\)"):
            ours.encode_bytes(b"\xff", errors="lossless")
        with pytest.raises(ValueError, match="changes the text before"):
            ours.encode_with_offsets("e\u0301")


def test_unreachable_entries_are_found():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"x", b"yz")]
    extra = [b"ab", b"bc", b"abc", b"yz", b"xyz", b"never", b"\xff\xfe", b"two words", b"<|end|>"]
    vocab = BYTES | dict(enumerate(extra, 256))
    plain = BPETokenizer(vocab, merges, ["<|end|>"])
    assert [vocab[id] for id in plain.unreachable()] == [b"yz", b"xyz", b"never", b"\xff\xfe", b"two words"]
    whole = BPETokenizer(vocab, merges, ["<|end|>"], ignore_merges=True)
    assert [vocab[id] for id in whole.unreachable()] == [b"\xff\xfe", b"two words"]
    for id in plain.unreachable():
        assert id not in plain.encode_bytes(vocab[id], errors="lossless")
    assert BPETokenizer(BYTES, []).unreachable() == []


def test_a_pair_that_stands_in_a_longer_token_can_make_it_unreachable():
    """With b+c before a+b, "ab" is reachable but "abc" made of (ab, c) is not."""
    vocab = BYTES | dict(enumerate([b"bc", b"ab", b"abc"], 256))
    ours = BPETokenizer(vocab, [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")])
    assert ours.unreachable() == [258]
    assert ours.encode("abc") == [97, 256]


def test_pickles_keep_everything(tokenizer):
    for ours in (tokenizer, make("qwen2", ignore_merges=True, normalization="NFC")):
        again = pickle.loads(pickle.dumps(ours))
        assert again.fingerprint == ours.fingerprint
        assert (again.special_tokens, again.merges) == (ours.special_tokens, ours.merges)
        assert again.encode(CORPUS[0]) == ours.encode(CORPUS[0])


def test_settings_change_the_fingerprint_and_are_saved(tmp_path):
    made = [make(), make("cl100k"), make(ignore_merges=True), make(normalization="NFC")]
    assert len({ours.fingerprint for ours in made}) == 4
    for ours in made:
        ours.save(tmp_path / "t.json")
        loaded = BPETokenizer.load(tmp_path / "t.json")
        assert loaded.fingerprint == ours.fingerprint
        assert (loaded.ignore_merges, loaded.normalization) == (ours.ignore_merges, ours.normalization)


@pytest.mark.parametrize(
    ("vocab", "merges", "specials", "problem"),
    [
        ({}, [], [], "the single byte 0x00 has no id"),
        (BYTES | {97: b"xx"}, [], [], "the single byte 0x61 has no id"),
        (BYTES | {300: b"a"}, [], [], "ids 97 and 300 both stand for b'a'"),
        (BYTES | {300: b""}, [], [], "id 300 stands for no bytes"),
        (BYTES | {-1: b"xx"}, [], [], r"id -1 of b'xx' is out of range \(0 to 16777215\)"),
        (BYTES | {1 << 24: b"xx"}, [], [], "id 16777216 of b'xx' is out of range"),
        (BYTES | {300.0: b"xx"}, [], [], "expected a table of whole numbers -> bytes"),
        (BYTES | {"300": b"xx"}, [], [], "expected a table of whole numbers -> bytes"),
        (BYTES | {300: bytearray(b"xx")}, [], [], "expected a table of whole numbers -> bytes"),
        (BYTES | {300: "xx"}, [], [], "expected a table of whole numbers -> bytes"),
        (BYTES, [(b"a", b"b")], [], r"merge 0 \(b'a', b'b'\): b'ab' is not in the vocabulary"),
        (BYTES | {300: b"abc"}, [(b"a", b"bc")], [], r"merge 0 .* b'bc' is not in the vocabulary"),
        (BYTES, [], ["a"], "special token 'a': ordinary text gives the same token"),
        (BYTES | {300: b"ab"}, [(b"a", b"b")], ["ab"], "special token 'ab': ordinary text gives"),
        (BYTES | {300: b"xx", 301: b"xxa"}, [(b"xx", b"a")], ["xx"], "special token 'xx': .*or takes"),
        (BYTES, [], [""], "special token '': must be valid text"),
        (BYTES, [], ["\ud800"], "must be valid text"),
        (BYTES, [], ["<|x|>"] * 2, None),
    ],
)
def test_contradictions_are_refused_by_what_is_wrong(vocab, merges, specials, problem):
    if problem is None:
        assert BPETokenizer(vocab, merges, specials).special_tokens == {"<|x|>": 256}
        return
    with pytest.raises(ValueError, match=problem):
        BPETokenizer(vocab, merges, specials)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="pattern 'gpt9' is not known; choose one of gpt2"):
        BPETokenizer(BYTES, [], pattern="gpt9")
    with pytest.raises(ValueError, match="normalization 'NFKC' is not known; choose one of NFC"):
        BPETokenizer(BYTES, [], normalization="NFKC")


def test_what_was_given_is_not_changed_or_shared():
    vocab, merges = dict(BYTES), [[b"a", b"b"]]
    vocab[256] = b"ab"
    ours = BPETokenizer(vocab, merges, ["<|x|>"])
    assert len(vocab) == 257
    vocab.clear()
    merges.clear()
    ours.vocab.clear()
    assert ours.encode("abx") == [256, 120]
    assert ours.merges == [(b"a", b"b")]
    assert ours.vocab_size == 258


def test_two_hundred_thousand_entries_are_ready_soon():
    """0.4 s alone; the limit is for a busy machine, and the best of three counts."""
    pieces = [b"%c%c" % (left, right) for left in range(256) for right in range(256)]
    tokens = [*BYTES.values(), *pieces, *(piece + bytes([third]) for third in (97, 98) for piece in pieces)]
    merges = [(token[:-1], token[-1:]) for token in tokens[256:]]
    vocab = dict(enumerate(tokens))

    def seconds():
        before = time.perf_counter()
        BPETokenizer(vocab, merges)
        return time.perf_counter() - before

    assert len(vocab) > 196_000
    assert min(seconds() for _ in range(3)) < 1.0
