"""The course's functions of assignment 5, 2026: worked examples, and one step against a plain whole batch."""

import inspect
import math

import pytest
import torch
from letters import END, PAD, CountedModel, Letters, log_softmax

from scratchlm.cs336 import alignment_2025, alignment_2026
from scratchlm.cs336.alignment_2026 import (
    run_aggregate_loss_across_microbatch,
    run_compute_group_normalized_rewards,
    run_compute_policy_gradient_loss,
    run_compute_rollout_rewards,
    run_get_response_log_probs,
    run_grpo_train_step,
    run_tokenize_prompt_and_output,
)

PROMPTS = ["2+2=", "2+2=", "2+2=", "9-1=", "9-1=", "9-1=", "a", "a"][:6]
RESPONSES = ["4", "five", "4!", "8", "7", "eight or so"]
TRUTHS = ["4"] * 3 + ["8"] * 3

SUPPLEMENT = {
    "get_packed_sft_dataset": "tokenizer dataset_path seq_length shuffle",
    "run_iterate_batches": "dataset batch_size shuffle",
    "run_parse_mmlu_response": "mmlu_example model_output",
    "run_parse_gsm8k_response": "model_output",
    "run_compute_per_instance_dpo_loss": "lm lm_ref tokenizer beta prompt response_chosen response_rejected",
    "run_tokenize_prompt_and_output": "prompt_strs output_strs tokenizer",
    "run_get_response_log_probs": "model input_ids labels return_token_entropy",
}
ADAPTERS = {
    alignment_2026: SUPPLEMENT
    | {
        "run_compute_rollout_rewards": "reward_fn rollout_responses repeated_ground_truths",
        "run_compute_group_normalized_rewards": "raw_rewards group_size baseline advantage_eps "
        "advantage_normalizer",
        "run_compute_policy_gradient_loss": "raw_rewards_or_advantages policy_log_probs "
        "importance_reweighting_method old_log_probs cliprange response_mask",
        "run_aggregate_loss_across_microbatch": "per_token_policy_gradient_loss mask loss_normalization "
        "normalization_constant",
        "run_grpo_train_step": "model tokenizer optimizer gradient_accumulation_steps max_grad_norm "
        "reward_fn repeated_prompts rollout_responses repeated_ground_truths group_size baseline "
        "advantage_eps advantage_normalizer importance_reweighting_method old_log_probs cliprange "
        "loss_normalization normalization_constant",
    },
    alignment_2025: SUPPLEMENT
    | {
        "run_compute_group_normalized_rewards": "reward_fn rollout_responses repeated_ground_truths "
        "group_size advantage_eps normalize_by_std",
        "run_compute_entropy": "logits",
        "run_compute_naive_policy_gradient_loss": "raw_rewards_or_advantages policy_log_probs",
        "run_compute_grpo_clip_loss": "advantages policy_log_probs old_log_probs cliprange",
        "run_compute_policy_gradient_loss": "policy_log_probs loss_type raw_rewards advantages "
        "old_log_probs cliprange",
        "run_masked_mean": "tensor mask dim",
        "run_masked_normalize": "tensor mask dim normalize_constant",
        "run_sft_microbatch_train_step": "policy_log_probs response_mask gradient_accumulation_steps "
        "normalize_constant",
        "run_grpo_microbatch_train_step": "policy_log_probs response_mask gradient_accumulation_steps "
        "loss_type raw_rewards advantages old_log_probs cliprange",
    },
}


def reward(response, truth):
    right = float(response == truth)
    return {"reward": right, "format_reward": float(len(response) < 5), "answer_reward": right}


def partly(response, truth):
    """Rewards that differ within the group, so that no response has advantage 0."""
    return {"reward": 1.0 / (1 + len(response)) + 0.1 * ord(response[0])}


