"""From the demo's model: one command each to a chat in the browser, to transformers and to llama.cpp."""

import http.client
import json
import re
import signal
import subprocess
import sys

import pytest
from llama_server import LlamaCpp, greedy

from scratchlm.cli import main
from scratchlm.train.folder import load_run

TINY = [
    "corpus.num_train=200",
    "corpus.num_valid=10",
    "tokenizer.vocab_size=301",
    "train.steps=8",
    "train.batch_tokens=256",
    "train.compile=false",
    "train.sample_every=1000",
    "model.context_length=64",
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=2",
]
NUMBER, TEXT = 32, "<|endoftext|>Once upon a time"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert main(["train", "demo", "--folder", str(folder), *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def prompt(demo):
    return load_run(demo, device="cpu").tokenizer.encode(
        "<|endoftext|>Once upon a time", allowed_special="all"
    )


def test_scratchlm_serve_leads_to_a_page_and_its_answers(demo, prompt):
    words = [sys.executable, "-m", "scratchlm", "serve", str(demo), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            told = ""
            while "page" not in told:
                line = server.stdout.readline()
                assert line, told
                told += line
            address = re.search(r"page +http://([0-9.]+:[0-9]+)", told)[1]
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request("GET", "/")
            page = connection.getresponse()
            assert (page.status, b"<html" in page.read()) == (200, True)
            asked = {"model": "demo", "prompt": prompt, "max_tokens": NUMBER, "temperature": 0, "logprobs": 0}
            connection.request(
                "POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200, found
            assert found["usage"]["completion_tokens"] <= NUMBER
            assert found["choices"][0]["text"]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def test_scratchlm_export_hf_leads_to_transformers(demo, prompt, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra acceptance is not installed")
    import torch

    assert main(["export", "hf", str(demo), str(tmp_path / "elsewhere")]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "elsewhere")
    assert tokenizer.encode(TEXT, add_special_tokens=False) == prompt
    ids = torch.tensor([prompt])
    suppressed = [model.config.eos_token_id]
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUMBER,
        do_sample=False,
        suppress_tokens=suppressed,
    )
    assert found[0, len(prompt) :].tolist() == greedy(load_run(demo, device="cpu"), prompt, NUMBER)


def test_scratchlm_export_gguf_leads_to_llama_cpp(demo, prompt, tmp_path):
    pytest.importorskip("xllamacpp", reason="the extra acceptance is not installed")
    assert main(["export", "gguf", str(demo), str(tmp_path / "demo.gguf")]) == 0
    theirs = LlamaCpp(tmp_path / "demo.gguf")
    assert theirs.greedy(prompt, NUMBER) == greedy(load_run(demo, device="cpu"), prompt, NUMBER)
