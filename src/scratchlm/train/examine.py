"""Looking at a model between two steps: validation loss, sample text and sizes of layers go out.

    process 0: batches 0 2 4 ... of the split --+
                                                +-- sums of losses and tokens --> one loss, everywhere
    process 1: batches 1 3 5 ...              --+

With an exponential moving average of the weights (train.ema_decay) it is the average that is measured and
that writes; training goes on with the weights themselves.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from scratchlm import runtime
from scratchlm.data.corpora import Corpus
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.engine import Engine
from scratchlm.optim.ema import EMA
from scratchlm.tokenizer import Tokenizer
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Sampled, Validated
from scratchlm.train.record import Record
from scratchlm.train.snapshot import Progress
from scratchlm.train.statistics import Statistics

if TYPE_CHECKING:
    from scratchlm.train.aim import Aim, Measured


class Floor(NamedTuple):
    """The loss that no model can beat, on the validation split."""

    loss: float
    bits_per_byte: float


class Dictated(torch.nn.Module):
    """A model that all processes compute together, with the logits of process 0 on all of them.

    Each draws the next token by itself. On machines of different kinds logits differ in their last bits; once
    in a while that is another token, and then another length, and processes would wait for each other.
    """

    def __init__(self, model: torch.nn.Module, engine: Engine) -> None:
        """Wrap `model`, whose processes `engine` knows."""
        super().__init__()
        self.model, self.config, self.make_cache = model, model.config, model.make_cache
        self._engine = engine

    def hidden(self, ids: Int[Tensor, "rows time"], **extra: Any) -> Tensor:
        """What goes into the head, as this process computes it."""
        return self.model.hidden(ids, **extra)

    def head(self, hidden: Tensor) -> Tensor:
        """The logits of process 0."""
        return self._engine.from_first(self.model.head(hidden))


class Validation(NamedTuple):
    """What was measured, and what is compared with the measurements on the way."""

    measured: "Measured"
    comparable: float
    """The loss on as much as is measured on the way: one on more or less would say nothing about the best."""


class Examiner:
    """Validates and samples, and writes down what it found."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        average: EMA | None,
        record: Record,
        *,
        corpus: Corpus | None,
        tokenizer: Tokenizer,
        valid_set: TokenDataset,
        floor: Floor | None,
        precision: str,
        aim: "Aim",
    ) -> None:
        """Keep the parts; `precision` is the number format of matrix products, `aim` measures and writes."""
        self.config, self.engine, self.average, self.record = config, engine, average, record
        self.model = engine.model
        self.corpus, self.tokenizer, self.valid_set = corpus, tokenizer, valid_set
        self.floor, self.precision, self.aim = floor, precision, aim
        self.statistics = Statistics(engine.model, engine)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def validate(self, progress: Progress, *, everything: bool) -> Validation:
        """Measure the validation split, or `eval_tokens` of it, together; `progress` keeps the best loss."""
        step, part = progress.done_steps, None
        with self._averaged():
            if everything and self.aim.part_measured(self.config) is not None:
                part = self.aim.measure(self, everything=False)
            found = self.aim.measure(self, everything=everything)
        comparable = (part or found).loss
        best = comparable < progress.best_loss
        if best:
            progress.best_loss = comparable
        tokens = self.aim.tokens(self.config, step).so_far
        row = {"kind": "valid", "step": step, "tokens": tokens, "loss": found.loss}
        bits = found.likelihood.bits_per_byte if found.likelihood else None
        row |= {} if bits is None else {"bits_per_byte": bits}
        self.record.add(row | {"seconds": progress.training_seconds} | found.figures)
        floor = self.floor.loss if self.floor else None
        self.record.tell(Validated(step, found.loss, bits, floor, best, found.figures))
        return Validation(found, comparable)

    def sample(self, step: int) -> None:
        """Let the model write."""
        with self._averaged():  # with a seed: where all processes write, all write the same
            model = self.model if self.engine.whole else Dictated(self.model, self.engine)
            texts = list(self.aim.write(self, model))
        for prompt, text, pieces in texts:
            score = self.corpus.consistency(text) if self.corpus is not None else None
            row: dict[str, Any] = {"step": step, "prompt": prompt, "text": text}
            row["tokens"] = [{"text": piece.text, "probability": piece.probability} for piece in pieces]
            row["consistency"] = score and {"num_facts": score[0], "num_consistent": score[1]}
            if self.record.writes:
                self.record.samples.append(row)
            shown = tuple((piece.text, piece.probability) for piece in pieces)
            self.record.tell(Sampled(step, prompt, text, shown))

    def measure_layers(self, step: int, ids: Int[Tensor, "rows time"]) -> None:
        """Write down the sizes of weights, clipped gradients, last update and activations, part by part."""

        def autocast() -> contextlib.AbstractContextManager[None]:
            return runtime.autocast(self.device, self.precision)

        with self.engine.examining():
            layers = self.statistics.collect(ids.to(self.device), autocast=autocast)
        self.record.add({"kind": "statistics", "step": step, "layers": layers})

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        with self.average.swapped() if self.average else contextlib.nullcontext(), self.engine.examining():
            yield
