"""The word tokenizer: what is a word, what happens to the others, and that nothing is lost when spelled."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS, load_tokenizer
from scratchlm.tokenizer.words import WordTokenizer

BYTES = 256
SAMPLE = WordTokenizer(["the", " cat", " sat", "'t", "\n\n", " \u00e9t\u00e9", "\u4e2d\u6587"])


def test_a_word_and_a_word_behind_a_blank_are_one_id_each():
    tokenizer = WordTokenizer(["the", " cat", "cat"])
    assert tokenizer.encode("the cat") == [257, 258]
    assert tokenizer.encode("cat") == [259]
    assert tokenizer.vocab_size == 1 + BYTES + 3
    assert tokenizer.encode(f"cat{END_OF_TEXT}", allowed_special="all") == [259, tokenizer.end_of_text_id]


def test_unknown_words_follow_the_rule():
    words = ["the", " cat"]
    assert WordTokenizer(words).encode("the ox") == [257, 1 + 32, 1 + 111, 1 + 120]
    unk = WordTokenizer(words, unknown="unk")
    assert unk.encode("the ox cat ox") == [2, 1, 3, 1]
    assert unk.decode(unk.encode("the ox cat")) == "the\ufffd cat"
    assert unk.encode("\ufffd") == [1]
    with pytest.raises(ValueError, match="word ' ox' is not in the vocabulary of 2 words; add it"):
        WordTokenizer(words, unknown="error").encode("the ox")


def test_a_word_of_one_byte_is_that_byte():
    tokenizer = WordTokenizer(["a", " b", "\u00e9"])
    assert tokenizer.words == [" b", "\u00e9"]
    assert tokenizer.encode("a b") == [1 + 97, 257]
    assert len(set(map(tokenizer.token_bytes, range(1, tokenizer.vocab_size)))) == tokenizer.vocab_size - 1


def test_lower_case_finds_capitals_and_gives_them_back_small():
    tokenizer = WordTokenizer(["The", " cat"], case="lower")
    assert tokenizer.encode("THE CAT") == tokenizer.encode("the cat") == [257, 258]
    assert tokenizer.decode(tokenizer.encode("The Cat \u00c9T\u00c9")) == "the cat \u00e9t\u00e9"


alphabet = st.sampled_from(
    [*"thecas '\n\t.1", "\u00e9", "\u0130", "\u4e2d\u6587", "\U0001f600", "\ufffd", "the cat"]
)


@given(st.one_of(st.text(), st.lists(alphabet).map("".join)))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_spelling_loses_nothing(text):
    ids = SAMPLE.encode_ordinary(text)
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert SAMPLE.decode(ids, errors="strict") == repaired
    assert list(SAMPLE.encode_iterable(text, disallowed_special=())) == ids


def test_the_most_frequent_words_of_the_corpus_are_learnt():
    texts = [f"the cat the cat the dog{END_OF_TEXT}the end", "the"]
    tokenizer = TOKENIZERS.build("words", vocab_size=1 + BYTES + 3).train(texts)
    assert tokenizer.words == ["the", " cat", " the"]  # 3, 2, 2; ties in the order of the alphabet
    everything = TOKENIZERS.build("words", unknown="unk").train(texts)
    assert everything.words == ["the", " cat", " the", " dog", " end"]
    assert everything.vocab_size == 7


def test_a_given_list_is_the_vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("cat\r\n\n  dog  \ndon't\n", encoding="utf-8")
    tokenizer = TOKENIZERS.build("words", words=("the",), words_file=str(path), unknown="error").train([])
    assert set(tokenizer.words) == {"the", " the", "cat", " cat", "dog", " dog", "don", " don", "'t"}
    assert len(tokenizer.encode("the cat don't dog")) == 5
    with pytest.raises(ValueError, match="word ' ox'"):
        tokenizer.encode("the ox")


def test_a_list_with_a_size_keeps_the_most_frequent_of_its_words():
    trainer = TOKENIZERS.build("words", words=("cat", "dog", "ox"), unknown="unk", vocab_size=2 + 2)
    assert trainer.train(["dog ox ox cow cow cow"]).words == [" ox", "dog"]


def test_a_corpus_with_unknown_words_is_refused_where_the_rule_says_so():
    with pytest.raises(ValueError, match="word ' ox' is not in the vocabulary of 2 words"):
        TOKENIZERS.build("words", words=("cat",), unknown="error").train(["cat ox"])


def test_words_of_real_text_round_trip(shared_data):
    text = (shared_data / "pretrain" / "owt_a_valid.txt").read_text(encoding="utf-8")
    tokenizer = TOKENIZERS.build("words").train([text])
    assert tokenizer.vocab_size == 8192
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    chunks = (text[i : i + 1000] for i in range(0, len(text), 1000))
    assert list(tokenizer.encode_iterable(chunks, disallowed_special=())) == ids


def test_errors_are_clear(tmp_path):
    with pytest.raises(ValueError, match="training text is empty"):
        TOKENIZERS.build("words").train([""])
    with pytest.raises(ValueError, match="needs at least one word"):
        WordTokenizer([], unknown="unk")
    with pytest.raises(ValueError, match="rule for unknown words 'x'"):
        WordTokenizer(["a"], unknown="x")
    with pytest.raises(ValueError, match="rule for case 'upper'"):
        WordTokenizer(["a"], case="upper")
    with pytest.raises(ValueError, match="pattern 'gpt9'"):
        TOKENIZERS.build("words", pattern="gpt9")
    with pytest.raises(ValueError, match=r"vocab_size=257 is too small: .* take 257; choose at least 258"):
        TOKENIZERS.build("words", vocab_size=257)
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        TOKENIZERS.build("words", words_file=str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no word"):
        TOKENIZERS.build("words", words_file=str(tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("words", None),
        ("words", [1]),
        ("special_tokens", {"a": 1}),
        ("special_tokens", [""]),
        ("unknown", 1),
        ("unknown", "x"),
        ("case", None),
        ("pattern", "gpt9"),
    ],
)
def test_a_wrong_value_in_a_file_is_an_error_that_names_it(tmp_path, key, value):
    path = tmp_path / "wrong.json"
    SAMPLE.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"wrong\.json: "):
        load_tokenizer(path)


def test_files_keep_everything(tmp_path):
    tokenizer = WordTokenizer(
        ["a b", " c"], unknown="unk", case="lower", pattern="o200k", special_tokens=["<s>"]
    )
    tokenizer.save(tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.unknown, loaded.case, loaded.pattern) == ("unk", "lower", "o200k")
    assert loaded.special_tokens == {"<s>": 0}
