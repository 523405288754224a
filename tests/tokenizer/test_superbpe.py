"""SuperBPE, extending and cutting: ordinary training continued, with the plain reference as the judge."""

import logging
import random

import pytest

from scratchlm.tokenizer import TOKENIZERS, load_tokenizer
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_extend import cut_vocabulary, extend_bpe
from scratchlm.tokenizer.bpe_reference import count_words, encode_reference, learn_merges_reference
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.superbpe import SuperBPETrainer, train_superbpe

END = "<|endoftext|>"
WORDS = ["the", "cat", "by", "way", "said:", "12", "3,456", "...", "\u00e9t\u00e9", "!?"]
WORDS += ["".join(random.Random(seed).choices("aeilnort", k=2 + seed % 6)) for seed in range(150)]


def random_text(seed, num_words=400):
    rng = random.Random(seed)
    separators = [" ", " ", " ", " ", ", ", ". ", "\n", "  ", ": ", " '"]
    return "".join(WORDS[int(160 * rng.random() ** 3)] + rng.choice(separators) for _ in range(num_words))


def merges_by_reference(texts, num_first, num_second, tie="bytes", max_words=4):
    first = learn_merges_reference(
        count_words(texts, special_tokens=[END], pattern="gpt2"), num_first, tie=tie
    )
    phrases = count_words(texts, special_tokens=[END], pattern="superbpe")
    return first + learn_merges_reference(phrases, num_second, tie=tie, given=first, max_words=max_words)


@pytest.mark.parametrize("tie", ["bytes", "hf"])
def test_both_stages_equal_the_reference(tie):
    for seed in range(4):
        texts = [random_text(seed), random_text(seed + 50) + END + random_text(seed + 90)]
        trained = train_superbpe(texts, vocab_size=257 + 120, first_stage=60, tie=tie)
        assert trained.merges == merges_by_reference(texts, 60, 60, tie)


def test_tokens_hold_few_words_and_no_colon_before_a_blank():
    for max_words in (1, 2, 4):
        texts = [random_text(7, 2000)]
        trained = train_superbpe(texts, vocab_size=1000, first_stage=50, max_words=max_words)
        tokens = [left + right for left, right in trained.merges]
        assert max(len(token.split()) for token in tokens) == max_words
        assert not any(b": " in token for token in tokens)
        assert any(b" " in token.strip() for token in tokens) == (max_words > 1)


def test_ids_equal_the_references_and_the_text_comes_back():
    texts = [random_text(3, 1500)]
    trained = train_superbpe(texts, vocab_size=500, first_stage=100)
    for seed in range(20, 30):
        text = random_text(seed, 80)
        ids = trained.encode_ordinary(text)
        assert ids == encode_reference(text, trained.vocab, trained.merges, pattern="superbpe")
        assert trained.decode(ids) == text


def test_text_takes_fewer_tokens_than_with_words_alone(shared_data):
    path = shared_data / "tokenizer" / "cs336_fixtures" / "tinystories_sample.txt"
    text = path.read_text(encoding="utf-8").replace(END, "")
    words = train_bpe([text], vocab_size=1500)
    phrases = train_superbpe([text], vocab_size=1500, first_stage=700)
    assert len(phrases.encode(text)) < 0.9 * len(words.encode(text))


def test_a_file_texts_and_a_generator_give_the_same_tokenizer(tmp_path):
    text = random_text(5, 3000)
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode("utf-8"))
    trainer = SuperBPETrainer(vocab_size=400)
    expected = trainer.train([text])
    assert trainer.train(part for part in [text]).fingerprint == expected.fingerprint
    assert trainer.train_on_file(path).fingerprint == expected.fingerprint
    expected.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == expected.fingerprint
    assert loaded.encode(text) == expected.encode(text)


def test_superbpe_is_found_by_its_name():
    trained = TOKENIZERS.build("superbpe", vocab_size=300, first_stage=20).train([random_text(1)])
    assert trained.pattern == "superbpe"
    assert trained.vocab_size == 300


def test_a_first_stage_without_room_is_an_error():
    for first_stage in (0, 43, 100):
        with pytest.raises(ValueError, match=rf"first_stage={first_stage}: must be from 1 to 42"):
            SuperBPETrainer(vocab_size=300, first_stage=first_stage)
    with pytest.raises(ValueError, match="max_words=0: must be at least 1"):
        SuperBPETrainer(max_words=0)


