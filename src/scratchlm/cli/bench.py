"""`scratchlm bench`: training steps and attention, timed and weighed in every combination asked for."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from scratchlm.bench.cases import StepCase
    from scratchlm.bench.tables import Table
    from scratchlm.config import Config

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Time and weigh training steps and attention.",
)

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

PRECISIONS = ("float32", "bfloat16")
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
    _collect(measure, step.tables, len(chosen) * len(warmups), place, form, out)


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
    _collect(partial(bench.run_grid, cells, place, how), tables, len(cells), place, form, out)


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


def machine(device: "torch.device") -> dict[str, object]:
    """Return what every row of a file should tell about where it was measured."""
    import time

    from scratchlm import hardware, runtime

    here = runtime.environment()
    kept = ("torch", "scratchlm", "commit", "threads")
    return {"device": hardware.device_name(device), "date": time.strftime("%Y-%m-%d")} | {
        key: here[key] for key in kept
    }


def print_tables(tables: "Iterable[Table]") -> None:
    """Print tables on the terminal, the best of each row in bold."""
    from rich.text import Text

    from scratchlm.cli.console import out, print_table, table

    for number, found in enumerate(tables):
        if number:
            out().print()
        out().print(found.title, style="bold")
        shown = table(*found.header, numbers=tuple(found.header[found.labels :]))
        for row, cells in enumerate(found.rows):
            styled = (
                Text(cell, "bold green" if (row, column) in found.best else _style(cell))
                for column, cell in enumerate(cells)
            )
            shown.add_row(*styled)
        print_table(shown)


def _style(cell: str) -> str:
    return "yellow" if cell.startswith(("out of memory", "too slow", "not here", "failed")) else ""


def _toggle(text: str, option: str) -> tuple[bool, ...]:
    chosen = TOGGLES.get(text.replace(" ", ""))
    if chosen is None:
        raise ValueError(f"{option}={text}: say no, yes, or no,yes for both.")
    return chosen


def _collect(
    measure: "Callable[..., Iterable[Config]]",
    tables: "Callable[[list[Any]], list[Table]]",
    total: int,
    device: "torch.device",
    form: str,
    paths: Sequence[Path] | None,
) -> None:
    """Write each result as it comes, print all at the end, and why a row has no figures."""
    from scratchlm.bench.tables import FORMATS, format_of, write, written
    from scratchlm.cli.console import write_text

    words(form, "--format", FORMATS)
    for path in paths or ():
        format_of(path)
    extra, results = machine(device), []
    try:
        with _progress(total) as show:
            for result in measure(starting=lambda case: show(str(case))):
                results.append(result)
                write(paths or (), tables(results), results, extra)
    finally:  # whoever stops it sees what has been measured
        if form == "table":
            _print_results(tables(results), results, extra)
        else:
            write_text(written(form, tables(results), results, extra))


def _print_results(tables: "list[Table]", results: list[Any], extra: dict[str, object]) -> None:
    from scratchlm.cli.console import err

    print_tables(tables)
    reasons = {result.note: None for result in results if result.status in ("not here", "failed")}
    for note in reasons:
        err().print(note, style="dim")
    if results:
        err().print(f"on {extra['device']}, torch {extra['torch']}", style="dim")


@contextlib.contextmanager
def _progress(total: int) -> "Iterator[Callable[[str], None]]":
    """A line on the terminal with the number of the row and what it is."""
    from scratchlm.cli.console import err

    if not err().is_terminal:
        yield lambda text: None
        return
    with err().status("") as status:
        done = 0

        def show(text: str) -> None:
            nonlocal done
            done += 1
            status.update(f"{done} of {total}: {text}")

        yield show
