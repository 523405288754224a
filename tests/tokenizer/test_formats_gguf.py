"""The tokenizer's fields of a GGUF file: both ways; what llama.cpp would split otherwise is refused."""

import numpy as np
import pytest

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.formats import gguf_fields, load_gpt2, tokenizer_from_gguf_fields

CORPUS = ["It's the cat, they're THERE 12 \u00e9t\u00e9\n\n " * 9]
SPECIALS = ("<|endoftext|>", "<|user|>")


def make(pattern="gpt2", extra=(), **settings):
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=300, special_tokens=SPECIALS, pattern=pattern)
    vocab |= dict(enumerate(extra, len(vocab)))
    return BPETokenizer(vocab, merges, SPECIALS, pattern=pattern, **settings)


@pytest.mark.parametrize(
    ("pattern", "ignore_merges", "pre", "back"),
    [
        ("gpt2", False, "gpt-2", "gpt2"),
        ("gpt2", True, "gpt-2", "gpt2"),
        ("cl100k", False, "dbrx", "cl100k"),
        ("llama3", False, "dbrx", "cl100k"),
        ("llama3", True, "llama-bpe", "llama3"),
        ("qwen2", False, "qwen2", "qwen2"),
    ],
)
def test_fields_say_everything(pattern, ignore_merges, pre, back):
    ours = make(pattern, ignore_merges=ignore_merges)
    fields = gguf_fields(ours)
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == pre
    assert fields["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|user|>", "\u0100"]
    assert fields["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == ours.vocab_size
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is False
    loaded = tokenizer_from_gguf_fields(fields)
    assert (loaded.pattern, loaded.ignore_merges) == (back, pre == "llama-bpe")
    assert (loaded.vocab, loaded.merges) == (ours.vocab, ours.merges)
    assert loaded.special_tokens == ours.special_tokens
    assert loaded.encode(CORPUS[0]) == ours.encode(CORPUS[0])


def test_fields_of_gpt2(shared_data):
    folder = shared_data / "tokenizer" / "vocab"
    gpt2 = load_gpt2(folder / "gpt2_encoder.json", folder / "gpt2_vocab.bpe")
    fields = gguf_fields(gpt2)
    assert fields["tokenizer.ggml.merges"][0] == "\u0120 t"
    assert fields["tokenizer.ggml.tokens"][50256] == "<|endoftext|>"
    assert fields["tokenizer.ggml.token_type"].count(3) == 1
    assert tokenizer_from_gguf_fields(fields).fingerprint == gpt2.fingerprint


def test_what_llama_cpp_splits_otherwise_is_refused_unless_wanted():
    with pytest.raises(ValueError, match=r"llama\.cpp's version of o200k .*approximate=True"):
        gguf_fields(make("o200k"))
    assert gguf_fields(make("o200k"), approximate=True)["tokenizer.ggml.pre"] == "gpt-4o"
    with pytest.raises(ValueError, match=r"llama\.cpp does not normalize text, this tokenizer does \(NFC\)"):
        gguf_fields(make("qwen2", normalization="NFC"))
    assert gguf_fields(make("qwen2", normalization="NFC"), approximate=True)["tokenizer.ggml.pre"] == "qwen2"
    with pytest.raises(
        ValueError, match=r"cannot split by pattern 'superbpe' .*it knows cl100k, gpt2, o200k"
    ):
        gguf_fields(make("superbpe"))
    with pytest.raises(ValueError, match="'gpt2' with ignore_merges=True"):
        gguf_fields(make("gpt2", [b"qzqz\xff"], ignore_merges=True))


def test_rows_without_a_token_are_unused():
    full = make("gpt2")
    vocab = {id + 2 * (id > 270): token for id, token in full.vocab.items()}
    ours = BPETokenizer(vocab, full.merges, SPECIALS)
    size = ours.vocab_size
    fields = gguf_fields(ours, num_tokens=320)
    assert fields["tokenizer.ggml.tokens"][271:273] == ["[UNUSED_271]", "[UNUSED_272]"]
    assert [id for id, type in enumerate(fields["tokenizer.ggml.token_type"]) if type == 5] == [
        271, 272, *range(size, 320)
    ]  # fmt: skip
    assert tokenizer_from_gguf_fields(fields).fingerprint == ours.fingerprint
    with pytest.raises(ValueError, match=f"num_tokens=9 must be from {size}, the vocabulary's size"):
        gguf_fields(ours, num_tokens=9)
    clash = make("gpt2", [b"[UNUSED_310]"])
    with pytest.raises(ValueError, match=r"reads like \[UNUSED_"):
        gguf_fields(clash, num_tokens=320)


def test_roles_are_written():
    fields = gguf_fields(make(), roles={"bos": "<|user|>", "padding": "<|endoftext|>"})
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.padding_token_id"] == 0
    assert "tokenizer.ggml.eos_token_id" not in fields
    with pytest.raises(ValueError, match="role of a special token 'end' is not known; choose one of bos"):
        gguf_fields(make(), roles={"end": "<|user|>"})


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("model", "llama", "model='llama': only 'gpt2'"),
        ("model", None, "model=None"),
        ("pre", "tekken", "pre='tekken': none of our patterns; known: chatglm-bpe"),
        ("pre", None, "pre=None"),
        ("pre", ["gpt-2"], "pre="),
        ("tokens", "abc", "tokens must be a list of texts"),
        ("tokens", [1, 2], "tokens must be a list of texts"),
        ("tokens", None, "tokens must be a list of texts; it is None"),
        ("tokens", ["a", "a"], "expected 2 numbers"),
        ("token_type", [1], "token_type: expected 283 numbers"),
        ("token_type", [6] * 283, "token_type: expected 283 numbers"),
        ("token_type", ["x"] * 283, "token_type: expected 283 numbers"),
        ("token_type", [[]] * 283, "token_type: expected 283 numbers"),
        ("token_type", 3, "token_type: expected 283 numbers"),
        ("token_type", [5] * 283, "no id"),
        ("merges", ["ab"], "merge 'ab' is not two tokens"),
        ("merges", ["q z"], "b'qz' is not in the vocabulary"),
    ],
)
def test_wrong_fields_are_refused_by_name(key, value, problem):
    fields = gguf_fields(make())
    fields["tokenizer.ggml." + key] = value
    with pytest.raises(ValueError, match=problem):
        tokenizer_from_gguf_fields(fields)


def test_arrays_tuples_other_keys_and_user_defined_tokens_are_read(caplog):
    ours = make()
    fields = gguf_fields(ours) | {"general.name": "x", "tokenizer.ggml.add_bos_token": True}
    types = np.array(fields["tokenizer.ggml.token_type"], np.int32)
    types[1] = 4
    fields["tokenizer.ggml.token_type"] = types
    fields["tokenizer.ggml.tokens"] = tuple(fields["tokenizer.ggml.tokens"])
    assert tokenizer_from_gguf_fields(fields).fingerprint == ours.fingerprint
    assert "tokenizer.ggml.add_bos_token: not part of encoding here" in caplog.text
