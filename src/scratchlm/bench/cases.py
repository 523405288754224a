r"""A size, a batch and a way of computing come in; a model with all that a training step needs goes out.

    forward    logits and loss, no gradients
    both       logits and loss, then all gradients
    step       the same, then the optimizer's update

What is built is what training runs: the same objective (chunked where the trainer would), the same parameter
groups, random ids in place of text. The named sizes are those of Stanford CS336, assignment 2, section 1.1:
`small`, `medium` and `large` are the same every year; `xl` is 1600 wide in 2025's table and 2560 in 2026's,
which is 2025's `2.7b`; `10b` is new in 2026 (12.8 billion parameters with our gated feed-forward, 9.9 without
the gate). `tiny` is ours, for a look on a CPU.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from pydantic import Field

from scratchlm.config import Config, validate
from scratchlm.model import MODELS, ModelConfig, accounting
from scratchlm.model.sizes import SIZES, named_size
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.groups import parameter_groups
from scratchlm.registry import UnknownNameError, unknown
from scratchlm.runtime import COMPILING
from scratchlm.train.config import TrainConfig
from scratchlm.train.objective import Objective

Scope = Literal["forward", "both", "step"]
"""How much of a training step is computed."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
Precision = Literal["float32", "bfloat16"]

_SMALL = named_size("cs336-small")


def _handout(d_model: int, d_ff: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {**_SMALL, "d_model": d_model, "d_ff": d_ff, "num_layers": num_layers, "num_heads": num_heads}


HANDOUT: dict[str, dict[str, Any]] = {
    "tiny": {**_handout(128, 384, 2, 4), "vocab_size": 1024, "context_length": 128},
    "small": _SMALL,
    "medium": named_size("cs336-medium"),
    "large": named_size("cs336-large"),
    "xl-2025": _handout(1600, 6400, 48, 25),
    "xl": named_size("cs336-xl"),
    "2.7b": named_size("cs336-xl"),
    "10b": _handout(4608, 12288, 50, 36),
}
"""Name -> settings of `ModelConfig`: vocabulary 10,000, context 512 as the handout has it."""


class StepCase(Config):
    """One row of the table: what is computed, and how."""

    model: str
    """The size's name, for the table."""
    settings: ModelConfig
    """The model."""
    batch: int = Field(4, ge=1)
    """Rows of context_length tokens; 4 in the handout."""
    scope: Scope = "step"
    """How much of a step."""
    precision: Precision = "float32"
    """Number format of matrix products; weights stay float32."""
    compiled: bool = False
    """Whether torch.compile works on it."""
    checkpointing: bool = False
    """Whether each block's activations are computed again in the backward pass."""
    optimizer: str = "adamw"
    """Which optimizer a full step uses."""

    def __str__(self) -> str:
        """A few words, for somebody who waits."""
        ways = ["compiled"] * self.compiled + ["checkpointed"] * self.checkpointing
        return ", ".join([self.model, self.scope, self.precision, f"batch {self.batch}", *ways])

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.batch * self.settings.context_length

    @property
    def flops(self) -> int:
        """Floating-point operations by model/accounting.py: nothing that is computed twice counts twice."""
        forward = sum(accounting.forward_flops(self.settings, self.settings.context_length).values())
        return self.batch * forward * (1 if self.scope == "forward" else 3)


def size_of(name: str, changes: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of a named size with some settings changed.

    Args:
        name: A name of the handout, or any of model/sizes.py.
        changes: Settings of the model, such as {"num_layers": 2}.

    Raises:
        ValueError: There is no such size or setting.
    """
    if name not in HANDOUT and name not in SIZES:
        raise UnknownNameError(unknown("model size", name, [*HANDOUT, *SIZES]))
    settings = HANDOUT[name] if name in HANDOUT else named_size(name)
    return validate(ModelConfig, {**settings, **changes}, source="settings")


class Workbench:
    """A model, its loss, its optimizer and a batch, ready to run."""

    def __init__(self, case: StepCase, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        settings = case.settings
        with torch.device(device):  # no copy on the CPU first: 10b would need 50 GB there
            self.model = MODELS.get(settings.name)(settings).to(device)
            ids = torch.randint(settings.vocab_size, (case.batch, settings.context_length + 1))
        self.batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.optimizer = OPTIMIZERS.build(case.optimizer, parameter_groups(self.model.named_parameters()))
        objective = Objective(
            self.model,
            TrainConfig(steps=1, batch_tokens=case.tokens, gradient_checkpointing=case.checkpointing),
            device=device,
            precision=case.precision,
            micro_tokens=case.tokens,
            compiled=case.compiled,
            end_of_text_id=0,
        )
        self.objective = torch.compile(objective, **COMPILING) if case.compiled else objective

    def forward(self) -> torch.Tensor:
        """Compute the loss; with gradients to come unless the case is forward only."""
        with torch.set_grad_enabled(self.case.scope != "forward"):
            return self.objective(*self.batch)

    def update(self) -> None:
        """Let the optimizer move the weights."""
        self.optimizer.step()

    def run(self, phase: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> None:
        """Compute what the case's scope says, once.

        Args:
            phase: Called with "forward", "backward" and "optimizer"; each runs inside what it returns.
        """
        self.model.zero_grad(set_to_none=True)
        with phase("forward"):
            loss = self.forward()
        if self.case.scope != "forward":
            with phase("backward"):
                loss.backward()
        if self.case.scope == "step":
            with phase("optimizer"):
                self.update()

    def held(self) -> list[torch.Tensor]:
        """Tensors that are there between two calls: weights, optimizer state, the batch."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.batch, *states]
        return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


def estimated_bytes(case: StepCase) -> int:
    """Return about how much memory a case takes at its peak, by the formulas of model/accounting.py.

    Forward only keeps the activations of one layer; checkpointing those of one layer and each layer's input.
    """
    settings, width = case.settings, 2 if case.precision == "bfloat16" else 4
    weights = 4 * accounting.num_parameters(settings)
    copies = {"forward": 1, "both": 2, "step": 4}[case.scope]  # weights, gradients, AdamW's two states
    one_layer = case.scope == "forward" or case.checkpointing
    shown = settings.model_copy(update={"num_layers": 1}) if one_layer else settings
    activations = accounting.activation_memory(
        shown, case.batch, settings.context_length, activation_bytes=width
    )
    if case.checkpointing:
        activations += settings.num_layers * case.tokens * settings.d_model * 4
    return copies * weights + activations
