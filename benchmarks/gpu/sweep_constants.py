"""Which sizes are best in the kernels without tiles? Constants of their modules, replaced and timed.

The constants were chosen without a GPU, by counting loads and registers. Each line of TRIED is one kernel;
its first row is the kernel as it is, the others have some of its constants changed.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.gpu import speed
from benchmarks.gpu.cases import Bench, Case, MissingError, Row

Constants = dict[str, Any]


class Tried(NamedTuple):
    """A kernel and what is tried in it."""

    modules: tuple[str, ...]
    """Files below kernels/gpu that hold the constants, also those that import them."""
    changes: tuple[Constants, ...]
    run: Callable[[Bench], Row]


def grid(**values: tuple[int, ...]) -> tuple[Constants, ...]:
    """Return all combinations.

    Example: grid(A=(1, 2), B=(3,)) -> ({"A": 1, "B": 3}, {"A": 2, "B": 3}).
    """
    return tuple(
        dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())
    )


TRIED = {
    "cross-entropy": Tried(
        ("cross_entropy",),
        grid(LARGEST_BLOCK=(4096, 8192, 16_384), COLUMNS_PER_THREAD=(8, 16, 32)),
        lambda bench: speed._loss(bench, "triton", "cross-entropy"),
    ),
    "AdamW": Tried(
        ("tables", "adamw"),
        grid(PIECE=(1024, 2048, 4096, 8192), NUM_WARPS=(4, 8)),
        lambda bench: speed._adamw_step(bench, "triton"),
    ),
    "RMSNorm forward": Tried(
        ("rms_norm", "rms_norm_kernels"),
        grid(FORWARD_WARP=(256, 512, 1024)),
        lambda bench: speed._norm(bench, (65_536, 768), "forward", "triton"),
    ),
    "RMSNorm backward": Tried(
        ("rms_norm", "rms_norm_kernels"),
        (*grid(BACKWARD_WARP=(128, 256, 512), PROGRAMS=(4, 7)), *grid(STAGES=(2, 4))),
        lambda bench: speed._norm(bench, (65_536, 768), "backward", "triton"),
    ),
    "RoPE": Tried(
        ("rotate", "project_heads"),
        (*grid(PAIRS=(1024, 2048, 4096), WARPS=(4, 8)), {"HEADS": 2}, {"HEADS": 8}),
        lambda bench: speed._rotation(bench, "forward", "triton, in place"),
    ),
}


def sweep_constants(bench: Bench) -> list[Case]:
    """Each kernel as it is, then changed."""
    return list(_cases(bench))


def _cases(bench: Bench) -> Iterator[Case]:
    for name, tried in TRIED.items():
        changes = ({}, *tried.changes) if not bench.tiny else ({}, tried.changes[0])
        for changed in changes:
            words = ", ".join(f"{constant} {value:,}" for constant, value in changed.items())
            yield Case(f"{name}, {words or 'as it is'}", partial(_measure, bench, name, changed))


def _measure(bench: Bench, name: str, changed: Constants) -> Row:
    tried = TRIED[name]
    with replaced(tried.modules, changed) as before:
        row = tried.run(bench)
    # no goal: these rows are not what the library does
    return row | {"goal": None, "constants_of": name, "constants": changed, "before": before}


@contextmanager
def replaced(modules: tuple[str, ...], changed: Constants) -> Iterator[Constants]:
    """Change constants in every module that has them; yield what they were."""
    loaded = [import_module(f"scratchlm.kernels.gpu.{module}") for module in modules]
    before: list[tuple[Any, str, int]] = []
    for constant, value in changed.items():
        owners = [module for module in loaded if hasattr(module, constant)]
        if not owners:
            raise MissingError(f"there is no constant {constant} in {', '.join(modules)}")
        for module in owners:
            before.append((module, constant, getattr(module, constant)))
            setattr(module, constant, value)
    _forget(loaded)
    try:
        yield {constant: value for _, constant, value in before}
    finally:
        for module, constant, value in before:
            setattr(module, constant, value)
        _forget(loaded)


def _forget(modules: list[Any]) -> None:
    """Clear what the modules remember: it was made with the other constants."""
    for module in modules:
        for thing in vars(module).values():
            if callable(clear := getattr(thing, "cache_clear", None)):
                clear()
