"""Files of ranks: merges are recovered exactly or the file is refused; writing never changes ids."""

import base64
import random

import pytest

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.formats import load_tiktoken, save_tiktoken
from scratchlm.tokenizer.formats.tiktoken_ranks import read_ranks, recover_merges

BYTES = [bytes([value]) for value in range(256)]
CORPUS = ["the cat \u00e9t\u00e9 sat there, aaaa aaa 12 12\n\n" * 9, "banana bandana \u4e2d\u6587" * 5]


def line(token, rank):
    return f"{base64.b64encode(token).decode()} {rank}\n"


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer(*train_bpe_reference(CORPUS, vocab_size=320, special_tokens=()))


def encode_by_ranks(piece, ranks):
    """tiktoken's rule: two neighbours whose bytes are a token may merge, the lowest rank first."""
    parts = [bytes([value]) for value in piece]
    while len(parts) > 1:
        joined = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=lambda i: ranks.get(joined[i], 1 << 30))
        if joined[best] not in ranks:
            break
        parts[best : best + 2] = [joined[best]]
    return [ranks[part] for part in parts]


def test_recovered_merges_are_those_that_were_learnt(trained):
    ordinary = [token for _, token in sorted(trained.vocab.items())]
    assert recover_merges(ordinary) == trained.merges


def test_recovered_merges_do_what_the_rule_of_ranks_does():
    """Random vocabularies, most of which no training gives: refused, or the same ids for every string."""
    rng = random.Random(1)
    accepted = 0
    for _ in range(300):
        tokens = list(BYTES)
        for _ in range(rng.randint(1, 12)):
            token = rng.choice(tokens[97:100] + tokens[256:]) + rng.choice(tokens[97:100] + tokens[256:])
            if token not in tokens:
                tokens.append(token)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        try:
            merges = recover_merges(tokens)
        except ValueError:
            continue
        accepted += 1
        ours = BPETokenizer(dict(enumerate(tokens)), merges)
        for _ in range(10):
            piece = bytes(rng.choices(b"abc", k=rng.randint(1, 14)))
            assert ours.encode_ordinary(piece.decode()) == encode_by_ranks(piece, ranks)
    assert 50 < accepted < 300


def test_an_entry_that_is_not_made_of_two_is_refused():
    with pytest.raises(ValueError, match=r"token b'abc', number 256 .*leave 3 parts of it in place of two"):
        recover_merges([*BYTES, b"abc"])
    with pytest.raises(ValueError, match="0x61 has no rank"):
        recover_merges([token for token in BYTES if token != b"a"])
    with pytest.raises(ValueError, match="tokens are too long"):
        recover_merges([*BYTES, b"a" * 100_000])


def test_a_file_without_a_pattern_is_never_guessed_at(trained, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    save_tiktoken(trained, path)
    with pytest.raises(ValueError, match=r"ranks\.tiktoken: .*pattern=\.\.\.: gpt2, cl100k, o200k"):
        load_tiktoken(path)
    with pytest.raises(ValueError, match="pattern 'gpt9' is not known; choose one of gpt2"):
        load_tiktoken(path, pattern="gpt9")


def test_what_is_written_loads_equal(trained, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    save_tiktoken(trained, path)
    assert load_tiktoken(path, pattern="gpt2").fingerprint == trained.fingerprint
    named = load_tiktoken(path, pattern="gpt2", special_tokens={"<|end|>": 400})
    assert named.encode("the<|end|>", allowed_special="all")[-1] == 400
    assert named.vocab_size == 401


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(trained, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    save_tiktoken(trained, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert load_tiktoken(path, pattern="gpt2").fingerprint == trained.fingerprint


def test_special_tokens_need_ids_of_their_own(trained, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    save_tiktoken(trained, path)
    with pytest.raises(ValueError, match=r"special token '<\|end\|>' has the id 97 of b'a'"):
        load_tiktoken(path, pattern="gpt2", special_tokens={"<|end|>": 97})
    with pytest.raises(ValueError, match=r"ordinary text gives the same token|both stand for"):
        load_tiktoken(path, pattern="gpt2", special_tokens={"a": 999})


def test_ids_that_are_no_ranks_are_not_written(tmp_path):
    vocab = dict(enumerate([*BYTES, b"bc", b"ab"]))
    turned = BPETokenizer(vocab, [(b"a", b"b"), (b"b", b"c")])
    with pytest.raises(ValueError, match=r"no ranks: merge 0 makes b'ab' .*b'bc'.*would give other ids"):
        save_tiktoken(turned, tmp_path / "x.tiktoken")
    unreachable = BPETokenizer(vocab, [(b"b", b"c")])
    with pytest.raises(ValueError, match="no ranks: 1 merges make 2 tokens"):
        save_tiktoken(unreachable, tmp_path / "x.tiktoken")
    lonely = BPETokenizer(dict(enumerate([*BYTES, b"xyz"])), [])
    with pytest.raises(ValueError, match=r"no ranks \(token b'xyz'.*write tokenizer\.json"):
        save_tiktoken(lonely, tmp_path / "x.tiktoken")
    composed = BPETokenizer(dict(enumerate(BYTES)), [], normalization="NFC")
    with pytest.raises(ValueError, match="a file of ranks cannot say normalization='NFC'"):
        save_tiktoken(composed, tmp_path / "x.tiktoken")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("IQ==\n", r"line 1, 'IQ==', is not a token in base64"),
        ("IQ== 0\nIQ== 1\n", "line 2: the token b'!' stands there twice"),
        ("IQ== 0\nIg== 0\n", "two tokens have the same rank"),
        ("I 0\n", "is not a token in base64"),
        ("IQ==IQ== 0\n", "is not a token in base64"),
        ("I\u00e9== 0\n", "is not a token in base64"),
        (" 0\n", "is not a token in base64"),
        ("IQ== -1\n", "is not a token in base64"),
        ("IQ== 1.0\n", "is not a token in base64"),
        ("IQ== 1000000000000000000\n", "from 0 to 16777215"),
        ("IQ== " + "9" * 10_000 + "\n", "from 0 to 16777215"),
        ("IQ== \u0663\n", "is not a token in base64"),
        ("IQ== 0 0\n", "is not a token in base64"),
        ("IQ== 0\n", "the single byte 0x00 has no rank"),
        ("".join(line(token, rank) for rank, token in enumerate([*BYTES, b"abc"])), "in place of two"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_the_line(tmp_path, text, problem):
    path = tmp_path / "damaged.tiktoken"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"damaged\.tiktoken: .*{problem}"):
        load_tiktoken(path, pattern="gpt2")


def test_ranks_keep_gaps_and_their_order(tmp_path):
    path = tmp_path / "gaps.tiktoken"
    lines = [line(token, 5 + 2 * rank) for rank, token in enumerate([*BYTES, b"ab", b"abc"])]
    path.write_text("".join(reversed(lines)), encoding="utf-8")
    loaded = load_tiktoken(path, pattern="cl100k")
    assert read_ranks(path)[b"abc"] == 5 + 2 * 257
    assert loaded.merges == [(b"a", b"b"), (b"ab", b"c")]
    assert loaded.encode("abc") == [519]
