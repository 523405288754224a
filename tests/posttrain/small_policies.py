"""A GRPO stage over a tiny base, without a session; and a plain twin of its loss."""

import json

import torch
from small_bases import settings

from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.config import GrpoConfig
from scratchlm.posttrain.grpo import Grpo
from scratchlm.train.folder import RunFolder
from scratchlm.train.trainer import Execution

SUMS = {
    "data": {"name": "arithmetic", "digits": 1, "form": "number"},
    "rewards": [{"name": "regex", "pattern": "[a-m]"}],
    "prompts_per_step": 2,
    "group_size": 4,
    "valid_problems": 4,
    "eval_problems": 2,
    "base_tokens": 0,
}
"""An untrained model writes one of these letters in about every second answer."""


def toml(value):
    """A value as an override has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def grpo_settings(base, *words, **more):
    """Settings of a short GRPO run."""
    given = SUMS | more
    return settings(GrpoConfig, base, *(f"{key}={toml(value)}" for key, value in given.items()),
                    "rollout.max_new_tokens=6", *words)  # fmt: skip


def stage_of(base, folder, *words, **more):
    """A stage with model and objective, ready to draw."""
    config = grpo_settings(base, *words, **more)
    folder.mkdir(parents=True, exist_ok=True)
    made = Grpo(config, open_base(config, RunFolder(folder)), RunFolder(folder))
    made.prepare(lambda event: None)
    model = made.build_model(made.run_config(), made.base.tokenizer)
    made.objective = made.make_objective(model, Execution(torch.device("cpu"), "float32", False, 4))
    return made


def gradient(stage, step, micro_rows):
    """The gradient of a step as the trainer adds it up, and its loss."""
    model, loader = stage.objective.model, stage.loader()
    model.zero_grad()
    total = 0.0
    for first in range(0, loader.rows_per_step, micro_rows):
        loss = stage.objective(*loader.rows(step, first, micro_rows)) * micro_rows / loader.rows_per_step
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def plain_gradient(stage, rollout, rows, *, old=None):
    """The same: one answer after the other, all of them, every formula written out."""
    config, model = stage.config, stage.objective.model
    reference = stage.base.reference()
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        answer, advantage = rollout.answers[row], rollout.advantages[row]
        now = plain_log_probs(model, answer, config.rollout.temperature)
        before = now.detach() if old is None else old[row]
        loss = plain_loss(config.loss.name, now, advantage, before, **config.loss.settings)
        if config.kl:
            apart = plain_log_probs(reference, answer, config.rollout.temperature).detach() - now
            loss = loss + config.kl * (apart.exp() - apart - 1).mean()
        if config.length == "sequence":
            total = total + loss / len(rows)
        else:
            total = total + len(now) * loss / (len(rows) * config.rollout.max_new_tokens)
    total.backward()
    return float(total.detach()), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


def plain_loss(name, now, advantage, before, *, clip=0.2, clip_high=None):
    """The mean policy loss of an answer's tokens, one token after the other, with scalars."""
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    of_answer = torch.exp((now - before).mean())
    losses = []
    for logp, old in zip(now, before, strict=True):
        ratio = of_answer if name == "gspo" else torch.exp(logp - old)
        if name == "reinforce":
            losses.append(-advantage * logp)
        elif name == "ratio":
            losses.append(-advantage * ratio)
        elif name == "cispo":
            losses.append(-advantage * min(float(ratio.detach()), high) * logp)
        else:
            free = float(ratio.detach())
            bound = min(max(free, low), high)
            inside = bound == free or float(advantage) * free < float(advantage) * bound
            losses.append(-advantage * (ratio if inside else bound))
    return sum(losses) / len(losses)


def plain_log_probs(model, answer, temperature=1.0):
    """ln p of an answer's tokens, alone and without padding."""
    ids = torch.tensor([answer.prompt_ids + answer.ids])
    log_p = (model(ids[:, :-1])[0] / temperature).log_softmax(dim=-1)
    return log_p.gather(1, ids[0, 1:, None])[len(answer.prompt_ids) - 1 :, 0]
