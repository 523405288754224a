"""Training: equal to a plain reference, to other programs and published results, on any number of threads."""

import inspect
import json
import logging
import random
import threading
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT, piece_counts
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.bpe_train import BPETrainer, train_bpe, train_bpe_on_file
from scratchlm.tokenizer.formats.printable import from_printable, to_printable
from scratchlm.tokenizer.pretokenize import PATTERNS
from scratchlm.tokenizer.train_profile import TrainingProfile
from scratchlm.tokenizer.windows import ranges

SMALL = st.text(st.sampled_from("ab c'\n\u00e9\u4e00d"), max_size=40)


def assert_equals_reference(texts, vocab_size, special_tokens=(END_OF_TEXT,), pattern="gpt2"):
    vocab, merges = train_bpe_reference(
        texts, vocab_size=vocab_size, special_tokens=special_tokens, pattern=pattern
    )
    trained = train_bpe(texts, vocab_size=vocab_size, special_tokens=special_tokens, pattern=pattern)
    assert trained.merges == merges
    assert trained.vocab == vocab


@settings(max_examples=60, deadline=None, derandomize=True)
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


def test_one_huge_piece_trains_in_linear_time():
    train_bpe(["a" * 100], vocab_size=260)
    start = time.process_time()
    trained = train_bpe(["a" * 1_000_000 + " " + "b" * 1000], vocab_size=300)
    assert time.process_time() - start < 10
    assert max(map(len, trained.vocab.values())) > 1000


def test_training_a_golden_vocabulary_of_1000(shared_data):
    golden = shared_data / "tokenizer" / "golden" / "bpe_train_tinystories_valid_1000.merges.txt"
    corpus = shared_data / "pretrain" / "tinystories_valid.txt"
    if not corpus.is_file():
        pytest.skip("the corpus of this golden file is not here")
    trained = train_bpe_on_file(corpus, vocab_size=1000)
    lines = [f"{to_printable(left)} {to_printable(right)}" for left, right in trained.merges]
    assert lines == golden.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def small_jobs(monkeypatch):
    """Small texts are cut for threads as large ones are."""
    monkeypatch.setattr(piece_counts, "BATCH_BYTES", 2000)
    monkeypatch.setattr(piece_counts, "RANGE_BYTES", 5000)
    monkeypatch.setattr(piece_counts, "ranges", lambda *given: ranges(*given, num_bytes=5000))


def babble(seed, num_words, num_kinds=300):
    rng = random.Random(seed)
    alphabet = "abcdefgh\u00e9'\u4e00"
    words = ["".join(rng.choices(alphabet, k=rng.randint(1, 8))) for _ in range(num_kinds)]
    ends = [" ", " ", " ", "\n", ". ", "<|endoftext|>", "  12 "]
    return "".join(word + rng.choice(ends) for word in rng.choices(words, k=num_words))


@pytest.mark.parametrize("pattern", ["gpt2", "o200k"])
def test_the_number_of_threads_changes_nothing(tmp_path, small_jobs, pattern):
    path = tmp_path / "corpus.txt"
    path.write_text(babble(3, 20_000), encoding="utf-8")
    settings = {"vocab_size": 500, "pattern": pattern}
    trained = [train_bpe_on_file(path, num_threads=count, **settings).vocab for count in (1, 2, 7)]
    assert trained[0] == trained[1] == trained[2]
    text = path.read_text(encoding="utf-8")
    assert train_bpe([text], **settings).vocab == trained[0]
    assert train_bpe(text.split(END_OF_TEXT), num_threads=3, **settings).vocab == trained[0]


