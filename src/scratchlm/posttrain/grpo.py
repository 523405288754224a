r"""Reinforcement learning with verifiable rewards: problems in, a model that solves more of them out.

    cycle:   rollout    prompts_per_step * steps_per_rollout problems, group_size answers each, judged
             steps      passes * steps_per_rollout optimizer steps, each on prompts_per_step groups

The advantage of an answer is how much better it was than the others to the same problem (advantages.py);
policy_objective.py says what a step minimises. Answers of advantage 0 have no gradient and do not go through
the model (with kl > 0 they have one, and do). The log-probabilities under the weights that drew the answers
are computed once in a cycle and stay fixed.

    name              baseline  normalizer  loss        length     steps_per_rollout, passes
    GRPO              mean      std         grpo        sequence
    Dr. GRPO          mean      none        grpo        constant
    RFT               none      none        reinforce   sequence
    MaxRL             mean      mean        grpo        sequence
    GSPO              mean      std         gspo        sequence
    expert iteration  none      none        reinforce   sequence   several of both: rewards 0 and 1 choose the
                                                                   answers that are then learnt by heart

Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300, algorithm 1; the variants in advantages.py and
policy_losses.py; expert iteration: Anthony et al. 2017, https://arxiv.org/abs/1705.08439.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.checkpoint import CheckpointReader
from scratchlm.data.loader import Batches
from scratchlm.data.permutation import permute
from scratchlm.distributed.engine import Engine
from scratchlm.generate.engine import Engine as Writer
from scratchlm.generate.engine import evaluating
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.posttrain import STAGES
from scratchlm.posttrain.advantages import compute_group_normalized_rewards
from scratchlm.posttrain.config import GrpoConfig
from scratchlm.posttrain.held_out import VALID_SEED
from scratchlm.posttrain.policy_losses import answer_weights
from scratchlm.posttrain.policy_objective import PolicyBatch, PolicyObjective
from scratchlm.posttrain.rewards import REWARDS, Judge, RewardError
from scratchlm.posttrain.rollout import (
    Answer,
    Drawer,
    Drawn,
    Rollout,
    collate,
    from_tensors,
    seeds_of,
    spread,
    to_tensors,
)
from scratchlm.posttrain.stage import Counted, Message, Stage
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Problem
from scratchlm.runtime import log
from scratchlm.train.aim import Groups, Measured
from scratchlm.train.config import RunConfig
from scratchlm.train.events import OnEvent
from scratchlm.train.examine import Examiner
from scratchlm.train.trainer import Execution

if TYPE_CHECKING:
    from scratchlm.train.session import Session

GROUP = "rollout"
"""Group of a checkpoint with the answers of a cycle that is not done."""
SHOWN = 3
"""Held-out problems whose answers are shown along the way."""


class AnswerBatches(Batches):
    """Answers of a step, those that teach something first, the longest of them first."""

    foreseen = False  # the next step's answers may need the weights after this one

    def __init__(self, stage: "Grpo") -> None:
        """Ask `stage` for rollouts."""
        self.stage, self.rows_per_step = stage, stage.config.items_per_step

    @property
    def fingerprint(self) -> str:
        """Problems are computed: their settings identify them."""
        return hashlib.sha256(self.stage.config.data.model_dump_json().encode("utf-8")).hexdigest()

    def again(self, step: int) -> PolicyBatch | None:
        """None when the cycle of the step is over: other weights would write other answers."""
        return super().again(step) if self.stage.has_answers_of(step) else None

    def rows(self, step: int, first: int, count: int) -> PolicyBatch:
        """Some of a step's answers; fewer than `count`, or none, where the others teach nothing."""
        rollout, chosen, weights = self.stage.answers_of(step)
        rows = chosen[first : first + count]
        scored = collate([rollout.answers[row] for row in rows])
        tables = (rollout.old, rollout.reference)
        old, reference = (
            spread([] if table is None else [table[row] for row in rows], scored.mask) for table in tables
        )
        return PolicyBatch(
            inputs=scored.inputs,
            targets=scored.targets,
            mask=scored.mask,
            advantages=rollout.advantages[rows][:, None],
            weights=weights[rows],
            drawn=scored.drawn,
            old=old,
            reference=reference,
            scale=torch.tensor(self.rows_per_step / count),
        )


