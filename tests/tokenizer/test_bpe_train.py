"""Training: equal to the plain reference and to published results; clear about what cannot be learnt."""

import json
import logging
import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe_numba import compiled_loop
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.bpe_train import BPETrainer, train_bpe, train_bpe_on_file
from scratchlm.tokenizer.formats import from_printable, to_printable
from scratchlm.tokenizer.pretokenize import PATTERNS

SMALL = st.text(st.sampled_from("ab c'\n\u00e9\u4e00d"), max_size=40)


def assert_equals_reference(texts, vocab_size, special_tokens=(END_OF_TEXT,), pattern="gpt2"):
    vocab, merges = train_bpe_reference(
        texts, vocab_size=vocab_size, special_tokens=special_tokens, pattern=pattern
    )
    trained = train_bpe(texts, vocab_size=vocab_size, special_tokens=special_tokens, pattern=pattern)
    assert trained.merges == merges
    assert trained.vocab == vocab


@settings(max_examples=60, deadline=None)
@given(st.lists(SMALL, max_size=5), st.integers(258, 320))
def test_training_equals_the_reference_on_random_text(texts, vocab_size):
    assert_equals_reference(["baba", *texts], vocab_size)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_equals_the_reference_with_every_pattern(pattern):
    texts = ["It's 12345 caf\u00e9s:\n\n  'REaDY' we'll see\t\u4e2d\u6587!!\n", "don't DON'T \u00e9t\u00e9"]
    assert_equals_reference(texts, 300, pattern=pattern)


def test_training_equals_the_reference_where_ties_decide():
    rng = random.Random(1)
    for alphabet in ("ab", "abcd", "\u00e9\u00ea\u00eb"):
        texts = [" ".join("".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(40))]
        assert_equals_reference(texts, 330)


def test_training_equals_the_reference_with_overlapping_specials():
    specials = ("<|a|>", "<|a|><|a|>", "<|")
    assert_equals_reference(["x<|a|><|a|>yy<|a|>yy <|yy|> yy" * 3], 290, special_tokens=specials)


def test_repeated_characters_count_with_overlap_and_merge_from_the_left():
    assert train_bpe(["aaa aaaa"], vocab_size=260, special_tokens=()).merges[0] == (b"a", b"a")
    assert_equals_reference(["a" * 37 + " " + "ab" * 20 + " " + "aab" * 9], 290)


def test_training_equals_the_course_reference(shared_data):
    folder = shared_data / "tokenizer" / "cs336_fixtures"
    trained = train_bpe_on_file(folder / "corpus.en", vocab_size=500)
    lines = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    expected = [tuple(map(from_printable, line.split(" "))) for line in lines]
    assert trained.merges == expected
    table = json.loads((folder / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    assert set(table.values()) == set(trained.vocab)
    assert {from_printable(token) for token in table} == set(trained.vocab.values())


def test_training_on_real_text_equals_the_reference(shared_data):
    path = shared_data / "tokenizer" / "cs336_fixtures" / "tinystories_sample.txt"
    assert_equals_reference([path.read_text(encoding="utf-8")], 600)
    german = (path.parent / "german.txt").read_text(encoding="utf-8")
    assert_equals_reference([german], 400, pattern="o200k")


def test_133_kilobytes_train_in_a_second_and_a_half(shared_data):
    path = shared_data / "tokenizer" / "cs336_fixtures" / "corpus.en"
    train_bpe(["warm up"], vocab_size=258)
    start = time.process_time()
    train_bpe_on_file(path, vocab_size=500)
    assert time.process_time() - start < 1.5


def test_file_and_texts_give_the_same_merges(tmp_path):
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefgh\u00e9'", k=rng.randint(1, 8))) for _ in range(300)]
    text = " ".join(rng.choices(words, k=200_000)) + "<|endoftext|>\n\n tail  "
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode("utf-8"))
    assert train_bpe_on_file(path, vocab_size=600).merges == train_bpe([text], vocab_size=600).merges


def test_training_from_an_iterable_does_not_hold_the_text():
    story = "Once upon a time there was a little robot who liked to count stars. " * 200
    tracemalloc.start()
    try:
        train_bpe((story for _ in range(1500)), vocab_size=300)  # 20 MB
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()


def test_progress_counts_bytes_then_merges(tmp_path):
    calls = []
    train_bpe(["abc abd " * 10], vocab_size=260, progress=lambda *call: calls.append(call))
    assert calls == [("count", 80, 0), ("merge", 3, 3)]
    path = tmp_path / "corpus.txt"
    path.write_text("abc abd " * 10, encoding="utf-8")
    calls.clear()
    train_bpe_on_file(path, vocab_size=260, progress=lambda *call: calls.append(call))
    assert calls == [("count", 80, 80), ("merge", 3, 3)]


def test_counts_beyond_32_bits_stay_exact():
    from scratchlm.tokenizer.bpe_numba import VALUE
    from scratchlm.tokenizer.bpe_train import _learn_merges, _PieceTable
    from scratchlm.tokenizer.pretokenize import split_to_bytes

    table = _PieceTable()
    table.count(*split_to_bytes(["ab cd ab"]))
    table.records[: table.used[0], VALUE] = [2**31 + 5, 2**33, 7]
    assert _learn_merges(table.words(), 1, lambda *_: None) == [(b"c", b"d")]


def test_an_unreachable_vocabulary_stops_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="scratchlm"):
        trained = train_bpe(["abab"], vocab_size=1000)
    assert trained.vocab_size == 259
    assert "vocab_size=1000 cannot be reached: at 259" in caplog.text


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["<|endoftext|>"]])
def test_an_empty_corpus_is_an_error(texts):
    with pytest.raises(ValueError, match="training text is empty"):
        train_bpe(texts, vocab_size=300)


