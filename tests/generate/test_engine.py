"""The engine: the cache changes nothing, stop strings end the text, characters arrive whole."""

import itertools

import pytest
import torch

from scratchlm.generate import SamplingConfig, generate_text, stream
from scratchlm.generate.text import HeldText, overlap
from scratchlm.model import MODELS, ModelConfig
from scratchlm.model.position import POSITIONS
from scratchlm.tokenizer.base import END_OF_TEXT


def lively(**settings):
    torch.manual_seed(1)
    base = {"vocab_size": 257, "context_length": 16, "d_model": 32, "num_layers": 2, "num_heads": 4}
    model = MODELS.build("transformer", ModelConfig(**{**base, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "ffn" in name:
                parameter.mul_(3)  # large enough that the text depends on the past
        model.lm_head.weight[0] = 0  # the end of the text is never the likeliest
    return model


class Scripted(torch.nn.Module):
    """A model that says what it was told to, and notes how many tokens each pass had."""

    def __init__(self, ids, context_length=64):
        super().__init__()
        self.config = ModelConfig(vocab_size=257, context_length=context_length)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.script, self.passes = list(ids), []

    def make_cache(self):
        return MODELS.build("bigram", self.config).make_cache()

    def hidden(self, token_ids, *, cache=None):
        self.passes.append(token_ids.shape[1])
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return torch.zeros(*token_ids.shape, 1)

    def head(self, hidden):
        logits = torch.zeros(*hidden.shape[:-1], 257)
        logits[..., self.script.pop(0)] = 100.0
        return logits


def says(text, *, end=False):
    return Scripted([byte + 1 for byte in text.encode()] + ([0] if end else []))


@pytest.mark.parametrize(
    ("position", "kv_heads", "window"), list(itertools.product(POSITIONS.names(), (4, 2), (None, 5)))
)
def test_greedy_output_with_and_without_cache_is_identical(tokenizer, position, kv_heads, window):
    model = lively(position=position, num_kv_heads=kv_heads, window=window)
    config = SamplingConfig(temperature=0.0, max_new_tokens=40)  # slides over the 16 tokens three times
    cached = list(stream(model, tokenizer, "abc", config))
    whole = list(stream(model, tokenizer, "abc", config, use_cache=False))
    assert [piece.token_id for piece in cached] == [piece.token_id for piece in whole]
    assert len({piece.token_id for piece in cached}) > 3
    for one, other in zip(cached, whole, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_sampled_output_depends_on_the_seed_only(tokenizer):
    model = lively()
    texts = [
        generate_text(model, tokenizer, "a", SamplingConfig(max_new_tokens=30, seed=seed, temperature=0.9))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_is_computed_once_and_then_one_token_a_step(tokenizer):
    model = says("hello")
    assert generate_text(model, tokenizer, "four", SamplingConfig(max_new_tokens=5)) == "hello"
    assert model.passes == [5, 1, 1, 1, 1]  # the end-of-text token stands before the prompt


def test_a_full_window_is_computed_again_from_its_last_half(tokenizer):
    model = Scripted([byte + 1 for byte in b"abcdefghijklmn"], context_length=8)
    assert generate_text(model, tokenizer, "x", SamplingConfig(max_new_tokens=14)) == "abcdefghijklmn"
    assert model.passes == [2, 1, 1, 1, 1, 1, 1, 5, 1, 1, 1, 5, 1, 1]


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_the_smallest_windows_work(tokenizer, context_length):
    model = lively(context_length=context_length)
    config = SamplingConfig(temperature=0.0, max_new_tokens=6)
    assert len(list(stream(model, tokenizer, "abc", config))) == 6


def test_a_prompt_longer_than_the_context_keeps_its_end(tokenizer):
    model = lively()
    config = SamplingConfig(temperature=0.0, max_new_tokens=5)
    assert generate_text(model, tokenizer, "y" * 50 + "0123456789abcdef", config) == generate_text(
        model, tokenizer, "n" * 50 + "0123456789abcdef", config
    )


def test_an_empty_prompt_starts_a_document(tokenizer):
    model = says("hi")
    assert generate_text(model, tokenizer, "", SamplingConfig(max_new_tokens=2)) == "hi"
    assert model.passes[0] == 1


def test_special_tokens_in_a_prompt_are_plain_text(tokenizer):
    model = says("!")
    generate_text(model, tokenizer, END_OF_TEXT, SamplingConfig(max_new_tokens=1))
    assert model.passes[0] == 1 + len(END_OF_TEXT)


def test_the_end_of_text_token_ends_the_text(tokenizer):
    pieces = list(stream(says("abc", end=True), tokenizer, "", SamplingConfig()))
    assert [piece.text for piece in pieces] == ["a", "b", "c", ""]
    assert pieces[-1].token_id == tokenizer.end_of_text_id


def test_no_tokens_asked_for_none_given(tokenizer):
    assert list(stream(says("abc"), tokenizer, "x", SamplingConfig(max_new_tokens=0))) == []


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two EEND", ("END",), "one EN two E"),
        ("abab|ababc", ("ababc",), "abab|"),
        ("xayb", ("b", "ay"), "x"),
        ("no stop here", ("",), "no stop here"),
        ("it ends with EN", ("END",), "it ends with EN"),
        ("START", ("START",), ""),
    ],
)
def test_stop_strings_span_tokens_and_are_not_emitted(tokenizer, text, stop, expected):
    config = SamplingConfig(max_new_tokens=len(text), stop=stop)
    pieces = list(stream(says(text), tokenizer, "", config))
    assert "".join(piece.text for piece in pieces) == expected


def test_held_text_comes_out_when_the_document_ends(tokenizer):
    assert generate_text(says("the EN", end=True), tokenizer, "", SamplingConfig(stop=("END",))) == "the EN"


def test_characters_arrive_whole(tokenizer):
    text = "a\u00e9\u4f60\U0001f600z"
    pieces = list(stream(says(text), tokenizer, "", SamplingConfig(max_new_tokens=len(text.encode()))))
    assert "".join(piece.text for piece in pieces) == text
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert [piece.text for piece in pieces][:3] == ["a", "", "\u00e9"]


def test_half_a_character_at_the_end_becomes_the_replacement_character(tokenizer):
    pieces = list(stream(says("a\u4f60"), tokenizer, "", SamplingConfig(max_new_tokens=3)))
    assert "".join(piece.text for piece in pieces) == "a\ufffd"


def test_probabilities_are_those_of_the_model_before_temperature(tokenizer):
    model = lively()
    config = SamplingConfig(temperature=0.2, top_k=3, max_new_tokens=5, repetition_penalty=1.3)
    ids = [tokenizer.end_of_text_id, *tokenizer.encode_ordinary("ab")]
    for piece in stream(model, tokenizer, "ab", config):
        expected = torch.softmax(model(torch.tensor([ids]))[0, -1], dim=0)[piece.token_id].item()
        assert piece.probability == pytest.approx(expected, rel=1e-3)
        ids.append(piece.token_id)


def test_a_model_in_training_stays_in_training_and_is_sampled_without_dropout(tokenizer):
    model = lively(dropout=0.5).train()
    config = SamplingConfig(temperature=0.0, max_new_tokens=8)
    trained = generate_text(model, tokenizer, "a", config)
    assert model.training
    assert trained == generate_text(model.eval(), tokenizer, "a", config)


def test_the_bigram_generates_too(tokenizer):
    model = MODELS.build("bigram", ModelConfig(name="bigram", vocab_size=257, context_length=4))
    with torch.no_grad():
        for current, following in itertools.pairwise(b"abca"):
            model.token_embeddings.weight[current + 1, following + 1] = 50.0
    config = SamplingConfig(temperature=0.0, max_new_tokens=7)
    assert generate_text(model, tokenizer, "a", config) == "bcabcab"


def test_overlap_of_worked_examples():
    assert overlap("the EN", "END") == 2
    assert overlap("the END", "END") == 0
    assert overlap("aaa", "aab") == 2
    assert overlap("", "END") == 0


def test_held_text_lets_go_as_soon_as_it_can():
    held = HeldText(("END", "END!"))
    assert [held.push(text) for text in ("the E", "N", "ough", " END")] == ["the ", "", "ENough", " "]
    assert held.stopped
    assert held.push("more") == ""
