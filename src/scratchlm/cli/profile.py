"""`scratchlm profile`: where the time and the memory of a training step go."""

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.bench_options import Device, Model, Settings

if TYPE_CHECKING:
    from scratchlm.bench.cases import StepCase, Workbench


def profile(
    settings: Settings = None,
    model: Model = "auto",
    scope: Annotated[
        str, typer.Option("--pass", help="forward; both: with backward; step: with the update.")
    ] = "step",
    precision: Annotated[str, typer.Option("--precision", "-p", help="float32 or bfloat16.")] = "float32",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Rows in a batch.")] = 4,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", "-c", min=1, help="Tokens in a row; the size's own by default.", show_default=False
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute each block's activations again.")
    ] = False,
    optimizer: Annotated[str, typer.Option("--optimizer", help="Of the full step.")] = "adamw",
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Steps that are profiled.")] = 3,
    top: Annotated[int, typer.Option("--top", min=1, help="Operations that are shown.")] = 15,
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="For what is written.")
    ] = Path("profile"),
    ranges_only: Annotated[
        bool, typer.Option("--ranges-only", help="NVTX ranges and no profiler of torch's, to run under nsys.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Show where the time and the memory of a training step go.

    Prints a table by operation and one by part of the model; writes trace.json (for ui.perfetto.dev),
    memory.html (every block of memory over time) and, on a GPU, torch's own memory snapshot.
    """
    from scratchlm.bench.cases import SCOPES, StepCase, Workbench, size_of
    from scratchlm.cli import bench_options as shared

    place = shared.open_device(device)
    name = _one(shared.model_names(model, place), "--model")
    length = {} if context is None else {"context_length": context}
    case = StepCase(
        model=name,
        settings=size_of(name, shared.changes_of(settings) | length),
        batch=batch,
        scope=_one(shared.words(scope, "--pass", SCOPES), "--pass"),
        precision=_one(shared.words(precision, "--precision", shared.PRECISIONS), "--precision"),
        compiled=compiled,
        checkpointing=checkpointing,
        optimizer=shared.known_optimizer(optimizer),
    )
    shared.check_memory(case, place)
    bench = Workbench(case, place)
    if ranges_only:
        from scratchlm.bench.profile import run_ranges

        run_ranges(bench, steps=steps)
        return
    _profile(bench, folder, steps, top)


def _profile(bench: "Workbench", folder: Path, steps: int, top: int) -> None:
    from scratchlm.bench import memory, profile, tables
    from scratchlm.bench.memory_page import write_memory_page
    from scratchlm.cli.bench_output import machine, print_tables
    from scratchlm.cli.console import err, out, print_table, size, table
    from scratchlm.runtime import write_text_atomically

    folder.mkdir(parents=True, exist_ok=True)
    case, gpu = bench.case, bench.device.type == "cuda"
    with err().status("profiling") if err().is_terminal else _silence():
        found = profile.profile_steps(bench, folder / "trace.json", steps=steps)
    made = profile.tables(case, found, shown=top)
    print_tables(made)
    write_text_atomically(folder / "operations.md", tables.markdown(made))
    files = [
        ("trace.json", "open it in https://ui.perfetto.dev or chrome://tracing"),
        ("operations.md", "the tables above"),
    ]
    if bench.device.type in ("cpu", "cuda"):
        with err().status("recording memory") if err().is_terminal else _silence():
            snapshot = folder / "memory.pickle" if gpu else None
            recording = memory.record(bench, steps=2, snapshot=snapshot)
        here = machine(bench.device)
        write_memory_page(
            folder / "memory.html",
            recording,
            title=case.model,
            description=_description(case),
            machine=f"{here['device']}, torch {here['torch']}, {here['date']}",
        )
        files.append(("memory.html", "every block of memory over time"))
        if gpu:
            files.append(("memory.pickle", "drop it on https://pytorch.org/memory_viz"))
    timing = found.timing
    out().print()
    step = f"{1e3 * timing.median:,.4g} ms, median of {len(timing.seconds)} without the profiler"
    out().print(f"a call takes {step}", style="bold")
    rows = table("", "", "")
    for name, meaning in files:
        path = folder / name
        rows.add_row(f"  {shlex.quote(str(path))}", size(path.stat().st_size), meaning)
    print_table(rows)


def _description(case: "StepCase") -> str:
    from scratchlm.bench.step import SCOPE_WORDS

    ways = ["compiled"] * case.compiled + ["gradient checkpointing"] * case.checkpointing
    return ", ".join(
        [
            f"two times: {SCOPE_WORDS[case.scope]}",
            f"{case.batch} x {case.settings.context_length:,} tokens",
            case.precision,
            *([case.optimizer] if case.scope == "step" else []),
            *ways,
        ]
    )


def _one(values: list[str], option: str) -> str:
    if len(values) > 1:
        raise ValueError(f"{option}={','.join(values)}: one at a time is profiled; give one value.")
    return values[0]


def _silence() -> "contextlib.AbstractContextManager[None]":
    return contextlib.nullcontext()
