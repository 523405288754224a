"""Optimizer steps per second on this machine's CPU: ours against torch's fused AdamW, in one run.

Three models: the demo's size, the size of bench_train.py, and CS336's. Between two steps 64 MB are written,
as a backward pass would, so that no candidate finds its state in the cache. Freed memory stays with the
process for all of them, as in a training run. A round takes the fastest of several steps: machines are
shared, and a neighbour's turn is no property of an optimizer.

    python benchmarks/bench_optimizers.py [demo | train | cs336]...
"""

import os
import sys
import time
from collections.abc import Callable

import harness
import numpy as np
import torch

from scratchlm import runtime
from scratchlm.model import MODELS, ModelSettings
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.groups import parameter_groups

MODELS_BY_SIZE = {
    "demo": (3072, {"context_length": 256, "d_model": 128, "num_layers": 6, "num_heads": 4, "tied": True}),
    "train": (4096, {"context_length": 256, "d_model": 256, "num_layers": 4, "num_heads": 8, "tied": True}),
    "cs336": (
        10_000,
        {"context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16, "d_ff": 1344},
    ),
}
ROUNDS = 7
STEPS = {"demo": 16, "train": 10, "cs336": 5}
"""Steps of a round; the fastest counts."""
WRITTEN_BETWEEN = 16 * 1024 * 1024
"""float32 numbers; twice the largest cache of the machine."""


def make_model(size: str) -> torch.nn.Module:
    vocabulary, settings = MODELS_BY_SIZE[size]
    runtime.set_seed(0)
    model = MODELS.get("transformer")(ModelSettings(**settings).with_vocabulary(vocabulary))
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def ours(size: str, name: str, **settings: object) -> Callable[[], object]:
    return OPTIMIZERS.build(name, parameter_groups(make_model(size).named_parameters()), **settings).step


def torch_adamw(size: str, **settings: object) -> Callable[[], object]:
    groups = [{k: v for k, v in g.items() if k != "kind"} for g in groups_of(size)]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, **settings).step


def torch_muon(size: str) -> Callable[[], object]:
    groups = groups_of(size)
    matrices = torch.optim.Muon(groups[0]["params"], adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW([p for group in groups[1:] for p in group["params"]], fused=True)

    def step() -> None:
        matrices.step()
        rest.step()

    return step


def groups_of(size: str) -> list[dict]:
    return parameter_groups(make_model(size).named_parameters())


def clipping(size: str, clip: Callable[..., object]) -> Callable[[], object]:
    params = list(make_model(size).parameters())
    return lambda: clip(params, 1e6)


def rate(step: Callable[[], object], num_steps: int) -> Callable[[], float]:
    written, warm = np.zeros(WRITTEN_BETWEEN, np.float32), torch.zeros(256, 1024)
    for _ in range(2):
        step()

    def measure() -> float:
        fastest = float("inf")
        for _ in range(num_steps):
            np.add(written, 1, out=written)
            warm.add_(1)  # torch's threads are awake, as after a backward pass
            start = time.perf_counter()
            step()
            fastest = min(fastest, time.perf_counter() - start)
        return 1 / fastest

    return measure


@runtime.keeping_freed_memory()
def main() -> None:
    threads = runtime.set_threads()
    for size in sys.argv[1:] or MODELS_BY_SIZE:
        num_parameters = sum(p.numel() for p in make_model(size).parameters())
        print(f"{size}: {num_parameters:,} parameters, {threads} threads")
        for what, candidates in tables(size).items():
            num_steps = max(2, STEPS[size] // (10 if what == "muon" else 1))
            measures = {name: rate(step, num_steps) for name, step in candidates.items()}
            rates = harness.alternate(measures, rounds=ROUNDS)
            setup = {"size": size, "num_parameters": num_parameters, "threads": threads}
            # more than the number of cores: others were waited for, and candidates with threads wait longer
            harness.report(what, "steps/s", rates, **setup, load_average=round(os.getloadavg()[1], 1))


def tables(size: str) -> dict[str, dict[str, Callable[[], object]]]:
    return {
        "optimizers": {
            "torch AdamW fused": torch_adamw(size, fused=True),
            "torch AdamW foreach": torch_adamw(size, foreach=True),
            "adamw": ours(size, "adamw"),
            "adamw cautious": ours(size, "adamw", cautious_decay=True),
            "lion": ours(size, "lion"),
        },
        "muon": {"torch Muon + AdamW fused": torch_muon(size), "muon": ours(size, "muon")},
        "clipping": {
            "torch clip_grad_norm_": clipping(size, torch.nn.utils.clip_grad_norm_),
            "clip_gradients_": clipping(size, clip_gradients_),
        },
    }


if __name__ == "__main__":
    main()
