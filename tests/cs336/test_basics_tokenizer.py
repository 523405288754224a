"""The course's tokenizer functions, on the handout's worked example and against tiktoken's rules."""

import json

import pytest

from scratchlm.cs336 import basics
from scratchlm.tokenizer.formats import from_printable

END = "<|endoftext|>"
HANDOUT = "low low low low low\nlower lower widest widest widest\nnewest newest newest newest newest newest\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "text.txt"
    path.write_text((HANDOUT + END) * 3 + "Héllo 🙂 wörld\n", encoding="utf-8")
    return basics.run_train_bpe(path, 280, [END])


def test_vocabulary_has_special_tokens_then_bytes_then_merges(trained):
    vocab, merges = trained
    assert sorted(vocab) == list(range(280))
    assert vocab[0] == END.encode()
    assert sorted(vocab[id] for id in range(1, 257)) == [bytes([value]) for value in range(256)]
    assert [vocab[257 + rank] for rank in range(len(merges))] == [a + b for a, b in merges]


def test_ties_take_the_greatest_pair_of_bytes(tmp_path):
    (tmp_path / "text").write_text("ab\ncd\n", encoding="utf-8")  # (a, b) and (c, d) come once each
    _, merges = basics.run_train_bpe(tmp_path / "text", 258, [END])
    assert merges == [(b"c", b"d")]


def test_no_piece_of_a_special_token_is_learnt(trained):
    vocab, _ = trained
    assert not [token for token in vocab.values() if b"<|" in token and token != END.encode()]


def test_special_tokens_in_a_text_become_their_ids(trained):
    tokenizer = basics.get_tokenizer(*trained, [END])
    ids = tokenizer.encode(f"low{END}newest")
    assert ids.count(0) == 1
    assert tokenizer.decode(ids) == f"low{END}newest"


def test_the_longest_special_token_wins(trained):
    tokenizer = basics.get_tokenizer(*trained, [END, END + END])
    ids = tokenizer.encode(f"a{END}{END}b{END}")
    assert [tokenizer.decode([id]) for id in ids] == ["a", END + END, "b", END]


def test_without_special_tokens_everything_is_plain_text(trained):
    tokenizer = basics.get_tokenizer(*trained)
    ids = tokenizer.encode(f"low{END}")
    assert 0 not in ids
    assert tokenizer.decode(ids) == f"low{END}"


@pytest.mark.parametrize("text", ["", "s", "🙃", "Héllò hôw are ü? 🙃", "a\n\n\nb  c ", f"{END}\n\ntesting!"])
def test_text_survives_the_round_trip_also_in_pieces(trained, text):
    tokenizer = basics.get_tokenizer(*trained, [END])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert list(tokenizer.encode_iterable(text.splitlines(keepends=True))) == ids
    assert list(tokenizer.encode_iterable(iter(text))) == ids


def test_half_a_character_decodes_to_the_replacement_character(trained):
    tokenizer = basics.get_tokenizer(*trained)
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("🙃")[:1])


def test_an_unknown_keyword_is_an_error(tmp_path):
    (tmp_path / "text").write_text("ab", encoding="utf-8")
    with pytest.raises(TypeError, match="num_processes"):
        basics.run_train_bpe(tmp_path / "text", 257, [END], num_processes=4)


def test_merges_and_vocabulary_equal_the_courses_reference(shared_data):
    fixtures = shared_data / "tokenizer" / "cs336_fixtures"
    if not fixtures.is_dir():
        pytest.skip("the course's fixtures are not beside the checkout")
    vocab, merges = basics.run_train_bpe(fixtures / "corpus.en", 500, [END])
    lines = (fixtures / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges == [tuple(from_printable(part) for part in line.split(" ")) for line in lines]
    expected = json.loads((fixtures / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    assert set(vocab.values()) == {from_printable(token) for token in expected}
    assert sorted(vocab) == sorted(expected.values())


def test_gpt2_vocabulary_gives_tiktokens_ids(shared_data):
    tiktoken = pytest.importorskip("tiktoken")
    folder = shared_data / "tokenizer" / "vocab"
    if not folder.is_dir():
        pytest.skip("GPT-2's vocabulary is not beside the checkout")
    ids = json.loads((folder / "gpt2_encoder.json").read_text(encoding="utf-8"))
    vocab = {id: from_printable(token) for token, id in ids.items()}
    lines = (folder / "gpt2_vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(from_printable(part) for part in line.split(" ")) for line in lines]
    ranks = {token: id for id, token in vocab.items() if token != END.encode()}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50256})
    ours = basics.get_tokenizer(vocab, merges, [END])
    texts = ["", "Hello, how are you?", "Héllò hôw are ü? 🙃", f"{END}\n\n", f"{END}\n\ntesting!", f"a{END}b"]
    fixtures = shared_data / "tokenizer" / "cs336_fixtures"
    texts += [path.read_text(encoding="utf-8") for path in sorted(fixtures.glob("*.txt"))]
    for text in texts:
        expected = theirs.encode(text, allowed_special="all")
        assert ours.encode(text) == expected
        assert list(ours.encode_iterable(text.splitlines(keepends=True))) == expected
        assert ours.decode(expected) == text
