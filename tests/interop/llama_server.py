"""llama.cpp over one file, and what our model would say instead."""

import json
import urllib.request

import pytest
import torch


class LlamaCpp:
    """llama.cpp's server over one file, asked over loopback."""

    def __init__(self, path):
        xllamacpp = pytest.importorskip("xllamacpp", reason="the extra acceptance is not installed")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.hostnames = ["127.0.0.1"]
        settings.port = 0
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 256, 1, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup, settings.verbosity, settings.use_jinja = False, 0, True
        self.server = xllamacpp.Server(settings)

    def ask(self, place, **content):
        request = urllib.request.Request(
            f"{self.server.listening_address}{place}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def greedy(self, ids, number):
        """The tokens that follow `ids`."""
        settings = {"n_predict": number, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        return self.ask("/completion", prompt=ids, cache_prompt=False, **settings)["tokens"]

    def log_probabilities(self, ids, number):
        """Token -> log-probability after `ids`; nothing where the likeliest is a part of a character."""
        settings = {"n_predict": 1, "temperature": 0, "ignore_eos": False, "n_probs": number}
        answer = self.ask("/completion", prompt=ids, cache_prompt=False, **settings)
        told = answer.get("completion_probabilities") or [{"top_logprobs": []}]
        return {one["id"]: one["logprob"] for one in told[0]["top_logprobs"]}


@torch.no_grad()
def greedy(run, ids, number):
    """What our model takes, never the end of a text."""
    ids = torch.tensor([ids])
    end = [run.tokenizer.end_of_text_id, run.tokenizer.special_tokens.get("<|end|>", 0)]
    for _ in range(number):
        logits = run.model(ids)[0, -1]
        logits[end] = -float("inf")
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    return ids[0, -number:].tolist()
