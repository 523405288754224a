"""CS336, assignment 5 (alignment), 2026: functions of the course's tests/adapters.py, over this library.

    run_tokenize_prompt_and_output, run_get_response_log_probs      here; loss.py computes the numbers
    run_compute_rollout_rewards                                     here: the course's own reward functions
    run_compute_group_normalized_rewards                            posttrain/advantages.py
    run_compute_policy_gradient_loss, run_aggregate_loss_...        posttrain/policy_losses.py
    run_grpo_train_step                                             all of these, one after the other
    get_packed_sft_dataset, run_iterate_batches, run_parse_...,
    run_compute_per_instance_dpo_loss                               cs336/alignment_supplement.py

Models and tokenizers are those of the course, from transformers: a model returns an object with `logits` (a
bare tensor does as well), a tokenizer has `encode(text, add_special_tokens=False)` and the ids of its special
tokens. A mask may be of booleans or of numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from scratchlm.cs336.alignment_supplement import (
    get_packed_sft_dataset,
    response_logits,
    run_compute_per_instance_dpo_loss,
    run_iterate_batches,
    run_parse_gsm8k_response,
    run_parse_mmlu_response,
)
from scratchlm.loss import token_losses
from scratchlm.optim.clip import clip_gradients_
from scratchlm.posttrain.advantages import (
    ADVANTAGE_EPS,
    Baseline,
    Normalizer,
    compute_group_normalized_rewards,
)
from scratchlm.posttrain.policy_losses import (
    Normalization,
    Reweighting,
    aggregate,
    answer_weights,
    compute_entropy,
    compute_policy_gradient_loss,
    masked_sum,
)

__all__ = [
    "get_packed_sft_dataset",
    "run_aggregate_loss_across_microbatch",
    "run_compute_group_normalized_rewards",
    "run_compute_per_instance_dpo_loss",
    "run_compute_policy_gradient_loss",
    "run_compute_rollout_rewards",
    "run_get_response_log_probs",
    "run_grpo_train_step",
    "run_iterate_batches",
    "run_parse_gsm8k_response",
    "run_parse_mmlu_response",
    "run_tokenize_prompt_and_output",
]

RewardFunction = Callable[[str, str], Mapping[str, float]]
"""A response and the truth -> "reward", and whatever it is made of ("format_reward", "answer_reward")."""


def run_tokenize_prompt_and_output(
    prompt_strs: list[str], output_strs: list[str], tokenizer: Any
) -> dict[str, Tensor]:
    """Return input_ids, labels and response_mask, each (rows, longest - 1), padded on the right.

    Prompt and response are encoded each for itself, without special tokens. The mask is True where the label
    is a token of the response.

    Raises:
        ValueError: There are no prompts, or not as many responses.
    """
    if not prompt_strs or len(prompt_strs) != len(output_strs):
        raise ValueError(f"{len(prompt_strs)} prompts, {len(output_strs)} responses: give one for each.")
    prompts, outputs = (
        [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for texts in (prompt_strs, output_strs)
    )
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    longest = max(len(prompt) + len(output) for prompt, output in zip(prompts, outputs, strict=True))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        ids[row, : len(prompt) + len(output)] = torch.tensor([*prompt, *output])
        mask[row, len(prompt) : len(prompt) + len(output)] = True
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "response_mask": mask[:, 1:]}


def run_get_response_log_probs(
    model: Module,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    return_token_entropy: bool,
) -> dict[str, Float[Tensor, "batch time"]]:
    """Return log_probs of the labels and, if asked, token_entropy of the distributions they came from."""
    logits = response_logits(model, input_ids)
    found = {"log_probs": -token_losses(logits, labels)}
    return found | ({"token_entropy": compute_entropy(logits.float())} if return_token_entropy else {})


def run_compute_rollout_rewards(
    reward_fn: RewardFunction, rollout_responses: list[str], repeated_ground_truths: list[str]
) -> tuple[Float[Tensor, " rollouts"], dict[str, float]]:
    """Return each response's "reward", and the mean of everything that the function says, under its name."""
    rows = [
        reward_fn(response, truth)
        for response, truth in zip(rollout_responses, repeated_ground_truths, strict=True)
    ]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
    return torch.tensor([float(row["reward"]) for row in rows]), means


def run_compute_group_normalized_rewards(
    raw_rewards: Float[Tensor, " rollouts"],
    group_size: int,
    baseline: Baseline = "mean",
    advantage_eps: float = ADVANTAGE_EPS,
    advantage_normalizer: Normalizer = "std",
) -> tuple[Float[Tensor, " rollouts"], dict[str, float]]:
    """Return advantages and figures of the rewards.

    (mean, std) is GRPO, (mean, none) Dr. GRPO, (none, none) RFT, (mean, mean) MaxRL.
    """
    return compute_group_normalized_rewards(
        raw_rewards,
        group_size=group_size,
        baseline=baseline,
        advantage_eps=advantage_eps,
        advantage_normalizer=advantage_normalizer,
    )


