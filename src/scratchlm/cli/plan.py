"""`scratchlm plan`: what a run will need, before it starts, with the formula beside each figure.

With --gpus it plans for rented GPUs (plan_cluster.py), else for this machine.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from scratchlm.cli.plan_cluster import Form, Rented, days, short, show
from scratchlm.cli.run import Settings, read_recipe
from scratchlm.cli.sources import Plugin, load_plugins

if TYPE_CHECKING:
    from scratchlm.train.config import RunConfig
    from scratchlm.train.plan import Plan

Row = tuple[str, str, str]
"""What, how much, why."""


class Prepared(NamedTuple):
    """What a run folder knows about its data; None before they are there."""

    vocab_size: int | None = None
    train_tokens: int | None = None
    valid_tokens: int | None = None


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A shipped recipe, a .toml or .json file, or a run folder.", show_default="demo"),
    ] = None,
    settings: Settings = None,
    plugin: Plugin = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Answer at once, by formulas; try no steps.")
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Plan for GPUs that are not here.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Kind of GPU, or a .toml file (see machines.py).", show_default="h100"),
    ] = None,
    scaling: Annotated[
        Literal["strong", "weak"],
        typer.Option(help="With several numbers: equal steps, or steps that grow with the GPUs."),
    ] = "strong",
    efficiency: Annotated[
        float | None,
        typer.Option(help="Share of a GPU's peak while it computes.", show_default="0.4"),
    ] = None,
    price: Annotated[float | None, typer.Option(help="US dollars for a GPU and hour.")] = None,
    inside: Annotated[float | None, typer.Option(help="GB/s from a GPU to its neighbours.")] = None,
    between: Annotated[float | None, typer.Option(help="GB/s from a GPU to other machines.")] = None,
    per_machine: Annotated[int | None, typer.Option(help="GPUs in a machine.")] = None,
    form: Annotated[Form, typer.Option("--format", help="How plans for GPUs are printed.")] = "table",
) -> None:
    """Show what a run will need: parameters, memory, disk, time; and what will be chosen here.

    Five steps are tried on random ids: seconds, or up to a minute where the run will be compiled.
    With --gpus: memory, messages, time and cost of every layout on that many GPUs, by formulas.
    Without a recipe, model=NAME plans a usual run of a known model: plan model=llama-1b --gpus 8 --gpu h100
    """
    load_plugins(plugin)
    config, prepared = _read(recipe, settings)
    rented = Rented(gpus or "", gpu or "h100", scaling, efficiency, price, inside, between, per_machine)
    if gpus is not None:
        show(config, prepared.vocab_size, rented, form, title=_title(config, settings))
        return
    for option, default in Rented._field_defaults.items():
        if getattr(rented, option) != default or (option == "gpu" and gpu):
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is for GPUs that are not here; say how many: --gpus 8.")
    _plan_here(config, prepared, estimate, _title(config, settings))


def _title(config: "RunConfig", settings: list[str] | None) -> str:
    """What is planned: a recipe's own words, or where they may not hold any more the settings over it."""
    if settings:
        return f"{config.name} with {' '.join(settings)}"
    return f"{config.name}: {config.description}".rstrip(": ")


def _read(recipe: str | None, settings: list[str] | None) -> tuple["RunConfig", Prepared]:
    """What was named: a recipe, a run folder, or a known model and nothing else."""
    from scratchlm.config import choices_first
    from scratchlm.model.sizes import SIZES
    from scratchlm.train import recipes

    words = list(settings or ())
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        words, recipe = [recipe, *words], None
    words = choices_first(words)
    chosen = [word.partition("=")[2] for word in words if word.startswith(("model=", "model.name="))]
    if recipe is None and chosen and chosen[-1] in SIZES:
        return recipes.for_size(chosen[-1], words), Prepared()
    return read_recipe(recipe or "demo", words), _prepared(Path(recipe or "demo"))


def _plan_here(config: "RunConfig", prepared: Prepared, estimate: bool, title: str) -> None:
    """Plan for this machine and print."""
    from scratchlm import runtime
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.train.plan import make_plan

    runtime.set_threads()
    with contextlib.nullcontext() if estimate else _patience():
        made = make_plan(
            config,
            vocab_size=prepared.vocab_size,
            probe=not estimate,
            train_tokens=prepared.train_tokens,
            valid_tokens=prepared.valid_tokens,
        )
    out().print(title, style="bold")
    rows = table("", "", "")
    vocab_size = prepared.vocab_size or int(config.tokenizer.settings.get("vocab_size", 256))
    shown = (
        _size_rows(made, config, vocab_size)
        + _data_rows(made, config, prepared)
        + _memory_rows(made)
        + _choice_rows(made)
        + _time_rows(made, config)
    )
    for what, figure, why in shown:
        rows.add_row(f"  {what}", figure, why)
    print_table(rows)


