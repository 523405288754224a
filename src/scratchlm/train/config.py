"""All settings of a run, in one frozen tree: what a recipe file holds and what config.json records.

Batch sizes are in tokens. A step is always `batch_tokens` tokens, on any machine: what does not fit into
memory at once is computed in micro-batches whose gradients add up.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scratchlm.config import Config, Part, part_of
from scratchlm.data import CORPORA, LOADERS
from scratchlm.distributed.engine import ENGINES
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.model import ModelSettings
from scratchlm.optim import OPTIMIZERS, SCHEDULES
from scratchlm.optim.width import matrix_factor
from scratchlm.runtime import PrecisionName
from scratchlm.tokenizer import TOKENIZERS
from scratchlm.train.guard import GuardConfig


class DataConfig(Config):
    """How documents become token shards."""

    workers: int = Field(default=2, ge=1)
    """Threads that encode; the shards are the same for any number."""
    chunk_size: int = Field(default=256 * 1024, ge=1024)
    """Characters of text handed to a worker at once."""
    queue_size: int = Field(default=16, ge=1)
    """Chunks that may wait for a worker: bounds the memory."""


class TrainConfig(Config):
    """How long, how much at once, and what happens along the way."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_tokens: int = Field(ge=1)
    """Tokens per optimizer step; a multiple of the model's context_length."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Tokens computed at once; "auto" chooses by memory and device."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of mean(logsumexp(logits)^2), which keeps logits near 0; 1e-4 is usual, 0 switches it off."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary."""
    document_mask: bool = False
    """Whether tokens attend to their own document only."""
    gradient_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: a third more work for far less memory."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Keep an exponential moving average of the weights and validate that; 0 switches it off."""
    guard: GuardConfig = GuardConfig()
    """What happens to unusable steps."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: PrecisionName = "auto"
    """Number format of matrix products; parameters and optimizer state stay float32."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; "auto" compiles runs long enough to win the compilation time back."""
    log_every: int = Field(default=10, ge=1)
    """Steps between rows of metrics.jsonl."""
    eval_every: int = Field(default=250, ge=1)
    """Steps between validations; the last step is always validated."""
    eval_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the validation split measured each time; all by default, and always all at the end."""
    sample_every: int = Field(default=250, ge=1)
    """Steps between sample texts."""
    first_sample: int | None = Field(default=None, ge=1)
    """A first sample after this many steps, however early."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay; the best validated one stays too."""
    save_best: bool = True
    """Save as well when a validation is the best so far, once `save_every` steps are done; otherwise the best
    is the best of those that were saved anyway."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are multiples of this stay for ever."""
    save_in_background: bool = True
    """Whether training goes on while a checkpoint is written."""
    statistics_every: int | None = Field(default=None, ge=1)
    """Steps between rows with the sizes of weights, gradients and activations of every layer."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl."""


class RunConfig(Config):
    """Everything that decides what a run computes."""

    name: str
    """The run's name in tables."""
    description: str = ""
    """One line for people."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides initial weights, sample order, dropout and sample texts."""
    corpus: part_of(CORPORA)  # type: ignore[valid-type]
    """Where the text comes from."""
    tokenizer: part_of(TOKENIZERS)  # type: ignore[valid-type]
    """How text becomes ids."""
    data: DataConfig = DataConfig()
    """How documents become shards."""
    model: ModelSettings = ModelSettings()
    """What is trained."""
    batches: part_of(LOADERS) = Part(name="epochs")  # type: ignore[valid-type]
    """Which rows make a batch."""
    optimizer: part_of(OPTIMIZERS) = Part(name="adamw")  # type: ignore[valid-type]
    """How gradients become updates."""
    schedule: part_of(SCHEDULES) = Part(name="cosine")  # type: ignore[valid-type]
    """How the learning rate moves."""
    train: TrainConfig
    """How long and how much at once."""
    distributed: part_of(ENGINES) = Part(name="ddp")  # type: ignore[valid-type]
    """How several processes share the work: ddp, zero1, fsdp2."""
    nproc: int = Field(default=1, ge=1)
    """Processes that the command starts on this machine; under torchrun that says how many."""
    restarts: int = Field(default=3, ge=0)
    """How often they are all started again, from the last checkpoint, when one is lost."""
    wait_seconds: float = Field(default=600.0, gt=0)
    """How long a process waits for another before it gives up."""
    sampling: SamplingConfig = SamplingConfig()
    """How sample texts are drawn."""
    prompt: str = ""
    """What sample texts begin with; empty: the beginning of a document."""

    @model_validator(mode="after")
    def _rows_are_whole(self) -> "RunConfig":
        context, tokens = self.model.context_length, self.train.batch_tokens
        if tokens % context:
            nearest = max(context, round(tokens / context) * context)
            raise ValueError(
                f"train.batch_tokens={tokens} is no multiple of model.context_length={context}; "
                f"the nearest is {nearest}."
            )
        micro = self.train.micro_batch_tokens
        if micro != "auto" and (micro % context or tokens % micro):
            raise ValueError(
                f"train.micro_batch_tokens={micro} must be a multiple of model.context_length={context} and "
                f"divide train.batch_tokens={tokens}; or say auto."
            )
        return self

    @model_validator(mode="after")
    def _rates_of_the_width_are_known(self) -> "RunConfig":
        if self.model.mup_width is not None:
            matrix_factor(self.model.width_ratio, self.optimizer.name, self.optimizer.settings)
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of context_length tokens in one optimizer step."""
        return self.train.batch_tokens // self.model.context_length
