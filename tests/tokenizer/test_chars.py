"""The character tokenizer: one id per character and a stated rule for characters it does not know."""

import pytest

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS
from scratchlm.tokenizer.chars import CharTokenizer


def test_ids_follow_the_code_points():
    tokenizer = TOKENIZERS.build("chars").train(["ba", "\u00e9" + END_OF_TEXT])
    assert tokenizer.characters == "ab\u00e9"
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("ab\u00e9") == [2, 3, 4]
    assert tokenizer.decode([2, 3, 4]) == "ab\u00e9"
    assert tokenizer.encode(f"a{END_OF_TEXT}", allowed_special="all") == [2, tokenizer.end_of_text_id]


def test_unknown_characters_follow_the_rule():
    assert CharTokenizer("ab", unknown="replace").decode(CharTokenizer("ab").encode("axb")) == "a\ufffdb"
    drop = CharTokenizer("ab", unknown="drop")
    assert drop.decode(drop.encode("xaxbx")) == "ab"
    with pytest.raises(
        ValueError, match=r"character 'x' \(number 1 of the text\) is not in the vocabulary of 2"
    ):
        CharTokenizer("ab", unknown="error").encode("axb")
    assert CharTokenizer("ab").encode("a\ud800") == [2, 1]


def test_allowed_characters_are_the_vocabulary():
    tokenizer = TOKENIZERS.build("chars", allowed="zabc").train(["abba?"])
    assert tokenizer.characters == "abcz"
    with pytest.raises(ValueError, match=r"character '\?'"):
        TOKENIZERS.build("chars", allowed="abc", unknown="error").train(["abba?"])


def test_chunks_and_batches_encode_like_the_whole():
    tokenizer = CharTokenizer("abc \n")
    text = "abc \n" * 5000 + "xyz"
    assert list(
        tokenizer.encode_iterable(text[i : i + 3] for i in range(0, len(text), 3))
    ) == tokenizer.encode(text)
    assert tokenizer.encode_batch([text], num_threads=2)[0].tolist() == tokenizer.encode(text)
    assert tokenizer.encode("") == []


def test_errors_are_clear():
    with pytest.raises(ValueError, match="training text is empty"):
        TOKENIZERS.build("chars").train([""])
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer("")
    with pytest.raises(ValueError, match="rule for unknown characters 'x'"):
        CharTokenizer("a", unknown="x")
    with pytest.raises(ValueError, match="not in this tokenizer's vocabulary"):
        CharTokenizer("a").decode([9])