@STAGES.register("grpo")
class Grpo(Stage):
    """Repeat what earned a reward."""

    Config = GrpoConfig
    config: GrpoConfig
    objective: PolicyObjective

    def prepare(self, on_event: OnEvent) -> None:
        """Build exercise and rewards; problems are computed when they are asked for."""
        config = self.config
        self.exercise = EXERCISES.build(config.data.name, **config.data.settings)
        parts: dict[str, Any] = {}
        for part in config.rewards:
            name = part.name if part.name not in parts else f"{part.name}_{len(parts) + 1}"
            parts[name] = REWARDS.build(part.name, **part.settings)
        self.judge = Judge(parts, on_failure=config.rewards_on_failure)
        self.rollout: Rollout | None = None
        self.drawer: Drawer | None = None
        self.reference: Module | None = None
        self.session: Session | None = None
        self._told_flat = False
        held_out = self.exercise.problems(VALID_SEED, "valid", 0, config.valid_problems)
        self.train_set = self._counted(self.problems(0), config.train.steps * config.items_per_step)
        self.valid_set = self._counted(held_out, len(held_out))

    def attach(self, session: "Session") -> None:
        """Know who may ask to stop in the middle of a rollout."""
        self.session = session
        if self.drawer is not None:
            self.drawer.abandon = session.signals.requested

    def close(self) -> None:
        """End the processes of rewards."""
        self.judge.close()

    def problems(self, cycle: int) -> list[Problem]:
        """The problems of a cycle."""
        count = self.config.prompts_per_step * self.config.steps_per_rollout
        return self.exercise.problems(self.config.seed, "train", cycle * count, count)

    def loader(self) -> Batches:
        """Answers, drawn when their step comes."""
        return AnswerBatches(self)

    def make_objective(self, model: Module, how: Execution) -> PolicyObjective:
        """A policy loss; the engine that draws has the same weights."""
        config = self.config
        engine = Writer(
            model, self.base.tokenizer, slots=min(config.rollout.slots, config.answers_per_rollout)
        )
        self.drawer = Drawer(engine, self.template, self.exercise, max_tokens=self.max_tokens)
        if self.session is not None:
            self.attach(self.session)
        return PolicyObjective(model, how, config)

    def describe(self, text: str) -> str:
        """How large, how long, how."""
        config = self.config
        return (
            f"{self.adapter.describe(self.objective.model)}; {config.prompts_per_step:,} problems with "
            f"{config.group_size:,} answers each a step, {config.cycle_steps:,} step(s) on one rollout; "
            f"base {config.base} at step {self.base.step:,}."
        )

    def figures(self) -> dict[str, float]:
        """Those of the rollout and of the step."""
        return (self.rollout.figures if self.rollout else {}) | super().figures()

    def has_answers_of(self, step: int) -> bool:
        """Whether the answers that are here are those of the step's cycle."""
        return self.rollout is not None and self.rollout.cycle == step // self.config.cycle_steps

    def answers_of(self, step: int) -> tuple[Rollout, list[int], Float[Tensor, " answers"]]:
        """Return a step's rollout, which of its answers teach something, and the weights of all."""
        config = self.config
        cycle, inner = divmod(step, config.cycle_steps)
        self.objective.is_first = inner == 0
        if not self.has_answers_of(step):
            self.rollout = self._roll(cycle)
        rollout = self.rollout
        mine = rows_of_step(len(rollout.answers), inner, config)
        lengths = torch.tensor([len(rollout.answers[row].ids) for row in mine])
        weights = torch.zeros(len(rollout.answers))
        weights[mine] = answer_weights(
            lengths, normalization=config.length, constant=config.constant or config.most_tokens_per_step
        )
        teaching = [row for row in mine if self._teaches(rollout, row)]
        # a step in which nothing teaches has a gradient of 0, and not none
        chosen = teaching or mine[:1]
        return rollout, sorted(chosen, key=lambda row: (-_length(rollout.answers[row]), row)), weights

    def part_measured(self, config: RunConfig) -> int | None:
        """How many of the held-out problems are solved on the way."""
        few = self.config.eval_problems
        return None if few == self.config.valid_problems else few

    def held_out(self, examiner: Examiner, *, everything: bool) -> Measured:
        """Solve held-out problems, always taking the likeliest token; `loss` is the share not solved."""
        config = self.config
        few = config.eval_problems or config.valid_problems
        number = config.valid_problems if everything else few
        problems = self.exercise.problems(VALID_SEED, "valid", 0, number)
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=config.rollout.max_new_tokens)
        how = {"group_size": 1, "seeds": [0] * number, "to_the_end": True}
        drawn = self._draw(examiner.model, problems, sampling, **how)
        correct = sum(attempt.verdict.correct for attempt in drawn.attempts) / number
        formatted = sum(attempt.verdict.formatted for attempt in drawn.attempts) / number
        length = sum(attempt.num_tokens for attempt in drawn.attempts) / number
        figures = {"accuracy": correct, "formatted": formatted, "answer_tokens": length}
        return Measured(1 - correct, figures=figures)

    def questions(self) -> Sequence[Sequence[Message]]:
        """The first held-out problems."""
        shown = self.exercise.problems(VALID_SEED, "valid", 0, SHOWN)
        return [[{"role": "user", "content": problem.prompt}] for problem in shown]

    def tensors(self, engine: Engine) -> Groups:
        """In the middle of a cycle, its answers too."""
        kept = {GROUP: to_tensors(self.rollout)} if self._in_cycle else {}
        return super().tensors(engine) | kept

    def state(self) -> dict[str, Any]:
        """In the middle of a cycle, what the answers' tensors do not say."""
        kept = {"cycle": self.rollout.cycle, "figures": self.rollout.figures} if self._in_cycle else None
        return super().state() | {"rollout": kept}

    def restore(self, saved: CheckpointReader, state: dict[str, Any]) -> None:
        """Take a cycle up where it was."""
        super().restore(saved, state)
        plain, self.rollout = state.get("rollout"), None
        if plain is not None:
            tensors = {name: saved.read(GROUP, name) for name in saved.names(GROUP)}
            self.rollout = from_tensors(tensors, plain)

    @property
    def _in_cycle(self) -> bool:
        return self.rollout is not None and self.config.cycle_steps > 1

    def _roll(self, cycle: int) -> Rollout:
        """Draw, judge, and compute once what stays fixed in the cycle."""
        started = time.perf_counter()
        config, model = self.config, self.objective.model
        problems = self.problems(cycle)
        sampling = SamplingConfig(
            temperature=config.rollout.temperature, max_new_tokens=config.rollout.max_new_tokens
        )
        seeds = seeds_of(config.seed, cycle, len(problems))
        drawn = self._draw(model, problems, sampling, group_size=config.group_size, seeds=seeds)
        judged = self.judge(drawn.attempts)
        if config.normalizer == "mean" and (judged.rewards < 0).any():
            raise RewardError(
                f"normalizer=mean: a reward is {float(judged.rewards.nan_to_num().min()):g}; divided by a "
                "mean below 0, better answers would be unlearnt. Let rewards be at least 0, or take std or "
                "none."
            )
        found = compute_group_normalized_rewards(
            judged.rewards,
            group_size=config.group_size,
            baseline=config.baseline,
            advantage_eps=config.advantage_eps,
            advantage_normalizer=config.normalizer,
        )
        figures = found.figures | judged.figures | figures_of(drawn, len(problems))
        rollout = self._with_log_probs(Rollout(cycle, drawn.answers, found.values, figures))
        if not rollout.advantages.any() and not self._told_flat:
            self._told_flat = True
            log.warning(
                "step %d: all answers to a problem earned the same (%.0f %% of all are right), so nothing is "
                "learnt from them. Where that goes on, take problems that are solved now and then, more "
                "answers to each (group_size) or another reward.",
                cycle * config.cycle_steps + 1,
                100 * figures["accuracy"],
            )
        figures["rollout_seconds"] = time.perf_counter() - started
        return rollout

    def _draw(
        self, model: Module, problems: Sequence[Problem], sampling: SamplingConfig, **how: Any
    ) -> Drawn:
        assert self.drawer is not None
        # the engine would go over all parts of a model in training mode at each token
        with evaluating(model), self.adapter.merged(model):
            return self.drawer.draw(problems, sampling, **how)

    def _with_log_probs(self, rollout: Rollout) -> Rollout:
        """Add the log-probabilities under the weights as they are and under the base's."""
        objective, config = self.objective, self.config
        if self.reference is None:
            self.reference = self.base.reference(objective.device)
        # what no step reads is not computed: of answers that teach nothing
        needed = [row for row in range(len(rollout.answers)) if self._teaches(rollout, row)]
        with evaluating(objective.model), self.adapter.merged(objective.model):
            old = (
                None if config.cycle_steps == 1 else self._log_probs(rollout.answers, needed, objective.model)
            )
        reference = self._log_probs(rollout.answers, needed, self.reference)
        return replace(rollout, old=old, reference=reference)

    def _teaches(self, rollout: Rollout, row: int) -> bool:
        """Whether an answer has a gradient."""
        return self.config.kl > 0 or bool(rollout.advantages[row] != 0)

    @torch.no_grad()
    def _log_probs(self, answers: Sequence[Answer], needed: Sequence[int], model: Module) -> list[Tensor]:
        """Log-probabilities of the needed answers' tokens under a model, as the objective has them."""
        order = sorted(needed, key=lambda row: -_length(answers[row]))
        found = [torch.zeros(len(answer.ids)) for answer in answers]
        size = max(1, self.config.rows_at_once)
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            scored = collate([answers[row] for row in rows])
            tensors = (part.to(self.objective.device) for part in scored[:3])
            table = self.objective.token_log_probs(model, *tensors).cpu()
            for row, values, mask in zip(rows, table, scored.mask, strict=True):
                found[row] = values[mask]
        return found

    def _counted(self, problems: Sequence[Problem], num_items: int) -> Counted:
        """As many items, as long as these problems and an answer as long as the good one are."""
        tokenizer = self.base.tokenizer
        texts = [problem.prompt + problem.response for problem in problems]
        tokens = sum(len(tokenizer.encode_ordinary(text)) for text in texts)
        num_bytes = sum(len(text.encode("utf-8")) for text in texts)
        share = num_items / max(1, len(problems))
        return Counted(num_items, round(tokens * share), round(num_bytes * share))


def rows_of_step(num_answers: int, inner: int, config: GrpoConfig) -> list[int]:
    """Return which answers of a rollout step number `inner` of its cycle reads: whole groups, once a pass.

    A first pass takes the groups in their order, each further one in an order of its own.
    """
    num_groups, size = num_answers // config.group_size, config.group_size
    number, part = divmod(inner, config.steps_per_rollout)
    places = range(part * config.prompts_per_step, (part + 1) * config.prompts_per_step)
    groups = [
        place if number == 0 else permute(place, num_groups, config.seed, number)
        for place in places
        if place < num_groups
    ]
    return [group * size + answer for group in groups for answer in range(size)]


def figures_of(drawn: Drawn, num_problems: int) -> dict[str, float]:
    """Return what a record says of a rollout beside rewards."""
    attempts = drawn.attempts
    number = len(attempts)
    return {
        "accuracy": sum(attempt.verdict.correct for attempt in attempts) / number,
        "answer_tokens": sum(attempt.num_tokens for attempt in attempts) / number,
        "finished": sum(attempt.finished for attempt in attempts) / number,
        "prompts_skipped": drawn.num_skipped / num_problems,
    }


def _length(answer: Answer) -> int:
    return len(answer.prompt_ids) + len(answer.ids)
