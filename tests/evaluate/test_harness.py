"""Claims about lm-eval's view of a model: its tasks get the numbers that our own tasks get."""

import json

import pytest
import torch

from scratchlm.evaluate.questions import ask, find_files
from scratchlm.evaluate.run_task import run_task
from scratchlm.evaluate.scoring import encode_pair, score
from scratchlm.evaluate.tasks import TASKS
from scratchlm.model import MODELS, ModelConfig
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'scratchlm[harness]'")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {0: END_OF_TEXT.encode(), **{i + 1: bytes([i]) for i in range(256)}}
    return BPETokenizer(vocab, [], [END_OF_TEXT])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=257, context_length=128, d_model=32, num_layers=2, num_heads=4)
    built = MODELS.build("transformer", config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)
    return built.eval()


@pytest.fixture(scope="module")
def harness(model, tokenizer):
    from scratchlm.evaluate.harness import HarnessLM

    return HarnessLM(model, tokenizer, device=CPU)


def requests(*arguments):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, argument, number) for number, argument in enumerate(arguments)]


def test_likelihoods_are_those_of_our_scoring(harness, model, tokenizer):
    texts = [
        ("The sky is", " blue"),
        ("The sky is ", "blue"),
        ("", "Once"),
        ("x" * 200, " end"),
        ("a", "b" * 300),
    ]
    pairs = [encode_pair(tokenizer, *text) for text in texts]
    expected = [found[:2] for found in score(model, pairs, context_length=128, device=CPU)]
    assert harness.loglikelihood(requests(*texts), disable_tqdm=True) == expected
    assert expected[0] == expected[1]


def test_whole_texts_are_scored_in_windows(harness, model, tokenizer):
    text = "abc " * 70
    ids = tokenizer.encode_ordinary(text)
    total, seen = 0.0, [0, *ids]
    with torch.no_grad():
        for start in range(0, len(ids), 128):
            stop = min(start + 128, len(ids))
            first = max(0, stop - 128)
            logits = model(torch.tensor([seen[first:stop]]))[0].log_softmax(-1)
            total += sum(float(logits[place - first, ids[place]]) for place in range(start, stop))
    found = harness.loglikelihood_rolling(requests((text,), ("",), ("ab",)), disable_tqdm=True)
    assert found[0] == pytest.approx(total, rel=1e-5)
    assert found[1] == 0.0
    assert found[2] == harness.loglikelihood(requests(("", "ab")), disable_tqdm=True)[0][0]


def test_texts_are_written_until_the_stop_text(harness, model, tokenizer):
    from scratchlm.generate import SamplingConfig, generate_text

    plain = generate_text(model, tokenizer, "abc", SamplingConfig(temperature=0.0, max_new_tokens=12))
    settings = {"until": [], "do_sample": False, "max_gen_toks": 12}
    stopped = {**settings, "until": plain[4:6]}
    found = harness.generate_until(requests(("abc", settings), ("abc", stopped)), disable_tqdm=True)
    assert found == [plain, plain[: plain.index(plain[4:6])]]


def test_settings_of_a_task_are_read_and_unknown_ones_refused():
    from scratchlm.evaluate.harness import sampling

    assert sampling({"until": "\n", "do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert sampling({"until": ["a", "b"]}).stop == ("a", "b")
    assert sampling({}).max_new_tokens == 256
    assert sampling({"max_tokens": 5, "max_gen_toks": 7}).max_new_tokens == 7
    found = sampling({"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (found.temperature, found.top_p) == (0.7, 0.9)
    with pytest.raises(ValueError, match=r"generation_kwargs\.num_beams: not known; until, do_sample"):
        sampling({"num_beams": 4})


CHOICES_YAML = """
task: our_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 0
metric_list:
  - metric: acc
  - metric: acc_norm
"""

GSM8K_YAML = r"""
task: our_gsm8k
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\nAnswer:"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs:
  until: ["Question:"]
  do_sample: false
  max_gen_toks: 64
"""


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_lm_eval_finds_the_numbers_of_our_own_tasks(harness, model, tokenizer, tmp_path, monkeypatch):
    """Scores, accuracies and texts, exactly; 4 s of processor time are lm-eval's imports."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [
        {"query": f"What is {i} plus {i * i % 7}? It is", "gold": i % 3,
         "choices": [f"{i + i * i % 7}", f"never {i}", f"something else, as {i * 3}"]}
        for i in range(60)
    ]  # fmt: skip
    problems = [{"question": f"{i} and {i}?", "answer": f"so\n#### {2 * i}"} for i in range(6)]
    files = {
        "choices": write_rows(tmp_path / "choices.jsonl", rows),
        "gsm8k": write_rows(tmp_path / "gsm8k.jsonl", problems),
    }
    for name, yaml in (("choices", CHOICES_YAML), ("gsm8k", GSM8K_YAML)):
        (tmp_path / f"{name}.yaml").write_text(yaml.format(path=files[name]), encoding="utf-8")
    theirs = simple_evaluate(
        model=harness,
        tasks=["our_choices", "our_gsm8k"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    ours = {}
    for name in files:
        task = TASKS.build(name, shots=0)
        if name == "gsm8k":
            task.max_new_tokens = 64
        ours[name] = run_task(model, tokenizer, task, ask(task, find_files(name, files[name])), device=CPU)
    figures = theirs["results"]["our_choices"]
    assert figures["acc,none"] == ours["choices"].metrics["acc"].value
    assert figures["acc_norm,none"] == ours["choices"].metrics["acc_norm"].value
    assert 0 < figures["acc,none"] < 1
    pairs = [encode_pair(tokenizer, row["query"], f" {choice}") for row in rows for choice in row["choices"]]
    scores = score(model, pairs, context_length=128, device=CPU)
    samples = sorted(theirs["samples"]["our_choices"], key=lambda sample: sample["doc_id"])
    found = [tuple(pair) for sample in samples for pair in sample["filtered_resps"]]
    assert found == [one[:2] for one in scores]
    samples = sorted(theirs["samples"]["our_gsm8k"], key=lambda sample: sample["doc_id"])
    texts = [sample["resps"][0][0] for sample in samples]
    assert texts == [answer.said for answer in ours["gsm8k"].answers]
    assert len(set(texts)) > 1
