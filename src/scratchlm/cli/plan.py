"""`scratchlm plan`: what a run will need, before it starts."""

from typing import Annotated

import typer

from scratchlm.cli.run import Settings, read_recipe
from scratchlm.cli.sources import Plugin, load_plugins


def plan(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe, a .toml or .json file, or a run folder.")
    ] = "demo",
    settings: Settings = None,
    plugin: Plugin = None,
) -> None:
    """Show what a run will need: parameters, memory, disk, time; and what will be chosen here."""
    import psutil

    from scratchlm.cli.console import count, duration, out, print_table, size, table
    from scratchlm.model.accounting import count_parameters
    from scratchlm.train.plan import make_plan

    load_plugins(plugin)
    config = read_recipe(recipe, settings)
    made = make_plan(config)
    out().print(f"{config.name}: {config.description}".rstrip(": "), style="bold")
    vocab_size = int(config.tokenizer.settings.get("vocab_size", 256))
    parts = count_parameters(config.model.with_vocabulary(vocab_size))
    free = psutil.virtual_memory().available
    shares = ", ".join(
        f"{name.replace('_', ' ')} {count(number)}" for name, number in parts.items() if number
    )
    enough = "fits" if made.memory_bytes < free else "does not fit: choose a smaller train.micro_batch_tokens"
    rows = table("", "", "")
    rows.add_row("  parameters", count(made.parameters), shares)
    rows.add_row("  tokens", count(made.tokens), f"{made.tokens_per_parameter:.1f} per parameter")
    rows.add_row(
        "  step",
        f"{count(config.train.batch_tokens)} tokens",
        f"{made.accumulation} x {made.micro_batch_tokens:,}, {config.train.steps:,} steps",
    )
    rows.add_row(
        "  arithmetic", f"{made.flops:.2e} FLOPs", f"{made.rate_flops_per_second / 1e9:,.0f} GFLOP/s measured"
    )
    rows.add_row("  memory", size(made.memory_bytes), f"{size(free)} free: {enough}")
    rows.add_row("  disk", size(made.disk_bytes), "checkpoints")
    rows.add_row("  device", f"{made.device}, {made.precision}", made.precision_reason)
    rows.add_row("  torch.compile", "yes" if made.compile else "no", made.compile_reason)
    rows.add_row(
        "  time", f"about {duration(made.seconds)}", "training alone, estimated from a matrix product"
    )
    print_table(rows)
