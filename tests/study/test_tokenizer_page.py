"""Figures of tokenizers and the page made of them."""

import re

import pytest

from scratchlm.study.tokenizer_figures import compress, examine, language_samples, pieces
from scratchlm.study.tokenizer_page import write_tokenizer_page
from scratchlm.tokenizer.bpe_train import train_bpe

TEXT = "the dragon and the small dog saw the dragon " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], vocab_size=290)


def test_compression_counts_bytes_characters_and_tokens(tokenizer):
    found = compress(tokenizer, "x", ["caf\u00e9", "the dragon"])
    assert (found.num_bytes, found.num_characters) == (15, 14)
    assert found.num_tokens == len(tokenizer.encode("caf\u00e9")) + len(tokenizer.encode("the dragon"))
    assert found.bytes_per_token == 15 / found.num_tokens


def test_entries_are_counted_on_the_corpora(tokenizer):
    figures = examine("t", tokenizer, [("one", [TEXT, TEXT]), ("two", ["dog"])])
    ids = tokenizer.encode_ordinary(TEXT) * 2 + tokenizer.encode_ordinary("dog")
    top = figures.frequent[0]
    assert top.count == ids.count(top.id) == max(map(ids.count, set(ids)))
    assert figures.num_unused == tokenizer.vocab_size - len(tokenizer.special_tokens) - len(set(ids))
    assert figures.corpus_total.num_tokens == len(ids)
    assert sum(figures.lengths) == tokenizer.vocab_size - 1
    assert figures.longest[0].token == max(
        tokenizer.vocab.values(), key=lambda token: (b"<|" not in token, len(token))
    )


def test_every_language_holds_the_same_articles():
    samples = language_samples()
    assert len(samples) == 26
    assert samples[0].name == "English"
    assert all(len(sample.text.splitlines()) == 3 for sample in samples)


def test_pieces_join_to_the_text_and_keep_every_id(tokenizer):
    text = "the \u4f60\u597d dragon \U0001f409"
    found = pieces(tokenizer, text)
    assert "".join(piece.text for piece in found) == text
    assert [id for piece in found for id in piece.ids] == tokenizer.encode_ordinary(text)


def test_the_page_escapes_text_and_shows_both_tokenizers(tokenizer, tmp_path):
    other = train_bpe(["a different text, with other words, other words"], vocab_size=280)
    figures = [examine("first <b>", tokenizer, [("c", [TEXT])]), examine("second", other, [("c", [TEXT])])]
    path = tmp_path / "page.html"
    write_tokenizer_page(path, figures, [tokenizer, other], "<script>the</script> dragon")
    html = path.read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "first &lt;b&gt;" in html
    cut = re.findall(r'<blockquote class="cut">(.*?)</blockquote>', html, re.DOTALL)
    assert len(cut) == 2
    shown = re.sub("<[^>]*>", "", cut[0]).replace("&lt;", "<").replace("&gt;", ">")
    assert shown == "<script>the</script> dragon"


def test_a_tokenizer_of_characters_is_shown_as_well(tmp_path):
    from scratchlm.tokenizer import TOKENIZERS

    characters = TOKENIZERS.build("chars", unknown="replace").train(["some characters of a text"])
    write_tokenizer_page(tmp_path / "page.html", [examine("chars", characters)], [characters])
    assert "chars" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_languages_that_a_tokenizer_refuses_are_left_out(tokenizer, tmp_path):
    from scratchlm.tokenizer import TOKENIZERS

    strict = TOKENIZERS.build("chars", unknown="error").train([language_samples()[0].text])
    figures = [examine("strict", strict), examine("bytes", tokenizer)]
    assert [one.name for one in figures[0].languages] == ["English"]
    write_tokenizer_page(tmp_path / "page.html", figures, [strict, tokenizer], "born free")
