"""What all ways of post-training share: a base and settings come in; a session's parts and figures go out.

    class Sft(Stage)      prepare      data from files or a generator, split and counted
                          loader       items of a step as tensors, a pure function of (seed, step)
                          objective    tensors -> loss, with figures beside it
                          held_out     what validation measures

A stage is an aim (train/aim.py): the session, the trainer, checkpoints, signals and records are those of
pretraining. This file adds what a stage has beyond it: weights that begin as the base's, an adapter, text of
the base on which forgetting is measured, answers to questions as samples, and the first validation before the
first step, so that every run shows what it changed.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from scratchlm import runtime
from scratchlm.checkpoint import CheckpointReader
from scratchlm.data.loader import Batches
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.engine import Engine
from scratchlm.evaluate.likelihood import Likelihood, evaluate_split
from scratchlm.generate.engine import Engine as Writer
from scratchlm.generate.engine import Piece
from scratchlm.generate.request import Request
from scratchlm.posttrain import ADAPTERS
from scratchlm.posttrain.base import Base
from scratchlm.posttrain.config import PosttrainConfig
from scratchlm.posttrain.objective import StageObjective
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.aim import Aim, Groups, Measured, Written
from scratchlm.train.config import RunConfig, TrainConfig
from scratchlm.train.events import OnEvent
from scratchlm.train.examine import Examiner
from scratchlm.train.folder import RunFolder
from scratchlm.train.record import TokensRead
from scratchlm.train.session import Session
from scratchlm.train.trainer import Execution, StepResult, largest_divisor

Message = Mapping[str, str]
"""{"role": "user", "content": "..."}"""


class Counted(NamedTuple):
    """How large a split is."""

    num_items: int
    num_tokens: int
    num_bytes: int
    """UTF-8 bytes of its text."""


class Stage(Aim):
    """One way of post-training.

    Attributes:
        config: Its settings.
        base: What it goes on from.
        template: How conversations are written.
        folder: The run's folder: what is computed once may be kept there.
        train_set: Set by `prepare`.
        valid_set: Set by `prepare`.
        objective: Set before the first step.
        base_text: The base run's validation text, where there is some.
    """

    Config: ClassVar[type[PosttrainConfig]]
    """Its settings."""

    train_set: Counted
    valid_set: Counted
    objective: StageObjective

    def __init__(self, config: PosttrainConfig, base: Base, folder: RunFolder) -> None:
        """Keep the parts; nothing is read yet."""
        self.config, self.base, self.folder = config, base, folder
        self.template = ChatTemplate(base.tokenizer)
        self.adapter = ADAPTERS.build(config.adapter.name, **config.adapter.settings)
        self.max_tokens = config.context_length or base.settings.context_length
        """The most tokens of a row."""
        shards = folder.shards("valid")
        self.base_text = TokenDataset.open(shards) if shards.is_dir() and config.base_tokens else None
        self._tokens, self._step_tokens, self._figures = 0, 0, dict[str, float]()
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    # what a stage says

    @abstractmethod
    def prepare(self, on_event: OnEvent) -> None:
        """Read the data and set `train_set` and `valid_set`.

        Raises:
            ValueError: The data cannot be used; it says which line of which file.
        """

    @abstractmethod
    def loader(self) -> Batches:
        """Where batches come from."""

    @abstractmethod
    def make_objective(self, model: torch.nn.Module, how: Execution) -> StageObjective:
        """What is minimised."""

    @abstractmethod
    def held_out(self, examiner: Examiner, *, everything: bool) -> Measured:
        """Measure held-out items; their `loss` decides which checkpoint is the best."""

    @abstractmethod
    def questions(self) -> Sequence[Sequence[Message]]:
        """Conversations that end with the user, whose answers are shown, where the settings name none."""

    # what it gets

    def run_config(self) -> RunConfig:
        """The settings that the run folder's config.json holds: any command can read them."""
        config, base = self.config, self.base.config
        train = config.train.model_dump() | {
            "batch_tokens": config.items_per_step * self.base.settings.context_length,
            "micro_batch_tokens": "auto",
            "compile": False,
            "document_mask": base.train.document_mask,
        }
        same = {name: getattr(base, name) for name in ("corpus", "tokenizer", "data", "model", "batches")}
        return RunConfig(
            name=config.name,
            description=config.description,
            seed=config.seed,
            optimizer=config.optimizer,
            schedule=config.schedule,
            train=TrainConfig(**train),
            sampling=config.sampling,
            **same,
        )

    def autocast(self, examiner: Examiner) -> Any:
        """Around a forward pass of the model between two steps."""
        return runtime.autocast(examiner.device, examiner.precision)

    # what a session asks

    def build_model(self, config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
        """The base's model, with what shall be trained of it."""
        runtime.set_seed(self.config.seed)
        model = self.base.model().train()
        self.adapter.apply(model, torch.Generator().manual_seed(self.config.seed))
        return model

    def build_loader(self, config: RunConfig, dataset: Any) -> Batches:
        """The stage's own."""
        return self.loader()

    def build_objective(
        self, config: RunConfig, model: torch.nn.Module, tokenizer: Tokenizer, how: Execution
    ) -> torch.nn.Module:
        """The stage's own, with gradient checkpointing if the settings ask for it."""
        model.gradient_checkpointing = self.config.train.gradient_checkpointing
        self.objective = self.make_objective(model, how)
        return self.objective

    def execution(self, how: Execution) -> Execution:
        """As many items at once as have, on average, the tokens that the plan computes at once."""
        asked = self.config.train.micro_batch_tokens
        tokens = how.micro_rows * self.base.settings.context_length if asked == "auto" else asked
        mean = self.train_set.num_tokens / max(1, self.train_set.num_items)
        items = max(1, int(tokens / max(1.0, mean)))
        self._how = replace(how, micro_rows=largest_divisor(self.config.items_per_step, items))
        return self._how

    def begin(self, session: Session) -> None:
        """Measure and sample what the base does."""
        session.examine()

    def before_step(self, step: int) -> None:
        """Forget the last step's figures."""
        self.objective.reset()

    def after_step(self, result: StepResult) -> None:
        """Keep this step's figures."""
        self._step_tokens = self.objective.num_tokens
        self._tokens += self._step_tokens
        self._figures = self.objective.figures()

    def figures(self) -> dict[str, float]:
        """Those of the objective."""
        return self._figures

    def tokens(self, config: RunConfig, done_steps: int) -> TokensRead:
        """Tokens that went through the model in training."""
        return TokensRead(self._tokens, self._step_tokens)

    def measure(self, examiner: Examiner, *, everything: bool) -> Measured:
        """Measure held-out items and the base's text."""
        found = self.held_out(examiner, everything=everything)
        figures = dict(found.figures)
        if self.base_text is not None:
            figures["base_loss"] = self._on_base_text(examiner).loss
        self._last = {"loss": found.loss} | figures
        self._first = self._first or self._last
        return found._replace(figures=figures)

    def _on_base_text(self, examiner: Examiner) -> Likelihood:
        assert self.base_text is not None
        return evaluate_split(
            examiner.model,
            self.base_text,
            context_length=self.base.config.model.context_length,
            device=examiner.device,
            autocast=partial(self.autocast, examiner),
            max_tokens=self.config.base_tokens,
            documents=self.base.config.train.document_mask,
        )

    def write(self, examiner: Examiner, model: torch.nn.Module) -> Iterator[Written]:
        """Answer the settings' questions, or the stage's."""
        asked = [[{"role": "user", "content": text}] for text in self.config.prompts] or self.questions()
        found: dict[int, list[Piece]] = {}
        with self.adapter.merged(model):
            writer = Writer(model, self.base.tokenizer, slots=max(1, len(asked)))
            numbers = [writer.submit(self._request(*one)) for one in enumerate(asked)]
            while writer.is_busy:
                for event in writer.step():
                    if event.error is not None:
                        raise ValueError(f"generation: {event.error}")
                    if event.token is not None:
                        piece = Piece(event.token.token_id, event.text, math.exp(event.token.logprob or 0.0))
                        found.setdefault(event.request_id, []).append(piece)
        for messages, number in zip(asked, numbers, strict=True):
            pieces = found.get(number, [])
            yield Written(messages[-1]["content"], "".join(piece.text for piece in pieces), pieces)

    def _request(self, place: int, messages: Sequence[Message]) -> Request:
        """What the engine is asked; of a long conversation the end. Each draws random numbers of its own."""
        sampling = self.config.sampling
        stop = (*sampling.stop, *self.template.stop_texts)
        return Request(
            prompt_ids=self.template.render(messages)[-(self.base.settings.context_length // 2) :],
            sampling=sampling.model_copy(update={"stop": stop, "seed": sampling.seed + place}),
            stop_ids=tuple(self.template.stop_ids),
        )

    def describe(self, text: str) -> str:
        """How large, how long, how."""
        config, how = self.config, self._how
        return (
            f"{self.adapter.describe(self.objective.model)}; {self.train_set.num_items:,} items of "
            f"{self.train_set.num_tokens:,} tokens, {config.items_per_step:,} a step, "
            f"{config.train.steps * config.items_per_step / max(1, self.train_set.num_items):.2f} epochs; "
            f"{how.micro_rows} at once, {how.precision} on {how.device}; base {config.base} at step "
            f"{self.base.step:,}."
        )

    def summary(self) -> dict[str, Any]:
        """What post-training adds to summary.json."""
        trained = sum(p.numel() for p in self.objective.model.parameters() if p.requires_grad)
        return {
            "posttrain": {
                "stage": type(self).__name__.lower(),
                "base": str(self.config.base),
                "base_step": self.base.step,
                "adapter": self.config.adapter.name,
                "trainable_parameters": trained,
                "items_per_step": self.config.items_per_step,
                "train_items": self.train_set.num_items,
                "valid_items": self.valid_set.num_items,
                "before": self._first,
                "after": self._last,
            }
        }

    def tensors(self, engine: Engine) -> Groups:
        """With an adapter: the merged weights for everybody, the adapter's own to go on with."""
        return self.adapter.tensors(engine.model)

    def state(self) -> dict[str, Any]:
        """Tokens read, and the first measurement."""
        return {"tokens": self._tokens, "first": self._first}

    def load_weights(self, saved: CheckpointReader, engine: Engine) -> None:
        """As the adapter saved them."""
        self.adapter.load(engine.model, saved)

    def restore(self, saved: CheckpointReader, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._tokens, self._first = int(state["tokens"]), dict(state["first"])


def stage_file(path: Path) -> Path:
    """Where a run folder keeps the settings of its stage; config.json has those that all runs have."""
    return path / "posttrain.json"
