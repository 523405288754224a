"""Exported folders open in transformers with the same logits, tokens and ids; what it saves opens here."""

import json

import pytest
import torch
from foreign_models import SHAPES, ids_of, make_run, tokenizer_of

from scratchlm.generate.engine import generate_text
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.interop.hf import export_hf
from scratchlm.interop.hf_read import import_hf
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import load_run

transformers = pytest.importorskip("transformers", reason="the extra acceptance is not installed")


def opened(folder, dtype=torch.float32):
    """The folder's model in transformers, after checking that no weight is missing or left over."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    """Logits of a model of ours or of theirs."""
    found = model(ids)
    return found if isinstance(found, torch.Tensor) else found.logits


def assert_same(ours, theirs, vocab_size):
    """Equal logits to 1e-5 over 24 tokens, and 32 equal tokens taken greedily."""
    ids = ids_of(vocab_size)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), atol=1e-5, rtol=1e-5)
    a = b = ids[:1, :16]
    for _ in range(32):
        a = torch.cat([a, logits_of(ours, a)[:, -1:].argmax(-1)], 1)
    b = theirs.generate(b, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert a.tolist() == b.tolist()


QUICK = ("llama", "qwen3 wide", "gpt2 plain")


@pytest.mark.parametrize(
    "shape", [shape if shape in QUICK else pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES]
)
def test_transformers_computes_what_we_compute_and_back(tmp_path, shape):
    run = load_run(make_run(tmp_path / "run", shape), device="cpu")
    table = export_hf(run, tmp_path / "hf", shard_bytes=20_000 if shape == "llama" else 10**9)
    theirs = opened(tmp_path / "hf")
    assert type(theirs).__name__ == table["architectures"][0]
    assert type(theirs).__name__.lower().startswith(shape.split()[0])
    assert_same(run.model, theirs, run.tokenizer.vocab_size)
    import_hf(tmp_path / "hf", tmp_path / "back")
    back = load_run(tmp_path / "back", device="cpu")
    ids = ids_of(run.tokenizer.vocab_size)
    torch.testing.assert_close(logits_of(back.model, ids), logits_of(run.model, ids), atol=1e-5, rtol=1e-5)
    assert back.tokenizer.fingerprint == run.tokenizer.fingerprint


def test_the_tokenizer_and_the_chat_are_the_same(tmp_path):
    tokenizer = tokenizer_of("cl100k", chat=True)
    run = load_run(make_run(tmp_path / "run", tokenizer=tokenizer), device="cpu")
    export_hf(run, tmp_path / "hf", dtype="bfloat16")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    text = "The caf\u00e9's 12345 cats\n\n  sat."
    assert theirs(text).input_ids == tokenizer.encode_ordinary(text)
    messages = [{"role": "user", "content": "The cat?"}, {"role": "assistant", "content": " sat\n"}]
    for prompt in (True, False):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert ids == ChatTemplate(tokenizer).render(messages, prompt)
    assert (theirs.eos_token, theirs.model_max_length) == (END_OF_TEXT, 64)
    model = opened(tmp_path / "hf", dtype="auto")
    assert model.dtype == torch.bfloat16
    ends = [tokenizer.special_tokens["<|end|>"], tokenizer.end_of_text_id]
    assert model.generation_config.eos_token_id == ends
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "| vocabulary | 291 |" in card
    assert '"qk_norm": false' in card


def test_greedy_text_is_that_of_our_own_generate(tmp_path):
    run = load_run(make_run(tmp_path / "run"), device="cpu")
    export_hf(run, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    ids = tokenizer(END_OF_TEXT + "The cat", return_tensors="pt").input_ids
    made = opened(tmp_path / "hf").generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    ours = generate_text(
        run.model, run.tokenizer, "The cat", SamplingConfig(temperature=0, max_new_tokens=20)
    )
    assert text == ours


THEIRS = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=48),
    "llama": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        max_position_embeddings=48,
        tie_word_embeddings=True,
        rope_theta=5000.0,
    ),
    "qwen3": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=40,
        max_position_embeddings=48,
    ),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_what_transformers_saves_is_imported_and_computes_the_same(tmp_path, kind):
    """With more rows than tokens, as many models have: those beyond are left out."""
    tokenizer = tokenizer_of()
    rows = tokenizer.vocab_size + 5
    settings = dict(THEIRS[kind], vocab_size=rows, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **settings)
    )
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))
    theirs.eval().save_pretrained(tmp_path / "hf")
    from scratchlm.tokenizer.formats import save_huggingface

    save_huggingface(tokenizer, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "run")
    ours = load_run(tmp_path / "run", device="cpu")
    ids = ids_of(tokenizer.vocab_size)
    torch.testing.assert_close(
        logits_of(ours.model, ids), logits_of(theirs, ids)[..., : tokenizer.vocab_size], atol=1e-5, rtol=1e-5
    )


def test_the_order_of_rows_matters_to_the_test(tmp_path, monkeypatch):
    """At position 0 a wrong order shows nothing; over 24 tokens it does."""
    from scratchlm.interop import names

    run = load_run(make_run(tmp_path / "run"), device="cpu")
    monkeypatch.setattr(names, "halves", lambda rows, d_head: rows)
    export_hf(run, tmp_path / "hf")
    ids, theirs = ids_of(run.tokenizer.vocab_size), opened(tmp_path / "hf")
    wrong = (logits_of(run.model, ids) - logits_of(theirs, ids)).abs().amax((0, 2))
    assert wrong[0] < 1e-5
    assert wrong[1:].min() > 1e-3


def test_weights_with_a_config_of_another_size_are_refused(tmp_path):
    run = load_run(make_run(tmp_path / "run"), device="cpu")
    export_hf(run, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(table | {"intermediate_size": 49}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mlp.gate_proj.weight has the shape \[48, 32\], config.json says"):
        import_hf(tmp_path / "hf", tmp_path / "new")
    assert not (tmp_path / "new").exists()
