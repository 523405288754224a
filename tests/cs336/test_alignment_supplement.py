"""The course's functions on instructions and preferences: packing by hand, answers, the loss of a pair."""

import json
import math

import pytest
import torch
from letters import BEGIN, END, CountedModel, Letters, log_softmax

from scratchlm.cs336.alignment_supplement import (
    ALPACA,
    get_packed_sft_dataset,
    run_compute_per_instance_dpo_loss,
    run_iterate_batches,
    run_parse_gsm8k_response,
    run_parse_mmlu_response,
)

EXAMPLES = [{"prompt": f"Say {word}.", "response": f"{word}\n"} for word in ("one", "two {x}", "three")]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "sft.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES), encoding="utf-8")
    return file


def ids_by_hand():
    text = [
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\n{example['prompt']}\n\n### Response:\n{example['response']}"
        for example in EXAMPLES
    ]
    return [token for part in text for token in [BEGIN, *map(ord, part), END]]


@pytest.mark.parametrize("seq_length", [1, 7, 64])
def test_documents_are_packed_one_behind_the_other_and_labels_go_on_over_the_border(path, seq_length):
    dataset = get_packed_sft_dataset(Letters(), path, seq_length, shuffle=False)
    ids = ids_by_hand()
    assert len(dataset) == (len(ids) - 1) // seq_length
    rows = list(dataset)
    assert [n for row in rows for n in row["input_ids"].tolist()] == ids[: len(rows) * seq_length]
    assert [n for row in rows for n in row["labels"].tolist()] == ids[1 : len(rows) * seq_length + 1]
    assert dataset[-1]["labels"].equal(rows[-1]["labels"])


def test_shuffling_moves_documents_not_tokens(path):
    torch.manual_seed(1)
    orders = set()
    for _ in range(10):
        ids = get_packed_sft_dataset(Letters(), path, 8, shuffle=True).ids.tolist()
        assert sorted(ids) == sorted(ids_by_hand())
        orders.add(tuple(ids))
    assert len(orders) > 1


def test_batches_are_one_epoch_and_the_last_one_may_be_smaller(path):
    dataset = get_packed_sft_dataset(Letters(), path, 32, shuffle=False)
    batches = list(run_iterate_batches(dataset, 4, shuffle=False))
    assert len(run_iterate_batches(dataset, 4, shuffle=True)) == len(batches) == math.ceil(len(dataset) / 4)
    assert sum(len(batch["labels"]) for batch in batches) == len(dataset)
    assert batches[0]["input_ids"].shape == (4, 32)
    assert len(batches[-1]["input_ids"]) == len(dataset) % 4 or 4


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', "[1]"])
def test_a_line_that_is_no_example_is_named(path, line):
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"sft.jsonl, line 4: must be \{\"prompt\""):
        get_packed_sft_dataset(Letters(), path, 8, shuffle=False)


def test_a_tokenizer_without_an_end_is_refused(path):
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="tokenizer: has no eos_token"):
        get_packed_sft_dataset(tokenizer, path, 8, shuffle=False)
    with pytest.raises(ValueError, match="tokenizer: has no eos_token"):
        run_compute_per_instance_dpo_loss(CountedModel(), CountedModel(), tokenizer, 0.5, "a", "b", "c")


def test_answers_are_read():
    question = {"subject": "s", "question": "q", "options": ["w", "x", "y", "z"], "answer": "B"}
    assert run_parse_mmlu_response(question, "The correct answer is B.") == "B"
    assert run_parse_mmlu_response(question, "The correct answer is 10000 polynomials.") is None
    assert run_parse_gsm8k_response("In all she sold 48 + 24 = 72 clips.") == "72"
    assert run_parse_gsm8k_response("In all she sold seventy-two clips.") is None


def test_the_loss_of_a_pair_is_dpo_over_the_whole_text():
    model, reference = CountedModel(seed=1), CountedModel(seed=2)
    texts = [ALPACA.format(prompt="The fox", response=response) for response in ("runs.", "sleeps all day.")]
    sums = []
    for m in (model, reference):
        for text in texts:
            ids = torch.tensor([[*map(ord, text), END]])
            log_p = log_softmax(m(ids[:, :-1]).logits)
            sums.append(log_p.gather(-1, ids[:, 1:, None]).sum().item())
    margin = 0.5 * ((sums[0] - sums[1]) - (sums[2] - sums[3]))
    pair = (Letters(), 0.5, "The fox", "runs.", "sleeps all day.")
    loss = run_compute_per_instance_dpo_loss(model, reference, *pair)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in reference.parameters())
    same = run_compute_per_instance_dpo_loss(model, model, *pair)
    assert same.item() == pytest.approx(math.log(2))