def test_several_files_are_several_texts(tmp_path, small_jobs):
    paths = [tmp_path / f"{number}.txt" for number in range(4)]
    texts = [babble(number, 2000 * number) for number in range(4)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    assert train_bpe_on_file(paths, vocab_size=400).vocab == train_bpe(texts, vocab_size=400).vocab


def printable_vocab(tokenizer):
    return {to_printable(token): id for id, token in tokenizer.vocab.items()}


def corpora(shared_data):
    """Ties everywhere, and real text."""
    rng = random.Random(4)
    for alphabet in ("ab", "abcd", "\u00e9\u00ea\u00eb\u4e00"):
        yield [" ".join("".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(60))], 400
    yield [babble(5, 1000, num_kinds=900).replace(END_OF_TEXT, "\n")], 700
    text = (shared_data / "pretrain" / "tinystories_valid.txt").read_text(encoding="utf-8")
    yield [story for story in text.split(END_OF_TEXT) if story], 3000


def test_vocabularies_equal_those_of_tokenizers(shared_data):
    tokenizers = pytest.importorskip("tokenizers")
    for texts, vocab_size in corpora(shared_data):
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|a|>", END_OF_TEXT],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        theirs.train_from_iterator(texts, trainer)
        ours = train_bpe(texts, vocab_size=vocab_size, special_tokens=("<|a|>", END_OF_TEXT), tie="hf")
        assert printable_vocab(ours) == theirs.get_vocab()


def test_vocabularies_equal_those_of_rustbpe(shared_data):
    rustbpe = pytest.importorskip("rustbpe")
    for texts, vocab_size in corpora(shared_data):
        theirs = rustbpe.Tokenizer()
        theirs.train_from_iterator(iter(texts), vocab_size, pattern=PATTERNS["gpt2"])
        ours = train_bpe(texts, vocab_size=vocab_size, special_tokens=(), tie="raw")
        assert ours.vocab == {id: bytes(token) for token, id in theirs.get_mergeable_ranks()}


@pytest.mark.parametrize(
    ("tie", "rule"),
    [("hf", "huggingface"), ("raw", "raw_token_ids"), ("assembled_bytes", "assembled_bytes")],
)
def test_merges_equal_those_of_gigatoken(shared_data, tmp_path, tie, rule):
    gigatoken = pytest.importorskip("gigatoken")
    path = tmp_path / "corpus.txt"
    for texts, vocab_size in corpora(shared_data):
        path.write_text(END_OF_TEXT.join(texts), encoding="utf-8", newline="")
        _, theirs = gigatoken.train_bpe(
            path, vocab_size, [END_OF_TEXT], tie_breaking=rule, separator=END_OF_TEXT.encode()
        )
        ours = train_bpe_on_file(path, vocab_size=vocab_size, tie=tie).merges
        assert ours == theirs[: len(ours)]  # it goes on with pairs that stand nowhere when none is left
        assert len(ours) == len(theirs) or vocab_size == 400


def test_ids_are_in_the_order_of_the_rule_for_ties():
    texts = ["ab ab"]
    merged = {"bytes": 257, "assembled_bytes": 257, "hf": 257, "raw": 256}
    for tie, id in merged.items():
        vocab = train_bpe(texts, vocab_size=258, tie=tie).vocab
        assert vocab[id] == b"ab"
        assert vocab[257 if tie == "raw" else 0] == END_OF_TEXT.encode()
    assert train_bpe(texts, vocab_size=258, tie="hf").vocab[1] == b"!"
    assert train_bpe(texts, vocab_size=258, tie="bytes").vocab[1] == b"\0"


def test_max_pieces_is_exact_below_and_says_what_it_forgot_above(tmp_path, small_jobs, caplog):
    path = tmp_path / "corpus.txt"
    path.write_text(babble(6, 20_000, num_kinds=3000) + " common" * 500, encoding="utf-8")
    exact = train_bpe_on_file(path, vocab_size=400)
    with caplog.at_level(logging.WARNING, logger="scratchlm"):
        assert train_bpe_on_file(path, vocab_size=400, max_pieces=100_000).vocab == exact.vocab
        assert not caplog.text
        bounded = [
            train_bpe_on_file(path, vocab_size=300, max_pieces=1000, num_threads=count) for count in (1, 3)
        ]
    assert bounded[0].vocab == bounded[1].vocab
    assert b" common" in bounded[0].vocab.values()
    assert "max_pieces=1000: " in caplog.text
    assert "are of kinds too rare to keep and were forgotten" in caplog.text


def test_progress_counts_bytes_then_merges(tmp_path):
    calls = []
    train_bpe(["abc abd " * 10], vocab_size=260, progress=lambda *call: calls.append(call))
    assert calls == [("count", 80, 0), ("merge", 3, 3)]
    path = tmp_path / "corpus.txt"
    path.write_text("abc abd " * 10, encoding="utf-8")
    calls.clear()
    train_bpe_on_file(path, vocab_size=260, progress=lambda *call: calls.append(call))
    assert calls == [("count", 80, 80), ("merge", 3, 3)]


def test_progress_comes_seldom_from_the_callers_thread_and_to_the_end(tmp_path, small_jobs):
    path = tmp_path / "corpus.txt"
    path.write_text(babble(7, 100_000), encoding="utf-8")
    calls, threads = [], set()

    def progress(*call):
        calls.append(call)
        threads.add(threading.current_thread())

    start = time.monotonic()
    train_bpe_on_file(path, vocab_size=600, progress=progress)
    assert len(calls) < 20 * (time.monotonic() - start) + 4
    assert threads == {threading.current_thread()}
    size = path.stat().st_size
    assert ("count", size, size) in calls
    assert calls[-1] == ("merge", 343, 343)
    assert calls == sorted(calls)


def test_the_profile_tells_time_memory_and_amounts():
    profile = TrainingProfile()
    train_bpe(["abc abd ", "abc"], vocab_size=259, num_threads=1, profile=profile)
    assert [phase.name for phase in profile.phases] == ["count", "combine", "merge", "vocabulary"]
    assert (profile.num_bytes, profile.num_occurrences, profile.num_pieces) == (11, 4, 3)
    assert (profile.num_merges, profile.num_threads) == (2, 1)
    assert profile.seconds() == sum(profile.seconds(phase.name) for phase in profile.phases) > 0
    assert "MB/s on 1 thread; 4 pieces" in str(profile)
    assert "3 distinct pieces" in str(profile)


def test_bytes_that_are_no_text_are_refused_replaced_or_kept(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"abc \xff\xfe abc \xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8 text at byte 4; .*errors='replace'"):
        train_bpe_on_file(path, vocab_size=300)
    replaced = train_bpe_on_file(path, vocab_size=300, errors="replace")
    assert replaced.vocab == train_bpe(["abc \ufffd\ufffd abc \ufffd\ufffd"], vocab_size=300).vocab
    assert b" \xff\xfe" in train_bpe_on_file(path, vocab_size=300, errors="lossless").vocab.values()


def test_a_bad_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "bad.txt"
    with pytest.raises(ValueError, match=r"bad\.txt: no such file"):
        train_bpe_on_file(path, vocab_size=300)
    with pytest.raises(ValueError, match="no such file"):
        train_bpe_on_file(tmp_path, vocab_size=300)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad\.txt: the training text is empty"):
        train_bpe_on_file(path, vocab_size=300)
    path.write_bytes(b"\n")
    with pytest.raises(ValueError, match=r"bad\.txt, .*bad\.txt: the training text holds no two adjacent"):
        train_bpe_on_file([path, path], vocab_size=300)
    with pytest.raises(ValueError, match="no file: the training text is empty"):
        train_bpe_on_file([], vocab_size=300)


def test_an_error_among_the_texts_arrives_and_stops_the_threads(small_jobs):
    def texts():
        yield from [babble(8, 1000)] * 5
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_bpe(texts(), vocab_size=300)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="pattern 'gpt5' is not known; choose one of gpt2"):
        BPETrainer(pattern="gpt5")
    unchecked = inspect.unwrap(BPETrainer.__init__)  # the hook that checks shapes would speak first
    with pytest.raises(ValueError, match="tie rule 'first' is not known; choose one of bytes, hf, raw"):
        unchecked(BPETrainer(), tie="first")
    with pytest.raises(ValueError, match="errors setting 'ignore' is not known; choose one of strict"):
        unchecked(BPETrainer(), errors="ignore")
    with pytest.raises(ValueError, match="num_threads=0: must be at least 1"):
        BPETrainer(num_threads=0)
    with pytest.raises(ValueError, match="max_pieces=-1: must be at least 1"):
        BPETrainer(max_pieces=-1)
    with pytest.raises(ValueError, match="texts is one string"):
        train_bpe("text", vocab_size=300)
    with pytest.raises(ValueError, match="special token ''"):
        train_bpe(["text"], vocab_size=300, special_tokens=("",))


def test_surrogates_become_the_characters_they_stand_for_or_are_replaced():
    assert (
        train_bpe(["\ud83d\ude00 x"], vocab_size=270).vocab
        == train_bpe(["\U0001f600 x"], vocab_size=270).vocab
    )
    assert train_bpe(["\ud800x"], vocab_size=270).vocab == train_bpe(["\ufffdx"], vocab_size=270).vocab
