"""How fast does a GPT-2 of 124 million parameters train? Ours beside a plain one in torch's own layers.

    12 layers, d_model 768, 12 heads, 1,024 tokens a row, vocabulary 50,304; bfloat16 autocast, compiled

A step is forward, loss, backward, clipping and AdamW over 64 rows. Ours is built as the trainer builds it,
with the kernels that it takes by default. The plain one has torch's attention, LayerNorm, GELU, cross_entropy
and fused AdamW. What torch's attention takes by itself depends on GPU and version (on a Hopper GPU cuDNN), so
its backend is pinned and stands in the candidate's name; ours is compared with the faster. `training_warm`
compiles the same steps beforehand, beside other parts, so that the measurement finds them in torch's cache on
the disk.
"""

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from benchmarks.gpu.cases import Bench, Case, MissingError, Row
from benchmarks.gpu.speed_attention import backend_called
from torch import Tensor
from torch.nn import functional

MODEL = {"context_length": 1024, "d_model": 768, "num_layers": 12, "num_heads": 12}
TINY_MODEL = {"context_length": 16, "d_model": 32, "num_layers": 2, "num_heads": 2}
VOCABULARY, ROWS = 50_304, 64
STEPS, WARM_STEPS = 20, 3
NAMES = ("scratchlm", "torch, flash", "torch, cudnn", "scratchlm, sdpa flash", "scratchlm, eager")
"""Ours as it trains; the plain one by backend; ours with torch's attention; ours without the compiler."""
BACKENDS = ("flash", "cudnn")
"""Of torch's attention: the last word of a name."""
COMPILED = tuple(name for name in NAMES if "eager" not in name)