def _size_rows(made: "Plan", config: "RunConfig", vocab_size: int) -> list[Row]:
    from scratchlm.cli.console import count
    from scratchlm.model.accounting import count_parameters

    parts = count_parameters(config.model.with_vocabulary(vocab_size))
    shares = ", ".join(
        f"{name.replace('_', ' ')} {count(number)}" for name, number in parts.items() if number
    )
    return [
        ("parameters", count(made.parameters), shares),
        (
            "arithmetic",
            f"{made.flops:.2e} FLOPs",
            f"{count(made.flops_per_token)} per token (3 x forward pass) x {count(made.tokens)} tokens",
        ),
    ]


def _data_rows(made: "Plan", config: "RunConfig", prepared: Prepared) -> list[Row]:
    from scratchlm.cli.console import count

    train, micro = config.train, made.micro_batch_tokens
    split = "at once" if made.accumulation == 1 else f"computed as {made.accumulation} x {micro:,}"
    rows = [
        (
            "effective batch",
            f"{train.batch_tokens:,} tokens",
            f"{made.batch_rows:,} rows x {config.model.context_length:,}, {split}",
        ),
        ("tokens", count(made.tokens), f"{train.steps:,} steps x {train.batch_tokens:,}"),
        ("per parameter", f"{made.tokens_per_parameter:.3g} tokens", "tokens / parameters"),
    ]
    if made.epochs is None or prepared.train_tokens is None:
        return [*rows, ("epochs", "unknown", "before the data are prepared; plan a run folder that has them")]
    return [*rows, ("epochs", f"{made.epochs:.3g}", f"tokens / {prepared.train_tokens:,} training tokens")]


def _memory_rows(made: "Plan") -> list[Row]:
    import torch

    from scratchlm.cli.console import size
    from scratchlm.train.plan import free_memory

    free = free_memory(torch.device(made.device))
    enough = "fits" if made.memory_bytes < free else "does not fit: choose a smaller train.micro_batch_tokens"
    total = sum(part.num_bytes for part in made.memory)
    how = "at the peak" if made.probed is None else f"tried steps reached it; the parts give {size(total)}"
    rows = [("memory", size(made.memory_bytes), f"{how}; {size(free)} free: {enough}")]
    rows += [(f"  {part.name}", size(part.num_bytes), part.formula) for part in made.memory]
    return [
        *rows,
        ("KV cache", size(made.cache_bytes), "2 x layers x key heads x context_length x d_head x 4 bytes"),
        ("disk", size(made.disk_bytes), "checkpoints that stay x (weights + optimizer); 2 bytes per token"),
    ]


def _choice_rows(made: "Plan") -> list[Row]:
    return [
        ("device", f"{made.device}, {made.precision}", made.precision_reason),
        ("torch.compile", "yes" if made.compile else "no", made.compile_reason),
    ]


def _time_rows(made: "Plan", config: "RunConfig") -> list[Row]:
    from scratchlm.cli.console import count, duration

    steps = f"{config.train.steps:,} x {short(made.step_seconds)}"
    compiling = f" + {made.compile_seconds:.0f} s compiling" if made.compile else ""
    if made.validation_seconds is None:
        validating = "; without validations, samples and checkpoints"
    else:
        validating = f" + {duration(made.validation_seconds)} of validations; without samples and checkpoints"
    return [
        ("step", short(made.step_seconds), _step_formula(made)),
        ("time", f"about {days(made.seconds)}", f"{steps}{compiling}{validating}"),
        ("speed", f"{count(made.tokens_per_second)} tokens/s", "batch / step"),
        ("MFU", *_mfu(made)),
    ]


def _step_formula(made: "Plan") -> str:
    if made.probed is None:
        return f"estimated from a matrix product here, {made.rate_flops_per_second / 1e9:,.0f} GFLOP/s"
    found = made.probed
    return (
        f"{made.accumulation} x {short(found.micro_seconds)} forward and backward + "
        f"{short(found.update_seconds)} update; median of {found.steps} tried"
    )


def _mfu(made: "Plan") -> tuple[str, str]:
    from scratchlm.hardware import MFU_FORMULA

    if made.mfu is None or made.peak is None:
        return "none", "unknown device: no peak, no MFU; `scratchlm doctor --measure` measures the peak"
    peak = f"{made.peak.flops_per_second / 1e9:,.0f} GFLOP/s, {made.peak.source}"
    return f"{made.mfu:.1%}", f"{MFU_FORMULA}; {peak}"


def _patience() -> "contextlib.AbstractContextManager[object]":
    from scratchlm.cli.console import err

    if not err().is_terminal:
        return contextlib.nullcontext()
    return err().status("trying five steps; up to a minute if they are compiled")


def _prepared(folder: Path) -> Prepared:
    """Sizes from the manifests of a run folder's shards."""
    from scratchlm.config import load
    from scratchlm.data.shards import MANIFEST, Manifest

    found = {
        split: load(Manifest, folder / "data" / split / MANIFEST)
        for split in ("train", "valid")
        if (folder / "data" / split / MANIFEST).is_file()
    }
    if "train" not in found:
        return Prepared()
    valid = found["valid"].num_tokens if "valid" in found else None
    return Prepared(found["train"].vocab_size, found["train"].num_tokens, valid)