@pytest.mark.parametrize("edition", ADAPTERS, ids=lambda module: module.__name__[-4:])
def test_every_adapter_of_the_edition_is_there_with_the_courses_arguments(edition):
    assert sorted(edition.__all__) == sorted(ADAPTERS[edition])
    for name, arguments in ADAPTERS[edition].items():
        assert list(inspect.signature(getattr(edition, name)).parameters) == arguments.split()


def test_prompts_and_responses_become_rows_with_a_mask_over_the_responses_labels():
    rows = run_tokenize_prompt_and_output(["ab", "c"], ["xyz", "w"], Letters())
    a, b, c, w, x, y, z = map(ord, "abcwxyz")
    assert rows["input_ids"].tolist() == [[a, b, x, y], [c, w, PAD, PAD]]
    assert rows["labels"].tolist() == [[b, x, y, z], [w, PAD, PAD, PAD]]
    assert rows["response_mask"].tolist() == [[False, True, True, True], [True, False, False, False]]


def test_the_mask_is_never_on_a_prompt_or_on_padding():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        lengths = torch.randint(1, 9, (5, 2), generator=generator).tolist()
        prompts, outputs = ["p" * n for n, _ in lengths], ["r" * n for _, n in lengths]
        rows = run_tokenize_prompt_and_output(prompts, outputs, Letters())
        assert (rows["labels"] == ord("r")).equal(rows["response_mask"])


@pytest.mark.parametrize(("pad", "end", "expected"), [(None, END, END), (None, None, 0), (0, END, 0)])
def test_rows_are_filled_up_though_the_tokenizer_has_no_token_for_it(pad, end, expected):
    tokenizer = Letters()
    tokenizer.pad_token_id, tokenizer.eos_token_id = pad, end
    rows = run_tokenize_prompt_and_output(["ab", "c"], ["xyz", "w"], tokenizer)
    assert rows["labels"].tolist()[1] == [ord("w"), expected, expected, expected]
    assert rows["response_mask"].tolist()[1] == [True, False, False, False]


def test_as_many_responses_as_prompts_are_needed():
    with pytest.raises(ValueError, match="2 prompts, 1 responses: give one for each"):
        run_tokenize_prompt_and_output(["a", "b"], ["c"], Letters())


def test_log_probabilities_and_entropy_are_those_of_a_plain_softmax():
    model, ids = CountedModel(), torch.randint(4, 100, (2, 9))
    found = run_get_response_log_probs(model, ids[:, :-1], ids[:, 1:], True)
    log_p = log_softmax(model(ids[:, :-1]).logits)
    torch.testing.assert_close(found["log_probs"], log_p.gather(-1, ids[:, 1:, None])[..., 0])
    torch.testing.assert_close(found["token_entropy"], -(log_p.exp() * log_p).sum(-1))
    assert list(run_get_response_log_probs(model, ids, ids, False)) == ["log_probs"]


def test_a_model_that_returns_bare_logits_does_as_well():
    model, ids = CountedModel(), torch.randint(4, 100, (2, 9))
    theirs, ours = (run_get_response_log_probs(m, ids, ids, False)["log_probs"] for m in (model, model.inner))
    assert theirs.equal(ours)


def test_rewards_come_in_order_with_the_means_of_their_parts():
    rewards, means = run_compute_rollout_rewards(reward, RESPONSES, TRUTHS)
    assert rewards.tolist() == [1, 0, 0, 1, 0, 0]
    assert means == pytest.approx({"reward": 2 / 6, "format_reward": 5 / 6, "answer_reward": 2 / 6})


@pytest.mark.parametrize(
    ("baseline", "normalizer", "formula"),
    [
        ("mean", "std", lambda r: (r - r.mean()) / (r.std() + 1e-6)),
        ("mean", "none", lambda r: r - r.mean()),
        ("none", "none", lambda r: r),
        ("mean", "mean", lambda r: (r - r.mean()) / (r.mean() + 1e-6)),
    ],
)
def test_advantages_are_grpo_dr_grpo_rft_and_maxrl(baseline, normalizer, formula):
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 1.0])
    advantages, figures = run_compute_group_normalized_rewards(
        rewards, 3, baseline, advantage_normalizer=normalizer
    )
    torch.testing.assert_close(advantages, torch.cat([formula(group) for group in rewards.reshape(2, 3)]))
    assert figures["reward_mean"] == pytest.approx(2.5 / 6)