Objective = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets -> the mean loss."""


class Built(NamedTuple):
    """What makes a step."""

    compute: Objective
    objective: str
    """What computes the loss, for the row."""
    parameters: list[Tensor]
    optimizer: Any
    clip: Callable[..., Tensor]


class Stepper(NamedTuple):
    """A step, ready to be made."""

    step: Callable[[], float]
    """Makes one step and returns its loss; the device has finished when it returns."""
    objective: str


def training(bench: Bench) -> list[Case]:
    """All cases, those that are compared first."""
    return [Case(f"training a step, gpt2-small, {name}", partial(_train, bench, name)) for name in NAMES]


def training_warm(bench: Bench) -> list[Case]:
    """Compile what `training` measures."""
    return [Case(f"compiling, gpt2-small, {name}", partial(_warm, bench, name)) for name in COMPILED]


def _warm(bench: Bench, name: str) -> Row:
    step, objective = stepper(bench, name)
    step()
    return {"candidate": name, "objective": objective}


def _train(bench: Bench, name: str) -> Row:
    started = time.perf_counter()
    step, objective = stepper(bench, name)
    for _ in range(bench.pick(WARM_STEPS, 1)):
        step()
    ready = time.perf_counter() - started
    times = []
    for _ in range(bench.pick(STEPS, 1)):
        started = time.perf_counter()
        losses = step()
        times.append(1e3 * (time.perf_counter() - started))
    times.sort()
    middle = times[len(times) // 2]
    tokens = bench.pick(ROWS, 2) * bench.pick(MODEL, TINY_MODEL)["context_length"]
    row = {"ms": middle, "lowest_ms": times[0], "repetitions": len(times), "seconds_until_ready": ready}
    row |= {"rate": tokens / middle * 1e3, "unit": "tokens/s", "goal": "training", "candidate": name}
    row["objective"] = objective
    if bench.device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row | {"loss": losses}


def stepper(bench: Bench, name: str) -> Stepper:
    """Build a candidate."""
    _let_go(bench)
    shape = bench.pick(MODEL, TINY_MODEL)
    vocabulary, rows = bench.pick((VOCABULARY, ROWS), (64, 2))
    torch.manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, shape["context_length"] + 1), device=bench.device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    make = _reference if name.startswith("torch") else _ours
    compute, objective, parameters, optimizer, clip = make(bench, name, shape, vocabulary, rows)
    compute = _pinned(bench, name, compute)
    if "eager" not in name:
        compute = torch.compile(compute, dynamic=False, backend=bench.pick("inductor", "aot_eager"))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = compute(inputs, targets)
        loss.backward()
        norm = clip(parameters, 1.0)
        optimizer.step()
        # the trainer looks at loss and norm once a step, too
        value, length = torch.stack([loss.detach(), norm]).tolist()
        assert 0 < value < 50, value
        assert 0 < length < float("inf"), length
        return value

    return Stepper(step, objective)


def _pinned(bench: Bench, name: str, compute: Objective) -> Objective:
    """Pin the backend of torch's attention that the name ends with.

    It is pinned inside of what is compiled: the compiler then writes it into the graph. From outside, the
    cache on the disk would give one backend's code to the other, for their graphs are the same.

    Raises:
        MissingError: This torch, or a CPU, has no such backend.
    """
    from torch.nn.attention import sdpa_kernel

    word = name.split()[-1]
    if word not in BACKENDS:
        return compute
    if word == "cudnn" and bench.device.type != "cuda":
        raise MissingError("cuDNN's attention needs a GPU")
    chosen = backend_called(word)

    def pinned(inputs: Tensor, targets: Tensor) -> Tensor:
        with sdpa_kernel([chosen]):
            return compute(inputs, targets)

    return pinned


def _let_go(bench: Bench) -> None:
    """Free what the model before has left; what was compiled stays on the disk."""
    torch._dynamo.reset()
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _autocast(bench: Bench) -> Any:
    return nullcontext() if bench.tiny else torch.autocast(bench.device.type, torch.bfloat16)


def _ours(bench: Bench, name: str, shape: dict[str, int], vocabulary: int, rows: int) -> Built:
    from scratchlm.model import ModelSettings
    from scratchlm.model.transformer import TransformerLM
    from scratchlm.optim.adamw import AdamW
    from scratchlm.optim.clip import clip_gradients_
    from scratchlm.optim.groups import parameter_groups

    settings: dict[str, Any] = {**shape, "tied": True}
    if "sdpa" in name:
        settings["attention"] = "sdpa"
    model = TransformerLM(ModelSettings(**settings).with_vocabulary(vocabulary)).to(bench.device)
    optimizer = AdamW(parameter_groups(model.named_parameters()), lr=3e-4)
    compute, objective = trainers_loss(
        bench, model, rows * shape["context_length"], compiled="eager" not in name
    )
    return Built(compute, objective, list(model.parameters()), optimizer, clip_gradients_)


def trainers_loss(bench: Bench, model: Any, tokens: int, *, compiled: bool) -> tuple[Objective, str]:
    """Return the trainer's own loss, or without the packages that it needs its like of parts; and a name."""
    try:
        from scratchlm.train import objective
        from scratchlm.train.config import TrainConfig
    except ImportError:
        return loss_of_parts(bench, model)
    made = objective.Objective(
        model,
        TrainConfig(steps=1, batch_tokens=tokens),
        device=bench.device,
        precision="float32" if bench.tiny else "bfloat16",
        micro_tokens=tokens,
        compiled=compiled,
        end_of_text_id=0,
    )
    return made, "train/objective.py"


def loss_of_parts(bench: Bench, model: Any) -> tuple[Objective, str]:
    """Return what train/objective.py makes of its default settings where Triton runs, and a name.

    Head and loss are one kernel there, which never has all logits; the trainer's settings need packages that
    a machine may lack, the kernel does not.
    """
    from scratchlm.kernels import choose

    kernel = choose("chunked_cross_entropy", device=bench.device)
    softcap = model.config.logit_softcap

    def compute(inputs: Tensor, targets: Tensor) -> Tensor:
        with _autocast(bench):
            hidden = model.hidden(inputs)
        with _autocast(bench):
            return kernel.function(hidden, model.head_weight, targets, softcap=softcap)

    return compute, f"chunked_cross_entropy={kernel.name}"


def _reference(bench: Bench, name: str, shape: dict[str, int], vocabulary: int, rows: int) -> Built:
    try:
        from benchmarks.reference_gpt import ReferenceGPT
    except ImportError as error:
        raise MissingError(str(error)) from None
    model = ReferenceGPT(vocabulary, **shape).to(bench.device)
    fused = bench.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=fused)

    def compute(inputs: Tensor, targets: Tensor) -> Tensor:
        with _autocast(bench):
            logits = model(inputs)
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    objective = "torch.nn.functional.cross_entropy"
    return Built(compute, objective, list(model.parameters()), optimizer, torch.nn.utils.clip_grad_norm_)
