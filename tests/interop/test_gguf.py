"""GGUF files: what is in them is what was meant, and llama.cpp takes the same tokens as we do."""

import numpy as np
import pytest
import torch
from foreign_models import SHAPES, ids_of, make_run, tokenizer_of
from llama_server import LlamaCpp, greedy

from scratchlm.interop.gguf import q8_0, write_gguf
from scratchlm.interop.llama_cpp import export_gguf
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.tokenizer.formats import tokenizer_from_gguf_fields
from scratchlm.train.folder import load_run

gguf = pytest.importorskip("gguf", reason="the extra acceptance is not installed")


def read(path):
    """The file's fields and tensors as llama.cpp's own package reads them."""
    found = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in found.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in found.tensors}


def test_every_type_of_field_and_tensor_is_read_back(tmp_path):
    fields = {
        "general.architecture": "llama",
        "a.number": 3,
        "a.float": 0.5,
        "a.truth": True,
        "texts": ["x", "caf\u00e9", ""],
        "numbers": [1, -2],
    }
    rng = np.random.default_rng(0)
    tensors = {
        "matrix": rng.standard_normal((3, 64), np.float32),
        "narrow": rng.standard_normal((2, 33), np.float32),
        "vector": rng.standard_normal(5, np.float32),
    }
    for format, names in {
        "f32": ["F32", "F32", "F32"],
        "f16": ["F16", "F16", "F32"],
        "q8_0": ["Q8_0", "F16", "F32"],
    }.items():
        write_gguf(tmp_path / format, fields, tensors, format=format)
        told, found = read(tmp_path / format)
        assert told == fields
        assert [found[name].tensor_type.name for name in tensors] == names
        for name, value in tensors.items():
            assert found[name].shape.tolist() == list(value.shape[::-1])
            wanted = gguf.quantize(value, found[name].tensor_type)
            assert np.array_equal(found[name].data.reshape(wanted.shape), wanted), (format, name)


def test_q8_0_rounds_as_llama_cpp_does_bit_for_bit():
    rng = np.random.default_rng(1)
    blocks = rng.standard_normal((200, 32)).astype(np.float32) * 10.0 ** rng.integers(-30, 4, (200, 1))
    blocks = blocks.astype(np.float32)
    blocks[0], blocks[1], blocks[2] = 0, np.arange(32) + 0.5, 127
    wanted = gguf.quantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(q8_0(blocks), wanted)


@pytest.mark.parametrize("shape", ["llama tied", "qwen3"])
def test_a_file_says_what_the_model_is(tmp_path, shape):
    tokenizer = tokenizer_of("cl100k", chat=True)
    run = load_run(make_run(tmp_path / "run", shape, tokenizer=tokenizer), device="cpu")
    export_gguf(run, tmp_path / "m.gguf", format="q8_0")
    fields, tensors = read(tmp_path / "m.gguf")
    kind = shape.split()[0]
    wanted = {
        "general.architecture": kind,
        f"{kind}.attention.head_count": 4,
        f"{kind}.attention.head_count_kv": run.model.config.kv_heads,
        f"{kind}.rope.dimension_count": 8,
        f"{kind}.context_length": 64,
        "tokenizer.ggml.pre": "dbrx",
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_text_id,
        "tokenizer.ggml.eot_token_id": tokenizer.special_tokens["<|end|>"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": ChatTemplate(tokenizer).jinja,
    }
    assert {key: fields[key] for key in wanted} == wanted
    assert tokenizer_from_gguf_fields(fields).fingerprint == tokenizer.fingerprint
    assert "output.weight" not in tensors  # tied
    assert ("blk.1.attn_q_norm.weight" in tensors) == (kind == "qwen3")


@pytest.mark.parametrize(
    ("settings", "pattern", "message"),
    [
        ({"feedforward": {"name": "gelu", "approximate": "none"}}, "gpt2", "approximate=none"),
        ({}, "o200k", "llama.cpp's version of o200k"),
    ],
)
def test_what_llama_cpp_does_otherwise_is_refused(tmp_path, settings, pattern, message):
    shape = "gpt2" if settings else "llama"
    run = load_run(
        make_run(tmp_path / "run", shape, tokenizer=tokenizer_of(pattern), **settings), device="cpu"
    )
    with pytest.raises(ValueError, match=message):
        export_gguf(run, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


QUICK = {"llama", "qwen3 wide", "gpt2"}


@pytest.mark.parametrize(
    "shape",
    [
        shape if shape in QUICK else pytest.param(shape, marks=pytest.mark.slow)
        for shape in SHAPES
        if shape != "gpt2 plain"
    ],
)
def test_llama_cpp_takes_the_same_tokens(tmp_path, shape):
    tokenizer = tokenizer_of(chat=shape == "llama")
    run = load_run(make_run(tmp_path / "run", shape, tokenizer=tokenizer), device="cpu")
    prompt = ids_of(tokenizer.vocab_size, 1, 16)[0].tolist()
    for format in ("f32", "f16", "q8_0"):
        export_gguf(run, tmp_path / format, format=format)
    theirs = LlamaCpp(tmp_path / "f32")
    assert theirs.greedy(prompt, 32) == greedy(run, prompt, 32)
    text = "The caf\u00e9's 12345 cats\n\n  sat on <|end|>"
    plain = theirs.ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
    assert plain == tokenizer.encode_ordinary(text)
    begun = theirs.ask("/tokenize", content="The cat", add_special=True)["tokens"]
    assert begun == [tokenizer.end_of_text_id, *tokenizer.encode_ordinary("The cat")]
    messages = [{"role": "user", "content": "The cat?"}]
    chat = theirs.ask("/apply-template", messages=messages)["prompt"]
    ids = theirs.ask("/tokenize", content=chat, add_special=True, parse_special=True)["tokens"]
    assert ids == ChatTemplate(tokenizer).render(messages)
    del theirs
    # in q8_0 weights and vectors are rounded to a 127th of the largest of 32; another order would be off by 4
    for format, allowed in (("f32", 0.01), ("f16", 0.01), ("q8_0", 0.4)):
        theirs = LlamaCpp(tmp_path / format)
        for rows in range(1, 9):  # where a token is part of a character, llama.cpp tells nothing
            prompt = ids_of(tokenizer.vocab_size, rows, 16)[-1].tolist()
            found = theirs.log_probabilities(prompt, tokenizer.vocab_size)
            if found:
                break
        with torch.no_grad():
            ours = run.model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        assert len(found) == tokenizer.vocab_size
        worst = max(abs(found[id] - ours[id].item()) for id in found)
        assert worst < allowed, (format, worst)
