"""What cannot be exported is said by its setting; what is damaged, hostile or unknown is not imported."""

import json
import shutil

import pytest
import torch
from foreign_models import make_run
from safetensors.torch import load_file, save_file

from scratchlm.interop.card import without_folders
from scratchlm.interop.hf import export_hf
from scratchlm.interop.hf_read import import_hf, read_hf
from scratchlm.interop.weights import check_tokenizer, kind_of
from scratchlm.model.config import ModelConfig
from scratchlm.tokenizer.chars import CharTokenizer
from scratchlm.train.folder import load_run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feedforward": "relu2"}, "model.feedforward=relu2"),
        ({"softcap": 30.0, "attention": "reference"}, "model.softcap=30.0"),
        ({"logit_softcap": 15.0}, "model.logit_softcap=15.0"),
        ({"position": "alibi"}, "model.position=alibi"),
        ({"window": 8}, "model.window=8"),
        ({"placement": "post"}, "model.placement=post"),
        ({"norm": "layernorm"}, r"model.norm=layernorm \(with position=rope, rmsnorm is known"),
        ({"position": "learned", "norm": "layernorm"}, "model.feedforward=swiglu"),
        ({"qk_norm": True, "bias": True}, "model.bias=true together with qk_norm"),
        ({"name": "bigram"}, "model=bigram is no transformer"),
        ({"window": 8, "placement": "none"}, "model.placement=none .*; model.window=8"),
    ],
)
def test_a_setting_that_others_do_not_have_is_named(settings, message):
    config = ModelConfig(vocab_size=9, d_model=16, num_heads=2, **settings)
    with pytest.raises(ValueError, match=f"cannot be exported: .*{message}"):
        kind_of(config)


def test_a_tokenizer_of_characters_is_refused():
    with pytest.raises(ValueError, match="CharTokenizer, and only byte-pair encodings"):
        check_tokenizer(CharTokenizer("ab"))


def test_folders_of_whoever_trained_are_not_in_the_card():
    assert without_folders({"paths": ["/home/me/book.txt", "a/b"]}) == {"paths": ["book.txt", "a/b"]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An exported folder; tests must not change it."""
    place = tmp_path_factory.mktemp("good")
    export_hf(load_run(make_run(place / "run", tied=True), device="cpu"), place / "hf")
    return place / "hf"


@pytest.fixture
def folder(good, tmp_path):
    """A copy of it."""
    return shutil.copytree(good, tmp_path / "hf")


def change(path, **fields):
    table = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(table | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba': not known; llama, qwen3, gpt2 can"),
        ({"model_type": ["llama"]}, "model_type="),
        ({"hidden_act": "relu2"}, "hidden_act='relu2'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type='linear'"),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 2}}, "rope_parameters: 'factor'"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"rms_norm_eps": -1}, "rms_norm_eps=-1: expected a number above 0"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x'"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1,000,000: more than the files hold"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers=10+: expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"hidden_size": 2**24, "head_dim": None}, "has the shape"),
        ({"vocab_size": 290}, "tokenizer has 291 ids, but the model 290"),
        ({"num_hidden_layers": 1}, "9 weights have no place"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ],
)
def test_a_configuration_that_we_do_not_compute_is_refused_by_its_field(folder, fields, message):
    change(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        read_hf(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", ".", 3])
def test_an_index_does_not_lead_out_of_the_folder(folder, name):
    save_file({"a": torch.ones(1)}, folder.parent / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match="is no name of a safetensors file in this folder"):
        read_hf(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "expected a table of tensor -> file"),
        (["x"], "expected a table of tensor -> file"),
        ({"model.norm.weight": "gone.safetensors"}, "gone.safetensors: no such file"),
        ({"nothing": "model.safetensors"}, "'nothing' is not in model.safetensors"),
        ({"model.norm.weight": "model.safetensors"}, "num_hidden_layers=2: more than"),
    ],
)
def test_an_index_that_is_not_true_is_refused(folder, weight_map, message):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_hf(folder)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_hf(folder)


@pytest.mark.parametrize(
    "head",
    [
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": NaN',
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}'.ljust(64),
        (10_000).to_bytes(8, "little") + b"[" * 10_000,
    ],
)
def test_hostile_heads_are_refused(folder, head):
    (folder / "model.safetensors").write_bytes(head)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_hf(folder)


def test_numbers_of_other_formats_and_left_over_weights_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.norm.weight": torch.ones(32, dtype=torch.int64)}, path)
    with pytest.raises(ValueError, match=r"'model.norm.weight' has the format I64"):
        read_hf(folder)
    save_file(weights | {"model.layers.0.experts.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"1 weights have no place .* 'model.layers.0.experts.weight'"):
        read_hf(folder)


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can run code"):
        read_hf(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{" * 100_000, '{"a": NaN}', "[" * 100_000, '{"a":1,"a":2}'])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json: (not valid JSON|holds a list)"):
        read_hf(folder)


def test_nothing_is_overwritten(folder, tmp_path):
    run = load_run(make_run(tmp_path / "run"), device="cpu")
    with pytest.raises(ValueError, match="is there already"):
        export_hf(run, folder)
    with pytest.raises(ValueError, match="is there already"):
        import_hf(folder, tmp_path / "run")
    with pytest.raises(ValueError, match="no such folder"):
        import_hf(tmp_path / "none", tmp_path / "new")