def test_one_byte_is_an_error():
    with pytest.raises(ValueError, match="no two adjacent bytes"):
        train_bpe(["x"], vocab_size=300)


def test_a_vocabulary_without_room_is_an_error():
    with pytest.raises(ValueError, match=r"vocab_size=256 is too small.* at least 257"):
        train_bpe(["some text"], vocab_size=256)
    assert train_bpe(["some text"], vocab_size=257).merges == []


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="pattern 'gpt5' is not known; choose one of gpt2"):
        BPETrainer(pattern="gpt5")
    with pytest.raises(ValueError, match="texts is one string"):
        train_bpe("text", vocab_size=300)
    with pytest.raises(ValueError, match="special token ''"):
        train_bpe(["text"], vocab_size=300, special_tokens=("",))


def test_a_bad_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "bad.txt"
    with pytest.raises(ValueError, match=r"bad\.txt: cannot be read"):
        train_bpe_on_file(path, vocab_size=300)
    path.write_bytes(b"abc \xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8"):
        train_bpe_on_file(path, vocab_size=300)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad\.txt: the training text is empty"):
        train_bpe_on_file(path, vocab_size=300)


def test_one_huge_piece_trains_in_linear_time():
    train_bpe(["a" * 100], vocab_size=260)
    start = time.process_time()
    trained = train_bpe(["a" * 1_000_000 + " " + "b" * 1000], vocab_size=300)
    assert time.process_time() - start < 10
    assert max(map(len, trained.vocab.values())) > 1000


def test_a_function_that_cannot_be_cached_compiles_with_a_warning(caplog):
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)  # no file: Numba finds no place for a cache
    with caplog.at_level(logging.WARNING, logger="scratchlm"):
        assert compiled_loop(namespace["double"])(4) == 8
    assert "cannot be cached" in caplog.text


def test_training_a_golden_vocabulary_of_1000(shared_data):
    golden = shared_data / "tokenizer" / "golden" / "bpe_train_tinystories_valid_1000.merges.txt"
    corpus = shared_data / "pretrain" / "tinystories_valid.txt"
    if not corpus.is_file():
        pytest.skip("the corpus of this golden file is not here")
    trained = train_bpe_on_file(corpus, vocab_size=1000)
    lines = [f"{to_printable(left)} {to_printable(right)}" for left, right in trained.merges]
    assert lines == golden.read_text(encoding="utf-8").splitlines()
