"""What a run trains for: a session asks here for its parts, and for what it measures and writes on the way.

    pretraining      a fresh model, rows of shards, cross-entropy; the validation split; a text
    post-training    a base model (perhaps with an adapter), conversations or answers, another objective;
                     held-out items; answers to questions         (posttrain/stage.py)

Everything else of a run is the same: steps, guard, intervals, checkpoints, signals, records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import CheckpointReader, Piece
from scratchlm.data.loader import Batches
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.engine import Engine
from scratchlm.evaluate.likelihood import Likelihood, evaluate_split
from scratchlm.generate.engine import Piece as TextPiece
from scratchlm.generate.engine import stream
from scratchlm.tokenizer import Tokenizer
from scratchlm.train import build, snapshot
from scratchlm.train.config import RunConfig
from scratchlm.train.objective import Objective
from scratchlm.train.record import TokensRead
from scratchlm.train.trainer import Execution, StepResult

if TYPE_CHECKING:
    from scratchlm.train.examine import Examiner
    from scratchlm.train.session import Session

Groups = dict[str, dict[str, Tensor | Piece]]
"""Tensors of a checkpoint: group -> name -> tensor."""


class Measured(NamedTuple):
    """What a validation found."""

    loss: float
    """Decides which checkpoint is the best: the lower, the better."""
    likelihood: Likelihood | None = None
    """How well held-out text was predicted; None where none was."""
    figures: dict[str, float] = {}  # noqa: RUF012 - a NamedTuple's default is never changed
    """Further numbers for the record."""


class Written(NamedTuple):
    """A text that the model wrote."""

    prompt: str
    text: str
    """With the prompt, where it continues the prompt."""
    pieces: list[TextPiece]


class Aim(ABC):
    """How a run's parts are made and examined."""

    @abstractmethod
    def build_model(self, config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
        """The model as it is before the first step."""

    @abstractmethod
    def build_loader(self, config: RunConfig, dataset: TokenDataset) -> Batches:
        """Where batches come from: the same for the same seed and step."""

    @abstractmethod
    def build_objective(
        self, config: RunConfig, model: torch.nn.Module, tokenizer: Tokenizer, how: Execution
    ) -> torch.nn.Module:
        """What is minimised: called with the tensors of a batch, gives the mean loss."""

    @abstractmethod
    def measure(self, examiner: "Examiner", *, everything: bool) -> Measured:
        """Measure held-out data; `everything` at the end, else perhaps a part."""

    def part_measured(self, config: RunConfig) -> int | None:
        """How much of what the last measurement takes those on the way take; None: all of it."""
        return config.train.eval_tokens

    @abstractmethod
    def write(self, examiner: "Examiner", model: torch.nn.Module) -> Iterator[Written]:
        """Let `model` write the texts that the record shows."""

    def execution(self, how: Execution) -> Execution:
        """How the arithmetic is done, given what the plan says."""
        return how

    def attach(self, session: "Session") -> None:
        """A session runs, from its first step or from a checkpoint."""
        return None

    def close(self) -> None:
        """The session is over, however it ended."""
        return None

    def begin(self, session: "Session") -> None:
        """A run begins at its first step."""
        return None

    def before_step(self, step: int) -> None:
        """Optimizer step number `step` (the first is 0) begins."""
        return None

    def after_step(self, result: StepResult) -> None:
        """The step was not abandoned."""
        return None

    def figures(self) -> dict[str, float]:
        """What the last step's record says beside its loss."""
        return {}

    def tokens(self, config: RunConfig, done_steps: int) -> TokensRead:
        """Tokens that were read in `done_steps` steps, the last of which was just done."""
        return TokensRead(done_steps * config.train.batch_tokens, config.train.batch_tokens)

    def describe(self, text: str) -> str:
        """The paragraph that says how large and how long, given pretraining's."""
        return text

    def summary(self) -> dict[str, Any]:
        """What summary.json says beside what all runs say."""
        return {}

    def tensors(self, engine: Engine) -> Groups:
        """What a checkpoint holds beside, or in place of, the engine's weights; group "model" is for all."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, as JSON values."""
        return {}

    def load_weights(self, saved: CheckpointReader, engine: Engine) -> None:
        """Give the engine's model the weights that a checkpoint holds."""
        snapshot.load_weights(saved, engine)

    def restore(self, saved: CheckpointReader, state: dict[str, Any]) -> None:
        """Be as `tensors` and `state` said; the weights are loaded."""
        return None


class Pretraining(Aim):
    """Learn to predict a corpus, from the first weight on."""

    def build_model(self, config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
        """A model with fresh weights."""
        return build.build_model(config, tokenizer)

    def build_loader(self, config: RunConfig, dataset: TokenDataset) -> Batches:
        """Rows of the training shards."""
        return build.build_loader(config, dataset)

    def build_objective(
        self, config: RunConfig, model: torch.nn.Module, tokenizer: Tokenizer, how: Execution
    ) -> torch.nn.Module:
        """Cross-entropy over all tokens."""
        return Objective(
            model,
            config.train,
            device=how.device,
            precision=how.precision,
            micro_tokens=how.micro_rows * config.model.context_length,
            compiled=how.compile,
            end_of_text_id=tokenizer.end_of_text_id,
        )

    def measure(self, examiner: "Examiner", *, everything: bool) -> Measured:
        """Measure the validation split, or `eval_tokens` of it."""
        train = examiner.config.train
        found = evaluate_split(
            examiner.model,
            examiner.valid_set,
            context_length=examiner.config.model.context_length,
            device=examiner.device,
            autocast=partial(runtime.autocast, examiner.device, examiner.precision),
            max_tokens=None if everything else train.eval_tokens,
            documents=train.document_mask,
            processes=examiner.engine.processes,
        )
        return Measured(found.loss, found)

    def write(self, examiner: "Examiner", model: torch.nn.Module) -> Iterator[Written]:
        """Continue the run's prompt."""
        prompt = examiner.config.prompt
        pieces = list(stream(model, examiner.tokenizer, prompt, examiner.config.sampling))
        yield Written(prompt, prompt + "".join(piece.text for piece in pieces), pieces)
