"""Merging: equal to the plain reference under every rule for ties, whole or continued; in linear time."""

import json
import random
import time
from collections import Counter

import numpy as np
import pytest

from scratchlm.tokenizer.bpe_reference import choose, learn_merges_reference
from scratchlm.tokenizer.formats.printable import from_printable
from scratchlm.tokenizer.merging import SYMBOL_PADDING, Words, learn_merges, words_of
from scratchlm.tokenizer.pretokenize import pretokenize

TIES = ("bytes", "hf", "raw", "assembled_bytes")

ALPHABETS = (b"ab", b"abc", b"aab", b"abcdefgh", bytes([0, 1, 255]), b" a:", b"a b.", bytes(range(256)))


def random_corpus(seed):
    """A few short words over few letters, with runs and every size of count."""
    rng = random.Random(seed)
    alphabet = rng.choice(ALPHABETS)
    longest = rng.choice([4, 9, 40])
    scales = rng.choice([[1], [1, 1, 2, 3], [1, 50, 30_000], [2**40, 2**40 + 1, 2**33, 7]])
    counts = Counter()
    for _ in range(rng.randint(1, 60)):
        letters = rng.choices(alphabet, k=rng.randint(2, longest))
        if rng.random() < 0.2:
            letters = letters[:1] * len(letters)
        counts[bytes(letters)] += rng.choice(scales)
    return counts


def as_reference(counts):
    return Counter({tuple(bytes([value]) for value in word): count for word, count in counts.items()})


@pytest.mark.parametrize("tie", TIES)
def test_merges_equal_the_reference_on_random_corpora(tie):
    for seed in range(400):
        counts = random_corpus(seed)
        num_merges = (5, 50, 200)[seed % 3]
        expected = learn_merges_reference(as_reference(counts), num_merges, tie=tie)
        assert learn_merges(words_of(counts.items()), num_merges, tie=tie) == expected, seed


def test_merges_that_may_touch_few_words_equal_the_reference():
    for seed in range(300):
        rng = random.Random(seed)
        texts = [
            "".join(rng.choices(["a", "b", "ab", " ", " ", ": ", ":", "\n", "  "], k=12)) for _ in range(9)
        ]
        counts = Counter(text.encode("utf-8") for text in texts)
        max_words = rng.randint(1, 4)
        expected = learn_merges_reference(as_reference(counts), 60, max_words=max_words)
        assert learn_merges(words_of(counts.items()), 60, max_words=max_words) == expected, seed


def test_learning_goes_on_from_given_merges_as_if_never_interrupted():
    for seed in range(150):
        counts = random_corpus(seed)
        tie = TIES[seed % 4]
        whole = learn_merges(words_of(counts.items()), 60, tie=tie)
        for cut in {0, 1, len(whole) // 2, len(whole)}:
            given, rest = whole[:cut], whole[cut:]
            assert learn_merges(words_of(counts.items()), 60 - cut, tie=tie, given=given) == rest


def test_given_merges_of_another_corpus_are_applied_first():
    for seed in range(200):
        counts, other = random_corpus(seed), random_corpus(seed + 1000)
        given = learn_merges(words_of(other.items()), 30)
        expected = learn_merges_reference(as_reference(counts), 40, given=given)
        assert learn_merges(words_of(counts.items()), 40, given=given) == expected, seed


def test_given_merges_apply_to_long_words_with_many_kinds_of_parts():
    rng = random.Random(9)
    names = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 8))) for _ in range(6000)]
    counts = Counter(" ".join(rng.choices(names, k=400)).encode("utf-8") for _ in range(30))
    words = Counter((" " + name).encode("utf-8") for name in names)
    given = learn_merges(words_of(words.items()), 20)
    expected = learn_merges_reference(as_reference(counts), 10, given=given)
    assert learn_merges(words_of(counts.items()), 10, given=given) == expected


def test_the_order_of_the_words_changes_nothing():
    rng = random.Random(3)
    pieces = list(random_corpus(11).items()) + list(random_corpus(12).items())
    expected = learn_merges(words_of(pieces), 100)
    for _ in range(5):
        rng.shuffle(pieces)
        assert learn_merges(words_of(pieces), 100) == expected


def test_one_word_given_twice_counts_as_the_sum():
    assert learn_merges(words_of([(b"ab", 2), (b"cd", 3), (b"ab", 2)]), 2) == [(b"a", b"b"), (b"c", b"d")]


def test_ties_go_by_the_rule():
    words = [(b"\x00\x01", 5), (b"ab", 5), (b"a\xff", 5)]
    first = {tie: learn_merges(words_of(words), 1, tie=tie)[0] for tie in TIES}
    assert first == {
        "bytes": (b"a", b"\xff"),
        "hf": (b"a", b"b"),  # shown as U+0061, U+0062; byte 0 is shown as U+0100
        "raw": (b"\x00", b"\x01"),
        "assembled_bytes": (b"\x00", b"\x01"),
    }
    pairs = [(b"a", b"b"), (b"ab", b"c"), (b"a", b"c")]
    assert choose(pairs, [(b"a", b"b")], "bytes") == (b"ab", b"c")
    assert choose(pairs[1:], [(b"a", b"b")], "raw") == (b"a", b"c")


def test_tokens_that_agree_in_their_first_eight_bytes_are_told_apart():
    words = [(b"aaaaaaaaaX", 9), (b"aaaaaaaaaY", 9), (b"aaaaaaaa\x00Z", 9), (b"aaaaaaaaZ", 9)]
    for tie in TIES:
        expected = learn_merges_reference(as_reference(dict(words)), 30, tie=tie)
        assert learn_merges(words_of(words), 30, tie=tie) == expected


