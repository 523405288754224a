"""Scaffold-BPE: equal to the plain version; the paper's example; files; what it promises on real text."""

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS, load_tokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.pretokenize import pretokenize
from scratchlm.tokenizer.scaffold import ScaffoldTokenizer
from scratchlm.tokenizer.scaffold_reference import (
    encode_piece_scaffold_reference,
    train_scaffold_reference,
)
from scratchlm.tokenizer.sources import BytesSource

ARIZONA = [("A", "r"), ("o", "n"), ("Ar", "i"), ("z", "on"), ("zon", "a"), ("Ari", "zona")]
MERGES = [(left.encode(), right.encode()) for left, right in ARIZONA]


def corpus(rng):
    """A few random words of few letters: many runs, many equally frequent pairs."""
    letters = "abcd"[: rng.randint(1, 4)]
    longest = rng.choice([4, 10, 25])
    words = ("".join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(rng.randint(2, 25)))
    return " ".join(words)


def encoded_by_reference(tokenizer, text):
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    pieces = pretokenize(text, tokenizer.pattern)
    tokens = (encode_piece_scaffold_reference(p.encode("utf-8"), ranks, tokenizer.scaffolds) for p in pieces)
    return [token for piece in tokens for token in piece]


def test_a_scaffold_is_used_and_falls_into_its_parts():
    tokenizer = ScaffoldTokenizer(MERGES, [b"zona"])
    tokens = [tokenizer.token_bytes(id) for id in tokenizer.encode("Arizona zona")]
    assert tokens == [b"Arizona", b" ", b"zon", b"a"]
    assert tokenizer.vocab_size == 1 + 256 + 5
    nested = ScaffoldTokenizer(MERGES, [b"zona", b"zon"])
    assert [nested.token_bytes(id) for id in nested.encode("zona")] == [b"z", b"on", b"a"]


def test_a_part_that_became_rare_is_marked():
    # "bc" is never alone; once "abc" is one token, the 4 of "xy" are more than the 0 of "bc"
    learnt = train_scaffold_reference(["abc\n" * 9 + "xy\n" * 4], vocab_size=256 + 2, special_tokens=())
    assert learnt.merges == [(b"b", b"c"), (b"a", b"bc"), (b"x", b"y")]
    assert learnt.scaffolds == {b"bc"}


def test_a_scaffold_comes_back_when_its_turn_comes():
    # "ab" is left 4 times, less than the 5 of "xy"; with "xy" merged, 4 is the most there is
    text = "abc\n" * 9 + "ab\n" * 4 + "xy\n" * 5
    before = train_scaffold_reference([text], vocab_size=256 + 2, special_tokens=())
    assert before.merges == [(b"a", b"b"), (b"ab", b"c"), (b"x", b"y")]
    assert before.scaffolds == {b"ab"}
    after = train_scaffold_reference([text], vocab_size=256 + 3, special_tokens=())
    assert after.merges == before.merges
    assert after.scaffolds == set()
    assert TOKENIZERS.build("scaffold", vocab_size=259, special_tokens=()).train([text]).scaffolds == set()


@pytest.mark.parametrize("seed", range(60))
def test_training_and_encoding_equal_the_plain_version(seed):
    rng = random.Random(seed)
    text = corpus(rng)
    vocab_size = 257 + rng.randint(1, 30)
    learnt = train_scaffold_reference([text], vocab_size=vocab_size)
    tokenizer = TOKENIZERS.build("scaffold", vocab_size=vocab_size).train([text])
    assert tokenizer.merges == learnt.merges
    assert tokenizer.scaffolds == learnt.scaffolds
    assert tokenizer.vocab_size == 257 + len(learnt.merges) - len(learnt.scaffolds)
    unseen = corpus(rng) + text
    ids = tokenizer.encode(unseen)
    assert [tokenizer.token_bytes(id) for id in ids] == encoded_by_reference(tokenizer, unseen)


@pytest.mark.parametrize("seed", range(8))
def test_the_merges_are_those_of_ordinary_training(seed):
    text = corpus(random.Random(100 + seed))
    learnt = train_scaffold_reference([text], vocab_size=270)
    _, merges = train_bpe_reference([text], vocab_size=257 + len(learnt.merges))
    assert merges == learnt.merges


@pytest.fixture(scope="module")
def real(shared_data):
    text = (shared_data / "pretrain" / "owt_a_valid.txt").read_text(encoding="utf-8")
    return text, TOKENIZERS.build("scaffold", vocab_size=2000).train([text])


def test_real_text_has_no_scaffolds_left_and_round_trips(real):
    text, tokenizer = real
    assert tokenizer.vocab_size == 2000
    assert len(tokenizer.scaffolds) > 20
    ids = tokenizer.encode_to_numpy(text)
    assert ids.max() < 2000
    assert tokenizer.decode(ids) == text
    start = text[:20_000]
    assert [tokenizer.token_bytes(id) for id in tokenizer.encode_ordinary(start)] == encoded_by_reference(
        tokenizer, start
    )
    chunks = (text[i : i + 999] for i in range(0, len(text), 999))
    streamed = np.fromiter(tokenizer.encode_iterable(chunks, disallowed_special=()), np.int64)
    assert np.array_equal(streamed, ids)


