"""What the commands of `bench` and `profile` share in their words: options, and values read from them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from scratchlm.bench.cases import StepCase

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Format = Annotated[str, typer.Option("--format", help="What is printed: table, markdown, latex, jsonl.")]
Out = Annotated[
    list[Path] | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Also write .md, .tex or .jsonl; complete after each row. May be given several times.",
        show_default=False,
    ),
]
Warmup = Annotated[str, typer.Option("--warmup", "-w", help="Calls before the first that counts.")]
Precision = Annotated[str, typer.Option("--precision", "-p", help="float32, bfloat16.")]
Pass = Annotated[str, typer.Option("--pass", help="forward; both: with backward; step: with the update.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="tiny, small, medium, large, xl-2025, xl, 2.7b, 10b, gpt2-small, ...; "
        "auto: small on a GPU, tiny elsewhere.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings of the model, such as num_layers=2."),
]

Backend = Annotated[
    str, typer.Option("--backend", help="gloo: CPUs; nccl: GPUs, one for each process; auto.")
]

PRECISIONS = ("float32", "bfloat16")


def open_device(name: str) -> "torch.device":
    """Pin the threads and return the device; what the profiler says about itself is kept back."""
    import os

    # read when torch is loaded
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from scratchlm import runtime

    runtime.set_threads()
    return runtime.choose_device(name)


def model_names(text: str, device: "torch.device") -> list[str]:
    """Return the sizes asked for; "auto" takes what the device can bear."""
    if text == "auto":
        return ["small" if device.type == "cuda" else "tiny"]
    return words(text, "--model")


def changes_of(settings: Iterable[str] | None) -> dict[str, Any]:
    """Return key=value words as settings of the model.

    Raises:
        ValueError: A word is no setting.
    """
    from scratchlm.config import parse_override

    changes = {}
    for word in settings or ():
        keys, value = parse_override(word)
        if len(keys) > 1 and keys[0] != "model":
            raise ValueError(f"{word}: only settings of the model can be changed here, such as num_layers=2.")
        changes[".".join(keys[1:] if keys[0] == "model" else keys)] = value
    return changes


def words(text: str, option: str, known: Iterable[str] = ()) -> list[str]:
    """Return the values of an option. Example: "forward, both" -> ["forward", "both"].

    Raises:
        ValueError: There is none, or one is not known.
    """
    from scratchlm.registry import unknown

    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise ValueError(f"{option} is empty; give one value or several: a,b,c.")
    allowed = list(known)
    for word in found:
        if allowed and word not in allowed:
            raise ValueError(f"{option}: {unknown('value', word, allowed)}")
    return list(dict.fromkeys(found))


def numbers(text: str, option: str, *, least: int = 1) -> list[int]:
    """Return the whole numbers of an option. Example: "128,1_024" -> [128, 1024].

    Raises:
        ValueError: Something is no whole number of at least `least`.
    """
    found = words(text, option)
    try:
        values = [int(word) for word in found]
    except ValueError:
        raise ValueError(f"{option}={text}: give whole numbers, separated by commas: 128,256.") from None
    if min(values) < least:
        raise ValueError(f"{option}={text}: {min(values)} is too small; the least is {least}.")
    return values


def decimals(text: str, option: str) -> list[float]:
    """Return the numbers of an option. Example: "0.01,1,100" -> [0.01, 1.0, 100.0].

    Raises:
        ValueError: Something is no number above 0.
    """
    found = words(text, option)
    try:
        values = [float(word) for word in found]
    except ValueError:
        values = [0.0]
    if not 0 < min(values) <= max(values) < float("inf"):
        raise ValueError(f"{option}={text}: give numbers above 0, separated by commas: 0.01,1,100.")
    return values


def known_optimizer(name: str) -> str:
    """Return the name of an optimizer.

    Raises:
        ValueError: There is none of this name.
    """
    from scratchlm.optim import OPTIMIZERS
    from scratchlm.registry import unknown

    if name not in OPTIMIZERS.names():
        raise ValueError(f"--optimizer: {unknown('optimizer', name, OPTIMIZERS.names())}")
    return name


def check_memory(case: "StepCase", device: "torch.device") -> None:
    """Ask by formula whether a case fits into a CPU's memory; a GPU says so by itself.

    Raises:
        ValueError: It does not.
    """
    from scratchlm.bench.cases import estimated_bytes
    from scratchlm.cli.console import size
    from scratchlm.train.plan import free_memory

    needed, there = estimated_bytes(case), free_memory(device)
    if device.type == "cpu" and needed > there:
        raise ValueError(
            f"{case.model} needs about {size(needed)}, {size(there)} are free; "
            "take a smaller --model or --batch."
        )
