"""lm-evaluation-harness over HTTP finds the numbers that it finds in the process."""

import pytest
from live_server import byte_tokenizer, live, served, tiny_model

ROWS = [
    {"query": "Once upon a time", "choices": [" there", " was", " x"], "gold": 0},
    {"query": "The cat", "choices": [" sat", " flew"], "gold": 1},
    {"query": "Tom", "choices": [" ran.", " is", " was", " has a dog"], "gold": 3},
]


def tasks(folder):
    """Two local tasks: choices by likelihood, and an answer that is written."""
    import json

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
    (folder / "choose.yaml").write_text(
        f"task: choose\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{query}}}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{gold}}'\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        encoding="utf-8",
    )
    (folder / "write.yaml").write_text(
        f"task: write\n{common}output_type: generate_until\ndoc_to_text: '{{{{query}}}}'\n"
        "doc_to_target: '{{choices[gold]}}'\ngeneration_kwargs: {until: [\"\\n\"], max_gen_toks: 8}\n"
        "metric_list: [{metric: exact_match}]\n",
        encoding="utf-8",
    )


@pytest.mark.slow
def test_lm_eval_over_http_equals_lm_eval_in_the_process(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra harness)")
    pytest.importorskip("tenacity", reason="lm-eval's HTTP client needs tenacity")
    pytest.importorskip("aiohttp", reason="lm-eval's HTTP client needs aiohttp")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    from scratchlm.evaluate.harness import HarnessLM

    tasks(tmp_path)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    settings = {
        "tasks": ["choose", "write"],
        "task_manager": manager,
        "bootstrap_iters": 0,
        "log_samples": True,
    }
    local = HarnessLM(tiny_model(), byte_tokenizer(), device=torch.device("cpu"))
    expected = simple_evaluate(model=local, **settings)
    with live(lambda: [served(slots=4)], begin_prompts=True) as server:
        remote = LocalCompletionsAPI(
            base_url=f"{server.url}/v1/completions",
            model="tiny",
            tokenizer_backend="remote",
            max_length=63,
            batch_size=2,
        )
        assert remote.prefix_token_id == local.prefix_token_id == 0
        found = simple_evaluate(model=remote, **settings)
    for task in ("choose", "write"):
        assert {k: v for k, v in found["results"][task].items() if "stderr" not in k} == {
            k: v for k, v in expected["results"][task].items() if "stderr" not in k
        }
        for ours, theirs in zip(expected["samples"][task], found["samples"][task], strict=True):
            if task == "write":
                assert theirs["resps"] == ours["resps"]
                continue
            for mine, over_http in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
                # the same sum over one row of logits at a time instead of whole batches
                assert float(over_http[0]) == pytest.approx(float(mine[0]), rel=1e-5)
                assert str(over_http[1]) == str(mine[1])
