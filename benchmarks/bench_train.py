"""Training steps per second on this machine's CPU, ours against a GPT in torch's own layers, in one run.

4 layers, d_model 256, 8 heads, context 256, 16 rows a step, vocabulary 4096. A step is forward, loss,
backward, global clipping and AdamW.
"""

import time
from collections.abc import Callable

import harness
import torch
from reference_gpt import ReferenceGPT
from torch.nn import functional

from scratchlm import loss, runtime
from scratchlm.model import MODELS, ModelSettings
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.groups import decay_groups

SHAPE = {"context_length": 256, "d_model": 256, "num_layers": 4, "num_heads": 8}
VOCABULARY, ROWS, STEPS, ROUNDS = 4096, 16, 4, 5


def ours(precision: str, *, compiled: bool) -> Callable[[], None]:
    model = MODELS.get("transformer")(ModelSettings(**SHAPE, tied=True).with_vocabulary(VOCABULARY))
    optimizer = OPTIMIZERS.build("adamw", decay_groups(model.named_parameters()))

    def compute(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with runtime.autocast(torch.device("cpu"), precision):
            logits = model(inputs)
        return loss.cross_entropy(logits, targets)

    compute = torch.compile(compute) if compiled else compute
    return stepper(compute, optimizer, lambda: clip_gradients_(model.parameters(), 1.0))


def reference(precision: str, *, compiled: bool) -> Callable[[], None]:
    model = ReferenceGPT(VOCABULARY, **SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def compute(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with runtime.autocast(torch.device("cpu"), precision):
            logits = model(inputs)
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    compute = torch.compile(compute) if compiled else compute
    return stepper(compute, optimizer, lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))


def stepper(
    compute: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer, clip: Callable[[], object]
) -> Callable[[], None]:
    ids = torch.randint(0, VOCABULARY, (ROWS, SHAPE["context_length"] + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compute(inputs, targets).backward()
        clip()
        optimizer.step()

    return step


def rate(step: Callable[[], None]) -> Callable[[], float]:
    step()  # compiles, allocates

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        return STEPS * ROWS * SHAPE["context_length"] / (time.perf_counter() - started)

    return measure


def main() -> None:
    runtime.set_seed(0)
    runtime.set_threads()
    best = runtime.choose_precision("auto", torch.device("cpu")).name
    candidates = {
        "reference float32 eager": reference("float32", compiled=False),
        f"reference {best} compiled": reference(best, compiled=True),
        "scratchlm float32 eager": ours("float32", compiled=False),
        f"scratchlm {best} eager": ours(best, compiled=False),
        f"scratchlm {best} compiled": ours(best, compiled=True),
    }
    rates = harness.alternate({name: rate(step) for name, step in candidates.items()}, rounds=ROUNDS)
    harness.report("train", "tokens/s", rates, **SHAPE, vocab_size=VOCABULARY, rows=ROWS)


if __name__ == "__main__":
    main()