def run_compute_policy_gradient_loss(
    raw_rewards_or_advantages: Tensor,
    policy_log_probs: Float[Tensor, "batch time"],
    importance_reweighting_method: Reweighting = "none",
    old_log_probs: Float[Tensor, "batch time"] | None = None,
    cliprange: float | None = None,
    response_mask: Tensor | None = None,
) -> tuple[Float[Tensor, "batch time"], dict[str, Tensor]]:
    """Return each token's loss, and where the clip decided ("clipped"; its mean is the clip fraction).

    Rewards or advantages are (batch,) or (batch, 1).
    """
    found = compute_policy_gradient_loss(
        raw_rewards_or_advantages.reshape(-1, 1),
        policy_log_probs,
        importance_reweighting_method=importance_reweighting_method,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
        response_mask=None if response_mask is None else response_mask.bool(),
    )
    return found.losses, {"clipped": found.clipped}


def run_aggregate_loss_across_microbatch(
    per_token_policy_gradient_loss: Float[Tensor, "batch time"],
    mask: Tensor,
    loss_normalization: Normalization = "sequence",
    normalization_constant: int | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over responses of their tokens' mean ("sequence"), or the sum over a constant."""
    return aggregate(
        per_token_policy_gradient_loss,
        mask.bool(),
        normalization=loss_normalization,
        constant=normalization_constant,
    )


class _Answers(NamedTuple):
    """Responses as rows, and what the loss needs of each."""

    input_ids: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch 1"]
    weights: Float[Tensor, " batch"]
    """What the sum of a row's token losses is multiplied with."""
    old_log_probs: Float[Tensor, "batch time"] | None

    def rows(self, which: Tensor | slice) -> "_Answers":
        return _Answers(*(None if column is None else column[which] for column in self))


def run_grpo_train_step(
    model: Module,
    tokenizer: Any,
    optimizer: Optimizer,
    gradient_accumulation_steps: int,
    max_grad_norm: float | None,
    reward_fn: RewardFunction,
    repeated_prompts: list[str],
    rollout_responses: list[str],
    repeated_ground_truths: list[str],
    group_size: int,
    baseline: Baseline = "mean",
    advantage_eps: float = ADVANTAGE_EPS,
    advantage_normalizer: Normalizer = "std",
    importance_reweighting_method: Reweighting = "none",
    old_log_probs: Float[Tensor, "batch time"] | None = None,
    cliprange: float | None = None,
    loss_normalization: Normalization = "sequence",
    normalization_constant: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor | float]]:
    """Reward the responses and make one step of the optimizer; return the loss and figures.

    What each response counts in the loss is settled before the first micro-batch, so any number of them gives
    the whole batch's gradient. Responses of advantage 0 are not computed: they have none.

    Returns:
        The loss of the whole batch, and: grad_norm before clipping, token_entropy over the tokens that were
        computed (NaN where none was), clip_fraction of them, what the rewards are made of, and their figures.
    """
    rewards, means = run_compute_rollout_rewards(reward_fn, rollout_responses, repeated_ground_truths)
    advantages, figures = run_compute_group_normalized_rewards(
        rewards, group_size, baseline, advantage_eps, advantage_normalizer
    )
    tokens = run_tokenize_prompt_and_output(repeated_prompts, rollout_responses, tokenizer)
    lengths = tokens["response_mask"].sum(dim=1)
    weights = answer_weights(lengths, normalization=loss_normalization, constant=normalization_constant)
    answers = _Answers(*tokens.values(), advantages[:, None], weights, old_log_probs)
    how = {"importance_reweighting_method": importance_reweighting_method, "cliprange": cliprange}
    optimizer.zero_grad(set_to_none=True)
    loss, entropy, clipped = _backward(model, answers, gradient_accumulation_steps, how)
    grad_norm = clip_gradients_(model.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    measured = {"grad_norm": grad_norm, "token_entropy": entropy, "clip_fraction": clipped}
    return loss, {**measured, **means, **figures}


def _backward(
    model: Module, answers: _Answers, num_parts: int, how: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave the gradient in the parameters; return the loss, mean entropy and the share that was clipped."""
    loss = torch.zeros((), device=next(model.parameters()).device)
    seen: list[tuple[Tensor, Tensor]] = []
    for on_host in _parts(answers, num_parts):
        part = _Answers(*(None if column is None else column.to(loss.device) for column in on_host))
        found = run_get_response_log_probs(model, part.input_ids, part.labels, True)
        losses, more = run_compute_policy_gradient_loss(
            part.advantages,
            found["log_probs"],
            old_log_probs=part.old_log_probs,
            response_mask=part.mask,
            **how,
        )
        part_loss = (masked_sum(losses, part.mask, dim=1) * part.weights).sum()
        part_loss.backward()
        loss += part_loss.detach()
        entropy = found["token_entropy"].detach()
        seen.append((entropy[part.mask], more["clipped"][part.mask].float()))
    if not seen:  # a gradient of 0 still lets an optimizer decay and follow its momentum; None does not
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    columns = zip(*seen, strict=True) if seen else [(loss.new_empty(0),)] * 2
    return loss, *(torch.cat(column).mean() for column in columns)


def _parts(answers: _Answers, num_parts: int) -> Iterator[_Answers]:
    """The answers that have a gradient, in at most `num_parts` micro-batches of about equal size."""
    if num_parts < 1:
        raise ValueError(f"gradient_accumulation_steps={num_parts}: must be at least 1.")
    (kept,) = (answers.advantages[:, 0] != 0).nonzero(as_tuple=True)
    for rows in kept.tensor_split(num_parts):
        if len(rows):
            yield answers.rows(rows)