@pytest.mark.parametrize("method", ["none", "noclip", "grpo", "gspo"])
def test_token_losses_by_every_method(method):
    log_probs, old = -torch.rand(2, 5), -torch.rand(2, 5)
    advantages, mask = torch.tensor([1.5, -0.5]), torch.rand(2, 5) < 0.6
    mask[:, 0] = True
    ratio = (log_probs - old).exp()
    if method == "gspo":
        ratio = (((log_probs - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()
        ratio = ratio.expand(2, 5)
    a = advantages[:, None]
    expected = {
        "none": -a * log_probs,
        "noclip": -a * ratio,
        "grpo": -torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a),
        "gspo": -torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a),
    }[method]
    for given in (advantages, a):
        losses, _ = run_compute_policy_gradient_loss(given, log_probs, method, old, 0.1, mask.long())
        torch.testing.assert_close(losses[mask], expected[mask])


def test_losses_are_aggregated_by_sequence_or_by_a_constant():
    losses, mask = torch.tensor([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert float(run_aggregate_loss_across_microbatch(losses, mask)) == pytest.approx((1.5 + 5) / 2)
    assert float(run_aggregate_loss_across_microbatch(losses, mask, "constant", 16)) == pytest.approx(8 / 16)


def plain_step(model, reward_fn, *, normalization, method, old):
    """The whole batch at once, written out with nothing of the library; the gradient stays."""
    rows = run_tokenize_prompt_and_output(PROMPTS, RESPONSES, Letters())
    mask = rows["response_mask"].float()
    rewards = torch.tensor([reward_fn(*pair)["reward"] for pair in zip(RESPONSES, TRUTHS, strict=True)])
    groups = rewards.reshape(2, 3)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    a = advantages.reshape(-1, 1)
    log_p = log_softmax(model(rows["input_ids"]).logits).gather(-1, rows["labels"][..., None])[..., 0]
    losses = -a * log_p
    if method != "none":
        ratio = (log_p - old).exp()
    if method == "gspo":
        mean = ((log_p - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        ratio = mean.exp().expand_as(log_p)
    if method == "noclip":
        losses = -a * ratio
    elif method != "none":
        losses = -torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a)
    if normalization == "constant":
        loss = (losses * mask).sum() / 50
    else:
        loss = ((losses * mask).sum(1) / mask.sum(1)).mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("num_parts", [1, 4, 6])
@pytest.mark.parametrize(
    ("normalization", "method"),
    [
        ("sequence", "none"),
        ("constant", "none"),
        ("sequence", "grpo"),
        ("constant", "noclip"),
        ("sequence", "gspo"),
        ("constant", "gspo"),
    ],
)
@pytest.mark.parametrize("reward_fn", [reward, partly])
def test_a_step_in_micro_batches_is_that_of_the_whole_batch(reward_fn, normalization, method, num_parts):
    model, twin = CountedModel(), CountedModel()
    old = None
    if method != "none":
        labels = run_tokenize_prompt_and_output(PROMPTS, RESPONSES, Letters())["labels"]
        old = -4.5 - torch.rand(labels.shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss, figures = run_grpo_train_step(
        model,
        Letters(),
        optimizer,
        num_parts,
        None,
        reward_fn,
        PROMPTS,
        RESPONSES,
        TRUTHS,
        3,
        importance_reweighting_method=method,
        old_log_probs=old,
        cliprange=0.1,
        loss_normalization=normalization,
        normalization_constant=50,
    )
    expected = plain_step(twin, reward_fn, normalization=normalization, method=method, old=old)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    torch.testing.assert_close(figures["grad_norm"], norm, atol=1e-6, rtol=1e-5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is None
        torch.testing.assert_close(p, q - 0.5 * q.grad, atol=1e-6, rtol=1e-5)
    assert math.isfinite(figures["token_entropy"])


@pytest.mark.parametrize("normalization", ["sequence", "constant"])
def test_an_empty_response_counts_as_a_response_and_has_no_gradient(normalization):
    model, twin = CountedModel(), CountedModel()
    responses = ["4", "", "4!", "8", "", "9"]
    how = {"loss_normalization": normalization, "normalization_constant": 50}
    loss, figures = run_grpo_train_step(
        model,
        Letters(),
        torch.optim.SGD(model.parameters(), lr=0.5),
        6,
        None,
        reward,
        PROMPTS,
        responses,
        TRUTHS,
        3,
        advantage_normalizer="none",
        **how,
    )
    expected = 0.0
    for prompt, response, advantage in zip(PROMPTS, responses, [2, -1, -1] * 2, strict=True):
        ids = torch.tensor([list(map(ord, prompt + response))])
        log_p = log_softmax(twin(ids[:, :-1]).logits).gather(-1, ids[:, 1:, None])[0, len(prompt) - 1 :]
        weight = 1 / 50 if normalization == "constant" else 1 / (6 * max(1, len(response)))
        expected = expected - advantage / 3 * weight * log_p.sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-6, rtol=1e-5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.5 * q.grad, atol=1e-6, rtol=1e-5)
    assert math.isfinite(figures["token_entropy"])


def test_responses_of_advantage_zero_are_not_computed():
    model = CountedModel()
    same = [*RESPONSES[:3], "8", "8", "8"]
    run_grpo_train_step(
        model,
        Letters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        2,
        1.0,
        reward,
        PROMPTS,
        same,
        TRUTHS,
        3,
    )
    assert model.num_rows == 3


def test_a_batch_without_any_advantage_steps_as_with_a_gradient_of_zero():
    model, twin = CountedModel(), CountedModel()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.5) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers, strict=True):  # something to follow
        m(torch.tensor([[5, 6]])).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.num_rows = 0
    loss, figures = run_grpo_train_step(
        model, Letters(), optimizers[0], 1, 1.0, reward, PROMPTS[:3], ["4"] * 3, ["4"] * 3, 3
    )
    for p in twin.parameters():
        p.grad = torch.zeros_like(p)
    optimizers[1].step()
    assert model.num_rows == 0
    assert (float(loss), float(figures["grad_norm"])) == (0.0, 0.0)
    assert math.isnan(figures["token_entropy"])
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.equal(q)
        assert p.grad is None


def test_the_gradient_is_clipped_and_its_length_before_reported():
    model = CountedModel()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    _, figures = run_grpo_train_step(
        model, Letters(), optimizer, 1, 0.01, reward, PROMPTS, RESPONSES, TRUTHS, 3
    )
    moved = torch.stack([(p - q).norm() for p, q in zip(model.parameters(), before, strict=True)]).norm()
    assert float(figures["grad_norm"]) > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-3)
    assert figures["format_reward"] == pytest.approx(5 / 6)


@pytest.mark.slow
def test_models_and_tokenizers_of_transformers_fit():
    transformers = pytest.importorskip("transformers", reason="the extra acceptance is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra acceptance is not installed")
    words = {word: number for number, word in enumerate(["<pad>", "<end>", "a", "b", "c"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="c"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>"
    )
    config = transformers.GPT2Config(vocab_size=5, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = model.lm_head.weight.detach().clone()
    loss, _ = run_grpo_train_step(
        model, tokenizer, optimizer, 2, 1.0, reward, ["a b"] * 2, ["c", "b b"], ["c"] * 2, 2
    )
    assert torch.isfinite(loss)
    assert not before.equal(model.lm_head.weight)
    assert tokenizer.eos_token_id != END