def test_what_lost_its_place_is_rarer_than_what_has_one(real):
    text, tokenizer = real
    words = tokenizer.expanded.encode_to_numpy(text.replace(END_OF_TEXT, "\n"))
    counts = np.bincount(words, minlength=2000 + len(tokenizer.scaffolds))
    assert np.median(counts[2000:]) < np.median(counts[257:2000])


@given(st.text())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_text_round_trips(text):
    tokenizer = ScaffoldTokenizer(MERGES, [b"zona", b"Ari"])
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode_ordinary(text), errors="strict") == repaired


def test_many_parts_make_the_result_longer_than_what_was_merged():
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [(letters[:i].encode(), letters[i].encode()) for i in range(1, 26)]
    tokenizer = ScaffoldTokenizer(merges, [left + right for left, right in merges])
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode(letters * 50)) == letters * 50
    assert len(tokenizer.encode(letters * 50)) == 26 * 50


def test_a_source_is_encoded_segment_by_segment():
    tokenizer = ScaffoldTokenizer(MERGES, [b"zona"])
    data = f"zona Arizona{END_OF_TEXT}{END_OF_TEXT}zonazona".encode()
    parts = list(
        tokenizer.encode_source(
            BytesSource(data), 0, len(data), specials=tokenizer.special_tokens, errors="strict"
        )
    )
    segments = [
        part.ids[first:stop].tolist() for part in parts for first, stop in itertools.pairwise(part.bounds)
    ]
    expected = tokenizer.encode("zona Arizona"), [], tokenizer.encode("zonazona")
    assert [id for segment in segments for id in segment if id] == [id for ids in expected for id in ids]
    assert tokenizer.encode("zona Arizona") in [segment[:4] for segment in segments]


def test_a_deep_chain_of_scaffolds_and_one_out_of_order_are_handled():
    merges = [(b"a" * size, b"a") for size in range(1, 2000)]
    tokenizer = ScaffoldTokenizer(merges, [left + right for left, right in merges])
    assert tokenizer.encode("a" * 2000) == [tokenizer.encode("a")[0]] * 2000
    with pytest.raises(ValueError, match=r"merge 0 \(b'ab', b'c'\): b'ab' is not made before it"):
        ScaffoldTokenizer([(b"ab", b"c"), (b"a", b"b")], [b"ab", b"abc"])


def test_a_vocabulary_without_merges_is_the_bytes():
    tokenizer = TOKENIZERS.build("scaffold", vocab_size=257).train(["abc abc"])
    assert tokenizer.merges == []
    assert tokenizer.encode("abc") == [1 + value for value in b"abc"]


def test_files_keep_everything(tmp_path, real):
    _, tokenizer = real
    tokenizer.save(tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.merges == tokenizer.merges
    assert loaded.scaffolds == tokenizer.scaffolds
    text = "An unseen sentence, with Arizona."
    assert loaded.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merges", ["A"]),
        ("merges", None),
        ("merges", ["x yy"]),
        ("scaffolds", ["zzz"]),
        ("scaffolds", [1]),
        ("scaffolds", ["a b"]),
        ("special_tokens", {"a": 1}),
        ("special_tokens", ["Arizona"]),
        ("pattern", "gpt9"),
        ("pattern", 1),
    ],
)
def test_a_wrong_value_in_a_file_is_an_error_that_names_it(tmp_path, key, value):
    path = tmp_path / "wrong.json"
    ScaffoldTokenizer(MERGES, [b"zona"]).save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"wrong\.json: "):
        load_tokenizer(path)


def test_errors_are_clear():
    with pytest.raises(ValueError, match="training text is empty"):
        TOKENIZERS.build("scaffold").train([""])
    with pytest.raises(ValueError, match="no two adjacent bytes to merge"):
        TOKENIZERS.build("scaffold").train(["a"])
    with pytest.raises(ValueError, match="pass a list of texts"):
        TOKENIZERS.build("scaffold").train("abc")
    with pytest.raises(ValueError, match="vocab_size=256 is too small"):
        TOKENIZERS.build("scaffold", vocab_size=256)
    with pytest.raises(ValueError, match="scaffold b'xyz': no merge makes it"):
        ScaffoldTokenizer(MERGES, [b"xyz"])


def test_a_file_is_learnt_like_its_text(tmp_path):
    path = tmp_path / "text.txt"
    text = f"the cat sat on the mat{END_OF_TEXT}the hat\n" * 9
    path.write_text(text, encoding="utf-8")
    trainer = TOKENIZERS.build("scaffold", vocab_size=265)
    assert trainer.train_on_file(path).fingerprint == trainer.train([text]).fingerprint
    with pytest.raises(ValueError, match="no file: the training text is empty"):
        trainer.train_on_file([])
    for name, content in (("empty", b""), ("single", b"a")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: the training text"):
            trainer.train_on_file(tmp_path / name)
    twice = trainer.train_on_file([path, path])
    assert twice.fingerprint == trainer.train([text, text]).fingerprint
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="binary: not UTF-8 text at byte 2"):
        trainer.train_on_file(tmp_path / "binary")


def test_a_size_that_cannot_be_reached_is_said(caplog):
    tokenizer = TOKENIZERS.build("scaffold", vocab_size=300).train(["abc abc"])
    assert "vocab_size=300 cannot be reached" in caplog.text
    assert tokenizer.vocab_size < 300
