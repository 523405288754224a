"""Plan and doctor: figures with their formulas, MFU only where a peak is known."""

import pytest
from tiny_settings import TINY, TINY_STORIES

from scratchlm import hardware

SMALL = [*TINY, *TINY_STORIES, "optimizer=adamw"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "measurements_path", lambda: tmp_path / "cache" / "hardware.json")
    monkeypatch.setattr(hardware, "PRODUCT_SECONDS", 0.001)
    monkeypatch.setattr(hardware, "COPY_BYTES", 2**16)
    monkeypatch.setattr(hardware, "CPU_PRODUCTS", ((64, 32, 16), (128, 128, 128)))


def line(text, what):
    return next(found for found in text.splitlines() if found.strip().startswith(what))


def test_every_figure_stands_beside_its_formula(cli):
    found = cli("plan", "demo", *SMALL, "train.device=cpu").out
    assert "256 tokens" in line(found, "effective batch")
    assert "4 rows x 64" in line(found, "effective batch")
    assert "4 steps x 256" in line(found, "tokens")
    assert "tokens / parameters" in line(found, "per parameter")
    assert "4 bytes each" in line(found, "gradients")
    assert "8 bytes per parameter" in line(found, "optimizer")
    assert "4 x 64 tokens, counted" in line(found, "activations")
    assert "2 x layers x key heads" in line(found, "KV cache")
    assert "1 x" in line(found, "step")
    assert "median of 5 tried" in line(found, "step")
    assert "4 x" in line(found, "time")
    assert "unknown" in line(found, "epochs")
    assert "unknown device: no peak, no MFU" in line(found, "MFU")


def test_an_estimate_tries_nothing_and_says_so(cli, monkeypatch):
    from scratchlm.train import pace

    monkeypatch.setattr(pace, "probe_steps", lambda *_: 1 / 0)
    found = cli("plan", "demo", *SMALL, "--estimate").out
    assert "estimated from a matrix product here" in line(found, "step")
    assert "by model/accounting.py" in line(found, "activations")


def test_a_run_folder_knows_its_epochs_and_its_vocabulary(cli, tmp_path):
    write_manifests(tmp_path / "mine", train=512, valid=100)
    (tmp_path / "mine" / "config.json").write_text(resolved(), encoding="utf-8")
    found = cli("plan", "mine").out
    assert "tokens / 512 training tokens" in line(found, "epochs")
    assert line(found, "epochs").split()[1] == "2"  # 4 steps x 256 tokens
    assert "of validations" in line(found, "time")
    assert "token embeddings 4,800" in line(found, "parameters")  # 300 x 16


def write_manifests(folder, **splits):
    """Manifests as they lie in a run folder, without the shards."""
    from scratchlm.data.shards import Manifest

    for split, num_tokens in splits.items():
        place = folder / "data" / split
        place.mkdir(parents=True)
        made = Manifest(
            dtype="uint16",
            vocab_size=300,
            tokenizer_fingerprint="0",
            tokens_per_shard=1000,
            num_tokens=num_tokens,
            num_documents=3,
            num_bytes=4 * num_tokens,
            shards=(),
        )
        (place / "manifest.json").write_text(made.to_json(), encoding="utf-8")


def resolved():
    from scratchlm.train import recipes

    return recipes.read("demo", [*SMALL, "train.device=cpu"]).to_json()


def test_measuring_makes_mfu_possible(cli):
    before = cli("doctor").out
    assert "unknown device: no MFU" in line(before, "float32")
    found = cli("doctor", "--measure").out
    assert "measured 20" in line(found, "float32")
    assert "fastest product: (" in line(found, "float32 here")
    assert "/s" in line(found, "copying")
    assert "FLOPs per token * tokens per second / peak" in line(found, "MFU")
    assert line(cli("doctor").out, "float32") == line(found, "float32")  # kept for later
    planned = cli("plan", "demo", *SMALL, "train.device=cpu", "train.precision=float32", "--estimate").out
    assert "%" in line(planned, "MFU")
    assert "GFLOP/s, measured" in line(planned, "MFU")


def test_a_measurement_beside_other_work_is_marked(cli, monkeypatch):
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (3.0, 1.0, 1.0))
    assert "measure again when the machine is idle" in line(cli("doctor", "--measure").out, "load")
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (0.0, 1.0, 1.0))
    assert "measure again" not in cli("doctor", "--measure").out
