"""`scratchlm bench comm`, `ddp`, `shards`: what it costs that several processes train together."""

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from scratchlm.cli.bench_options import (
    PRECISIONS,
    Backend,
    Format,
    Model,
    Out,
    Settings,
    changes_of,
    decimals,
    model_names,
    numbers,
    open_device,
    words,
)
from scratchlm.cli.bench_output import collect

if TYPE_CHECKING:
    import torch

    from scratchlm.bench.parallel import ParallelCase, ParallelGroup
    from scratchlm.bench.tables import Table
    from scratchlm.distributed.buckets import BucketSize

Processes = Annotated[int, typer.Option("--processes", "-N", min=2, help="Started here, on free ports.")]
Batch = Annotated[int, typer.Option("--batch", "-b", min=1, help="Rows for each process.")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", "-c", min=1, help="Tokens in a row; the size's own by default.", show_default=False
    ),
]
OnePrecision = Annotated[str, typer.Option("--precision", "-p", help="float32 or bfloat16.")]
Bucket = Annotated[
    str, typer.Option("--bucket", help="Largest bucket, MB; auto: torch's own, and ours by the model's size.")
]
Rounds = Annotated[int, typer.Option("--rounds", "-r", min=1, help="Turns of each way.")]
Steps = Annotated[int, typer.Option("--steps", "-n", min=1, help="Steps of each turn.")]


def comm(
    call: Annotated[
        str, typer.Option("--call", help="all_reduce, all_gather, reduce_scatter, all_to_all.")
    ] = "all_reduce,all_gather,reduce_scatter",
    megabytes: Annotated[
        str, typer.Option("--size", "-s", help="MB of float32 in all; the small one shows the latency.")
    ] = "0.01,1,10,100,1000",
    processes: Annotated[
        str, typer.Option("--processes", "-N", help="How many take part: 2 or more.")
    ] = "2,4",
    backend: Backend = "auto",
    warmup: Annotated[int, typer.Option("--warmup", "-w", min=0, help="Calls that do not count.")] = 5,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Calls that count.")] = 20,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Of one row; fewer calls have to do then.")
    ] = 5.0,
    form: Format = "table",
    out: Out = None,
) -> None:
    """Time collective calls between processes of this machine, and fit latency and bandwidth.

    Algorithm bandwidth is size / time; bus bandwidth counts the bytes that a ring would send, so it may be
    compared between calls and numbers of processes.
    """
    from scratchlm.bench import comm as bench

    backends, place = _place(backend)
    chosen = bench.cases(
        words(call, "--call", bench.CALLS),
        world_sizes=numbers(processes, "--processes", least=2),
        sizes_mb=decimals(megabytes, "--size"),
        backends=backends,
    )
    measure = partial(bench.run_cases, chosen, warmup=warmup, steps=steps, limit=seconds)
    collect(measure, bench.tables, len(chosen), place, form, out)


class Training(NamedTuple):
    """Options of what trains a model by several processes."""

    settings: Settings = None
    model: Model = "auto"
    bucket: Bucket = "auto"
    batch: Batch = 4
    context: Context = None
    precision: OnePrecision = "float32"
    processes: Processes = 2
    backend: Backend = "auto"
    rounds: Rounds = 10
    steps: Steps = 3
    form: Format = "table"
    out: Out = None


