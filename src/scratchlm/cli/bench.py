"""`scratchlm bench`: training steps, attention, and what several processes cost, timed and weighed."""

from functools import partial
from typing import Annotated

import typer

from scratchlm.cli import bench_processes
from scratchlm.cli.bench_options import (
    PRECISIONS,
    Device,
    Format,
    Model,
    Out,
    Pass,
    Precision,
    Settings,
    Warmup,
    changes_of,
    known_optimizer,
    model_names,
    numbers,
    open_device,
    words,
)
from scratchlm.cli.bench_output import collect

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Time and weigh training steps, attention, and communication between processes.",
)
for command in (bench_processes.comm, bench_processes.ddp, bench_processes.shards):
    app.command()(command)

TOGGLES = {"no": (False,), "yes": (True,), "no,yes": (False, True), "yes,no": (True, False)}


@app.command()
def step(
    settings: Settings = None,
    model: Model = "auto",
    scope: Pass = "forward,both,step",
    precision: Precision = "float32",
    batch: Annotated[str, typer.Option("--batch", "-b", help="Rows in a batch.")] = "4",
    context: Annotated[
        str, typer.Option("--context", "-c", help="Tokens in a row; the size's own by default.")
    ] = "",
    compiled: Annotated[str, typer.Option("--compile", help="no; yes; no,yes for both.")] = "no",
    checkpointing: Annotated[
        str, typer.Option("--checkpointing", help="Compute activations twice: no; yes; no,yes for both.")
    ] = "no",
    optimizer: Annotated[str, typer.Option("--optimizer", help="Of the full step.")] = "adamw",
    warmup: Warmup = "5",
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Calls that count.")] = 10,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Of one row; fewer calls have to do then.")
    ] = 60.0,
    device: Device = "auto",
    form: Format = "table",
    out: Out = None,
) -> None:
    """Time and weigh a forward pass, forward and backward pass, and a full training step.

    Options take several values, each combination is a row: --model small,medium --precision float32,bfloat16.
    Sizes, batch (4 x 512 tokens) and vocabulary are those of CS336's assignment 2.
    """
    from scratchlm.bench import cases, step

    place = open_device(device)
    chosen = step.cases(
        model_names(model, place),
        scopes=words(scope, "--pass", cases.SCOPES),
        precisions=words(precision, "--precision", PRECISIONS),
        compiled=_toggle(compiled, "--compile"),
        checkpointing=_toggle(checkpointing, "--checkpointing"),
        batches=numbers(batch, "--batch"),
        contexts=numbers(context, "--context") if context else (),
        optimizer=known_optimizer(optimizer),
        changes=changes_of(settings),
    )
    warmups = numbers(warmup, "--warmup", least=0)
    how = {"warmups": warmups, "steps": steps, "limit": seconds}
    measure = partial(step.run_cases, chosen, place, **how)
    collect(measure, step.tables, len(chosen) * len(warmups), place, form, out)


@app.command()
def attention(
    ways: Annotated[
        str,
        typer.Option(
            "--ways",
            help="reference, compiled, blocks, tiled, triton, triton_one_pass, triton_tuned, flex, "
            "sdpa-flash, sdpa-cudnn, sdpa-efficient, sdpa-math; auto: those that make sense here, "
            "never triton_tuned.",
        ),
    ] = "auto",
    tokens: Annotated[
        str, typer.Option("--tokens", "-t", help="128 to 65,536 on a GPU, 128 to 1,024 elsewhere.")
    ] = "auto",
    d_head: Annotated[str, typer.Option("--d-head", help="16 to 128 on a GPU, 64 elsewhere.")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", "-p", help="bfloat16,float32 on a GPU, float32 elsewhere.")
    ] = "auto",
    scope: Annotated[str, typer.Option("--pass", help="forward, backward, both.")] = "forward,backward,both",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Rows.")] = 1,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads of each row; CS336 has 1.")] = 16,
    causal: Annotated[bool, typer.Option("--causal/--full", help="See the past only, or everything.")] = True,
    warmup: Annotated[int, typer.Option("--warmup", "-w", min=0, help="Calls that do not count.")] = 5,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Calls that count.")] = 20,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Of one cell; fewer calls have to do then.")
    ] = 1.0,
    patience: Annotated[
        float, typer.Option("--patience", help="Leave out what is foretold to take longer, seconds a call.")
    ] = 10.0,
    device: Device = "auto",
    form: Format = "table",
    out: Out = None,
) -> None:
    """Time and weigh attention over a grid: lengths, widths, number formats, ways of computing it.

    The grid is that of CS336's assignment 2. What does not fit into memory is recorded as such.
    """
    from scratchlm.bench import attention as bench
    from scratchlm.bench.attention_tables import tables

    place = open_device(device)
    gpu = place.type == "cuda"
    usual = bench.LENGTHS if gpu else bench.LENGTHS[:4]
    cells = bench.grid(
        bench.usual_ways(place) if ways == "auto" else words(ways, "--ways", bench.ways()),
        lengths=sorted(usual if tokens == "auto" else numbers(tokens, "--tokens")),
        widths=(bench.WIDTHS if gpu else (64,)) if d_head == "auto" else numbers(d_head, "--d-head"),
        precisions=(PRECISIONS[::-1] if gpu else PRECISIONS[:1])
        if precision == "auto"
        else words(precision, "--precision", PRECISIONS),
        scopes=words(scope, "--pass", bench.SCOPES),
        batch=batch,
        heads=heads,
        causal=causal,
    )
    how = bench.Settings(warmup, steps, seconds, patience)
    collect(partial(bench.run_grid, cells, place, how), tables, len(cells), place, form, out)


def _toggle(text: str, option: str) -> tuple[bool, ...]:
    chosen = TOGGLES.get(text.replace(" ", ""))
    if chosen is None:
        raise ValueError(f"{option}={text}: say no, yes, or no,yes for both.")
    return chosen
