"""The settings of a model: what a recipe says, checked, with the derived sizes as properties.

`ModelSettings` is what a person writes; `ModelConfig` adds the vocabulary size, which the tokenizer decides.
Names are those of Stanford CS336.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from scratchlm.config import Config, Part, part_of
from scratchlm.model.feedforward import FEEDFORWARDS
from scratchlm.model.norm import NORMS
from scratchlm.model.position import POSITIONS
from scratchlm.model.sizes import SIZES, named_size
from scratchlm.registry import Family, unknown

MODELS: Family["object"] = Family("model", package="scratchlm.model")
"""Language models: built from a `ModelConfig`."""


class ModelSettings(Config):
    """Everything about a model but its vocabulary size; the bigram uses the context length only."""

    name: str = "transformer"
    """Which model: transformer, or the bigram baseline; or a size with a name, such as gpt2-small."""
    context_length: int = Field(256, ge=1)
    """The most tokens that the model sees at once."""
    d_model: int = Field(256, ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(4, ge=1)
    """How many blocks."""
    num_heads: int = Field(8, ge=1)
    """Query heads of each attention; d_model must be divisible by it."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads; fewer than num_heads is grouped-query attention. None: as many as num_heads."""
    d_ff: int | None = Field(None, ge=1)
    """Inner width of the feed-forward. None: 8/3 d_model for swiglu, 4 d_model for the others."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of numbers set to 0 in training: on the embeddings and on each branch before it is added."""
    tied: bool = False
    """Whether the head uses the embedding table as its weight."""
    bias: bool = False
    """Whether attention's and feed-forward's projections have offsets."""
    placement: Literal["pre", "post", "none"] = "pre"
    """Where the norms stand: before each branch, after each addition, nowhere."""
    norm: part_of(NORMS) = Field(Part(name="rmsnorm"), validate_default=True)
    """Normalisation."""
    position: part_of(POSITIONS) = Field(Part(name="rope"), validate_default=True)
    """Position encoding."""
    feedforward: part_of(FEEDFORWARDS) = Field(Part(name="swiglu"), validate_default=True)
    """Feed-forward half of each block."""
    qk_norm: bool = False
    """Whether queries and keys are normalised in each head."""
    window: int | None = Field(None, ge=1)
    """How many tokens a token sees, itself included (sliding window). None: all before it."""
    softcap: float | None = Field(None, gt=0.0)
    """Bound for attention scores, softcap * tanh(score / softcap). None: no bound."""
    logit_softcap: float | None = Field(None, gt=0.0)
    """Bound for the head's logits, in the same form. None: no bound."""
    attention: Literal[
        "auto", "reference", "blocks", "tiled", "triton", "triton_one_pass", "sdpa", "flex"
    ] = "auto"
    """Which attention runs (kernels/); auto takes the fastest of ours, sdpa and flex are torch's."""
    zero_init_projections: bool = False
    """Whether each branch's last matrix starts at 0, so that every block starts as the identity."""
    mup_width: int | None = Field(None, ge=1)
    """The d_model for which settings were tuned: initial values, multipliers and learning rates become those
    that are as good at this d_model (maximal update parametrisation, width.py). None: the usual ones."""
    mup_heads: int | None = Field(None, ge=1)
    """Heads at that width, where their number grows with it. None: as many as here, with wider heads."""
    init_std: float | None = Field(None, gt=0.0)
    """Standard deviation of matrices and embeddings at the start, of each branch's last matrix divided by
    sqrt(2 num_layers), as in GPT-2 (0.02). None: by the width of each layer, as in CS336."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_runs(cls, given: Any) -> Any:
        """Take `implementation`, the name that `attention` had in runs of version 0.1."""
        # a run's settings are laid over the defaults: attention is there, and says nothing
        if not isinstance(given, dict) or given.get("attention", "auto") != "auto":
            return given
        return {
            "attention" if key == "implementation" else key: value
            for key, value in given.items()
            if key != "attention" or "implementation" not in given
        }

    @model_validator(mode="before")
    @classmethod
    def _take_named_size(cls, given: Any) -> Any:
        """Put the settings of a known model (sizes.py) under those that are given: model=gpt2-small."""
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, dict) or given.get("name") not in SIZES:
            return given
        size = {key: value for key, value in named_size(given["name"]).items() if key in cls.model_fields}
        return size | {key: value for key, value in given.items() if key != "name"}

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelSettings":
        if self.name not in MODELS.names():
            raise ValueError(f"model.name: {unknown('model', self.name, [*MODELS.names(), *SIZES])}")
        if self.d_model % self.num_heads:
            allowed = ", ".join(str(n) for n in divisors(self.d_model, 64))
            raise ValueError(
                f"model: d_model={self.d_model} is not divisible by num_heads={self.num_heads}; "
                f"choose num_heads from {allowed}."
            )
        if self.num_heads % self.kv_heads:
            allowed = ", ".join(str(n) for n in divisors(self.num_heads, 64))
            raise ValueError(
                f"model: num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}; "
                f"choose num_kv_heads from {allowed}."
            )
        if self.position.name == "rope" and self.d_head % 2:
            raise ValueError(
                f"model: position=rope turns pairs, so d_model / num_heads must be even, not {self.d_head} "
                f"(d_model={self.d_model}, num_heads={self.num_heads}); choose another num_heads."
            )
        self._check_base_width()
        if self.attention == "sdpa" and self.softcap is not None:
            raise ValueError("model: attention=sdpa cannot cap scores; drop softcap or use attention=auto.")
        return self

    def _check_base_width(self) -> None:
        if self.mup_width is None:
            if self.mup_heads is not None:
                raise ValueError(
                    "model: mup_heads are the heads at mup_width, which is not given; give both."
                )
            return
        heads = self.mup_heads or self.num_heads
        if self.mup_width % heads:
            raise ValueError(
                f"model: mup_width={self.mup_width} is not divisible by its {heads} heads; choose another "
                f"mup_width, or say mup_heads, one of {', '.join(map(str, divisors(self.mup_width, 64)))}."
            )
        if self.name != "transformer":
            raise ValueError(f"model: mup_width is for transformers; {self.name} has no width. Leave it out.")

    @property
    def width_ratio(self) -> float:
        """How many times as wide as mup_width; 1 without it."""
        return self.d_model / (self.mup_width or self.d_model)

    @property
    def base_d_head(self) -> int:
        """Width of a head at mup_width; without it, here."""
        return self.d_head if self.mup_width is None else self.mup_width // (self.mup_heads or self.num_heads)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with None resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def inner_width(self) -> int:
        """d_ff, with None resolved."""
        return self.d_ff or FEEDFORWARDS.get(self.feedforward.name).default_d_ff(self.d_model)

    def with_vocabulary(self, vocab_size: int) -> "ModelConfig":
        """Return the complete configuration of a model over `vocab_size` tokens."""
        return ModelConfig(vocab_size=vocab_size, **self.model_dump())


class ModelConfig(ModelSettings):
    """A model's complete configuration: it can be built from this alone."""

    vocab_size: int = Field(ge=1)
    """How many different tokens: the tokenizer's vocabulary, special tokens included."""


def is_endless(settings: ModelSettings) -> bool:
    """Return whether the model can read on beyond its context length: all can but those with a table."""
    return settings.name != "transformer" or POSITIONS.get(settings.position.name).endless


def reading_on(settings: ModelSettings, context_length: int) -> ModelSettings:
    """Return the settings of the same model for texts of at least `context_length` tokens.

    Its weights are those of the shorter one: all positions but learned ones are computed.

    Raises:
        ValueError: The model has learned vectors for the positions of its own context only.
    """
    own, position = settings.context_length, settings.position.name
    if context_length <= own:
        return settings
    if not is_endless(settings):
        others = [name for name in POSITIONS.names() if POSITIONS.get(name).endless]
        raise ValueError(
            f"context_length={context_length}: model.position={position} ends at {own}, since a position has "
            f"a vector only if it was trained. Read at most {own} tokens, or train with position="
            f"{', '.join(others[:-1])} or {others[-1]}."
        )
    return settings.model_copy(update={"context_length": context_length})


def divisors(number: int, largest: int) -> list[int]:
    """Return the divisors of `number` up to `largest`. Example: 12, 64 -> [1, 2, 3, 4, 6, 12]."""
    return [n for n in range(1, min(number, largest) + 1) if number % n == 0]