def test_large_counts_wait_in_the_heap_and_small_ones_in_buckets():
    rng = random.Random(5)
    words = Counter()
    for _ in range(3000):
        word = bytes(rng.choices(b"abcdefghij", k=rng.randint(2, 7)))
        words[word] += rng.choice([1, 3, 100, 5_000, 16_383, 16_384, 2**31])
    expected = learn_merges_reference(as_reference(words), 150)
    assert learn_merges(words_of(words.items()), 150) == expected


def test_merges_equal_the_course_reference(shared_data):
    folder = shared_data / "tokenizer" / "cs336_fixtures"
    text = (folder / "corpus.en").read_text(encoding="utf-8").replace("<|endoftext|>", "")
    words = words_of(Counter(piece.encode("utf-8") for piece in pretokenize(text)).items())
    lines = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    assert learn_merges(words, len(lines)) == [tuple(map(from_printable, line.split(" "))) for line in lines]


def test_merges_equal_a_golden_list_of_1000(shared_data):
    golden = shared_data / "tokenizer" / "golden" / "bpe_train_tinystories_valid_1000.merges.txt"
    corpus = shared_data / "pretrain" / "tinystories_valid.txt"
    if not corpus.is_file():
        pytest.skip("the corpus of this golden file is not here")
    counts = Counter()
    for story in corpus.read_text(encoding="utf-8").split("<|endoftext|>"):
        counts.update(piece.encode("utf-8") for piece in pretokenize(story))
    lines = golden.read_text(encoding="utf-8").splitlines()
    expected = [tuple(map(from_printable, line.split(" "))) for line in lines]
    assert learn_merges(words_of(counts.items()), len(expected)) == expected


def test_merges_equal_those_of_other_programs_under_their_rules(shared_data):
    tokenizers = pytest.importorskip("tokenizers")
    text = (shared_data / "tokenizer" / "cs336_fixtures" / "tinystories_sample.txt").read_text(
        encoding="utf-8"
    )
    words = Counter(piece.encode("utf-8") for piece in pretokenize(text))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1256, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    theirs.train_from_iterator([text], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    assert learn_merges(words_of(words.items()), 1000, tie="hf") == [
        tuple(map(from_printable, pair)) for pair in merges
    ]


def test_merges_end_when_no_pair_is_left():
    assert learn_merges(words_of([(b"abab", 1)]), 10) == [(b"a", b"b"), (b"ab", b"ab")]
    assert learn_merges(words_of([]), 10) == []
    assert learn_merges(words_of([(b"ab", 1)]), 0) == []
    assert learn_merges(words_of([]), 10, given=[(b"a", b"b")]) == []


def growth(small, large, num_merges):
    """How many times longer the large word takes: the least of five ratios, as others use the machine."""

    def seconds(word):
        words = words_of([(word, 1)])
        start = time.process_time()
        learn_merges(words, num_merges)
        return time.process_time() - start

    return min(seconds(large) / seconds(small) for _ in range(5))


LINEAR = 10
"""Four times the bytes take 4 times as long where time is linear, and 16 times where it is quadratic."""


def test_a_million_equal_bytes_merge_in_linear_time():
    assert learn_merges(words_of([(b"a" * 1_000_000, 1)]), 2) == [(b"a", b"a"), (b"aa", b"aa")]
    assert growth(b"a" * 1_000_000, b"a" * 4_000_000, 50) < LINEAR


def test_a_megabyte_without_spaces_merges_in_linear_time():
    rng = random.Random(6)
    text = "".join(chr(0x4E00 + int(rng.paretovariate(0.5)) % 3000) for _ in range(350_000)).encode("utf-8")
    assert growth(text[: len(text) // 4], text, 1000) < LINEAR


def test_progress_tells_the_phase_and_the_merges():
    words = list(random_corpus(8).items())
    given = learn_merges(words_of(words), 3)
    calls = []
    learn_merges(words_of(words), 5, given=given, progress=lambda *call: calls.append(call))
    assert calls[0] == ("replay", 3, 3)
    assert calls[-1] == ("merge", 5, 5)


def test_padding_may_hold_anything():
    words = words_of([(b"abab", 2), (b"ab", 1)])
    words.symbols[-SYMBOL_PADDING:] = np.resize([97, 98], SYMBOL_PADDING)
    assert learn_merges(Words(*words), 3) == [(b"a", b"b"), (b"ab", b"ab")]


def test_contradictory_given_merges_are_errors():
    words = words_of([(b"abc", 1)])
    with pytest.raises(ValueError, match=r"given merge 0 .*: b'ab' is neither a byte nor made by an earlier"):
        learn_merges(words, 1, given=[(b"ab", b"c"), (b"a", b"b")])
    with pytest.raises(ValueError, match=r"given merge 1 .*: b'ab' is made a second time"):
        learn_merges(words, 1, given=[(b"a", b"b"), (b"a", b"b")])
    with pytest.raises(ValueError, match=r"given merge 2 .*split b'abc' in another way"):
        learn_merges(words, 1, given=[(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")])
    with pytest.raises(ValueError, match="tie rule 'first' is not known; choose one of bytes, hf, raw"):
        learn_merges(words, 1, tie="first")
    with pytest.raises(ValueError, match="max_words=0: must be at least 1"):
        learn_merges(words, 1, max_words=0)