def training(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command those options beside its own; it gets them together as its first argument."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(Training(**{name: given.pop(name) for name in Training._fields}), **given)

    own = list(inspect.signature(command).parameters.values())[1:]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for (name, kind), default in zip(
            Training.__annotations__.items(), Training._field_defaults.values(), strict=True
        )
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    shown = [*options[:2], *own, *options[2:]]
    run.__signature__ = inspect.Signature(shown)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


@training
def ddp(
    asked: Training,
    ways: Annotated[
        str, typer.Option("--ways", help="Which take turns; torch_views: torch's without one of the copies.")
    ] = "per_parameter,flat,overlapped,bucketed,torch,torch_views",
    sweep: Annotated[
        str, typer.Option("--sweep", help="Buckets that are tried, MB; auto: up to all gradients; no.")
    ] = "auto",
) -> None:
    """Time data parallelism in its four ways and torch's: computing, and communication that is not hidden.

    All ways take turns in one group of processes. Beside the sizes of buckets stands what the overhead model
    foretells from the latency and bandwidth of the same processes.
    """
    from scratchlm.bench import ddp as bench
    from scratchlm.bench import parallel
    from scratchlm.model import accounting

    case, place = _case(asked)
    limits = bench.usual_sweep(4 * accounting.num_parameters(case.settings))
    if sweep != "auto":
        limits = [] if sweep == "no" else decimals(sweep, "--sweep")
    group = bench.candidates(case, words(ways, "--ways", parallel.DATA_PARALLEL_WAYS), limits)
    _measure("ddp", group, bench.tables, asked.rounds + 2, place, asked)


@training
def shards(
    asked: Training,
    ways: Annotated[
        str, typer.Option("--ways", help="Which are weighed and take turns; the first is compared with.")
    ] = "bucketed,zero1,zero2,fsdp,fsdp2",
) -> None:
    """Weigh and time each stage of sharding: parameters, gradients, optimizer state beside the formula.

    fsdp is ours, fsdp2 torch's fully_shard. What is weighed is the fullest process.
    """
    from scratchlm.bench import parallel
    from scratchlm.bench import shards as bench

    case, place = _case(asked)
    chosen = words(ways, "--ways", parallel.SHARDED_WAYS)
    group = bench.candidates(case, chosen)
    _measure("shards", group, bench.tables, len(chosen) + 1 + asked.rounds, place, asked)


def _measure(
    name: str,
    group: "ParallelGroup",
    tables: "Callable[[list[Any]], list[Table]]",
    total: int,
    place: "torch.device",
    asked: Training,
) -> None:
    from scratchlm.bench import parallel

    group = group.model_copy(update={"rounds": asked.rounds, "steps": asked.steps})
    parallel.check(group)
    collect(partial(parallel.run_group, name, group), tables, total, place, asked.form, asked.out)


def _case(asked: Training) -> "tuple[ParallelCase, torch.device]":
    from scratchlm.bench.cases import size_of
    from scratchlm.bench.parallel import ParallelCase

    backends, place = _place(asked.backend)
    names, kinds = model_names(asked.model, place), words(asked.precision, "--precision", PRECISIONS)
    for option, values in (("--model", names), ("--precision", kinds), ("--backend", backends)):
        if len(values) > 1:
            raise ValueError(f"{option}={','.join(values)}: one at a time is measured; give one value.")
    length = {} if asked.context is None else {"context_length": asked.context}
    case = ParallelCase(
        model=names[0],
        settings=size_of(names[0], changes_of(asked.settings) | length),
        batch=asked.batch,
        precision=kinds[0],
        backend=backends[0],
        world_size=asked.processes,
        bucket_mb=_bucket_mb(asked.bucket),
    )
    return case, place


def _bucket_mb(text: str) -> "BucketSize":
    if text == "auto":
        return "auto"
    found = decimals(text, "--bucket")
    if len(found) > 1:
        raise ValueError(f"--bucket={text}: one size at a time; --sweep tries several.")
    return found[0]


def _place(backend: str) -> "tuple[list[str], torch.device]":
    """The backends asked for, and where the first one's tensors are."""
    from scratchlm.bench.group import BACKENDS

    device = open_device("auto" if backend == "auto" else "cpu")
    import torch

    count = torch.cuda.device_count()
    if backend == "auto":  # several GPUs are worth more than the cores beside them
        return (["nccl"], device) if count > 1 else (["gloo"], torch.device("cpu"))
    backends = words(backend, "--backend", BACKENDS)
    return backends, torch.device("cuda") if count and backends[0] == "nccl" else device