# extending


@pytest.mark.parametrize("tie", ["bytes", "hf", "raw"])
def test_extending_with_the_same_text_equals_training_in_one_go(tie):
    texts = [random_text(2, 1500)]
    whole = train_bpe(texts, vocab_size=400, tie=tie)
    part = train_bpe(texts, vocab_size=300, tie=tie)
    extended = extend_bpe(part, texts, vocab_size=400, tie=tie)
    assert extended.merges == whole.merges
    if tie != "raw":  # there the special token has its id behind the merges, and keeps it
        assert extended.fingerprint == whole.fingerprint


def test_extending_keeps_the_old_ids_and_appends_the_new():
    old = train_bpe([random_text(2)], vocab_size=300, special_tokens=(END, "<|pad|>"))
    text = "Der Igel und der Hase liefen um die Wette. " * 30
    new = extend_bpe(old, [text], vocab_size=320, pattern="cl100k")
    assert new.pattern == "cl100k"
    assert new.vocab_size == 320
    assert {id: new.vocab[id] for id in old.vocab} == old.vocab
    assert new.special_tokens == old.special_tokens
    assert new.merges[: len(old.merges)] == old.merges
    assert len(new.encode(text)) < len(old.encode(text))
    words = count_words([text], special_tokens=[END], pattern="cl100k")
    assert new.merges[len(old.merges) :] == learn_merges_reference(words, 20, given=old.merges)


def test_extending_reports_counting_replaying_and_merging():
    calls = []
    old = train_bpe([random_text(2)], vocab_size=280)
    extend_bpe(old, [random_text(3)], vocab_size=300, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in calls)) == ["count", "replay", "merge"]
    assert calls[-1] == ("merge", 20, 20)


def test_a_vocabulary_that_cannot_be_extended_is_an_error(caplog):
    old = train_bpe(["abab abab"], vocab_size=259)
    with pytest.raises(ValueError, match=r"vocab_size=259: the tokenizer has 259 ids already"):
        extend_bpe(old, ["abab"], vocab_size=259)
    with pytest.raises(ValueError, match="no pair of tokens that could be merged"):
        extend_bpe(old, ["abab"], vocab_size=300)
    with pytest.raises(ValueError, match="texts is one string"):
        extend_bpe(old, "abab", vocab_size=300)
    with caplog.at_level(logging.WARNING, logger="scratchlm"):
        assert extend_bpe(old, ["abcd"], vocab_size=300).vocab_size == 261
    assert "vocab_size=300 cannot be reached: at 261" in caplog.text


def test_a_token_that_no_merge_makes_keeps_its_id_when_a_merge_makes_it():
    old = train_bpe(["xyxy"], vocab_size=258)
    odd = BPETokenizer({**old.vocab, 258: b"ab"}, old.merges, [END])
    extended = extend_bpe(odd, ["abc abc"], vocab_size=261)
    assert extended.vocab[258] == b"ab"
    assert sorted(extended.vocab) == list(range(len(extended.vocab)))


# cutting


@pytest.mark.parametrize("tie", ["bytes", "hf", "raw"])
def test_cutting_equals_training_at_the_smaller_size(tie):
    texts = [random_text(4, 1500)]
    large = train_bpe(texts, vocab_size=420, tie=tie)
    for vocab_size in (257, 300, 420):
        small = train_bpe(texts, vocab_size=vocab_size, tie=tie)
        assert cut_vocabulary(large, vocab_size).fingerprint == small.fingerprint


def test_cutting_below_the_bytes_or_above_the_vocabulary_is_an_error():
    trained = train_bpe([random_text(4)], vocab_size=300)
    for vocab_size in (256, 301):
        with pytest.raises(ValueError, match=rf"vocab_size={vocab_size}: .* cut to 257 .* up to 300"):
            cut_vocabulary(trained, vocab_size)


def test_the_scheme_is_an_argument_of_training():
    texts = ["the small cat saw the small dog. " * 30]
    ours = train_bpe(texts, vocab_size=300, scheme="superbpe", special_tokens=())
    assert ours.pattern == "superbpe"
    assert ours.fingerprint == SuperBPETrainer(vocab_size=300, special_tokens=()).train(texts).fingerprint
    with pytest.raises(ValueError, match="scheme 'super' is not known; choose one of bpe, superbpe"):
        train_bpe(texts, vocab_size=300, scheme="super")
