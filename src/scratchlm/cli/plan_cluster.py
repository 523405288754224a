"""`scratchlm plan --gpus 8 --gpu h100`: what a run needs on GPUs that are not here, layout by layout."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from scratchlm.bench.tables import Table
    from scratchlm.train.cluster import Candidate, ClusterPlan, Scaling
    from scratchlm.train.config import RunConfig

Row = tuple[str, str, str]
"""What, how much, why."""
Form = Literal["table", "markdown", "json"]
"""How plans are printed."""
SPARE = ("travelling", "sent a step", "tokens/s", "waiting")
"""Columns that a narrow terminal does without."""
DAY = 24 * 3600


class Rented(NamedTuple):
    """Which GPUs, and what is assumed of them; None leaves the tables' value."""

    gpus: str
    gpu: str = "h100"
    scaling: "Scaling" = "strong"
    efficiency: float | None = None
    price: float | None = None
    inside: float | None = None
    between: float | None = None
    per_machine: int | None = None


def numbers_of(text: str) -> tuple[int, ...]:
    """Read "8" or "1,8,64" as numbers of GPUs, each once.

    Raises:
        ValueError: A word is no number.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise ValueError(f"--gpus {text!r}: give a number of GPUs, or several: --gpus 1,8,64,1024.")
    return tuple(dict.fromkeys(int(word) for word in words))


def show(config: "RunConfig", vocab_size: int | None, rented: Rented, form: Form, *, title: str) -> None:
    """Plan and print.

    Args:
        config: The run.
        vocab_size: The tokenizer's, where it is known.
        rented: What it shall run on.
        form: How to print.
        title: What stands above the tables.

    Raises:
        ValueError: A value is out of range, or the rows cannot be shared by the only number of GPUs.
    """
    from scratchlm.machines import find_machine
    from scratchlm.train.cluster import EFFICIENCY, plan_cluster

    machine = find_machine(
        rented.gpu,
        price=rented.price,
        inside_gb_per_second=rented.inside,
        between_gb_per_second=rented.between,
        gpus=rented.per_machine,
    )
    plans = plan_cluster(
        config,
        machine,
        numbers_of(rented.gpus),
        vocab_size=vocab_size,
        efficiency=EFFICIENCY if rented.efficiency is None else rented.efficiency,
        scaling=rented.scaling,
    )
    if form == "json":
        _print_json(config, plans)
    elif form == "markdown":
        _print_markdown(plans)
    else:
        _print_tables(title, plans)


def layouts_table(plan: "ClusterPlan") -> "Table":
    """Every layout on one number of GPUs."""
    from scratchlm.bench.tables import Table
    from scratchlm.cli.console import size

    best = plan.best
    header = ["layout", "memory", "micro-batches", "sent a step", "travelling", "waiting", "step", "MFU", ""]
    rows = [
        [
            found.layout,
            size(found.memory_bytes),
            _micro_batches(found),
            size(found.sent_bytes),
            short(found.communication_seconds),
            short(found.exposed_seconds),
            short(found.step_seconds),
            f"{_mfu(plan, found):.1%}",
            _verdict(found, best),
        ]
        for found in plan.candidates
    ]
    return Table("", header, rows, 1)


def scaling_table(plans: list["ClusterPlan"]) -> "Table":
    """The best layout on each number of GPUs."""
    from scratchlm.bench.tables import Table
    from scratchlm.cli.console import count, size

    header = [
        "GPUs",
        "layout",
        "memory",
        "micro-batches",
        "waiting",
        "step",
        "tokens/s",
        "MFU",
        "time",
        "cost",
    ]
    rows = []
    for plan in plans:
        best = plan.best
        if best is None:
            why = "rows do not divide" if plan.obstacle else "nothing fits"
            rows.append([f"{plan.gpus:,}", why, *[""] * (len(header) - 2)])
            continue
        rows.append(
            [
                f"{plan.gpus:,}",
                best.layout,
                size(best.memory_bytes),
                _micro_batches(best),
                f"{best.exposed_seconds / best.step_seconds:.1%}",
                short(best.step_seconds),
                count(plan.tokens_per_second or 0.0),
                f"{plan.mfu:.1%}",
                days(plan.seconds or 0.0),
                money(plan.cost),
            ]
        )
    return Table("", header, rows, 2)


def short(seconds: float) -> str:
    """Seconds in three digits: 0.01234 -> "12.3 ms", 6350 -> "6,350 s"."""
    if not seconds:
        return "0"
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def days(seconds: float) -> str:
    """Seconds for people, long times in days: 300000 -> "3.5 days"."""
    from scratchlm.cli.console import duration

    return f"{seconds / DAY:,.1f} days" if seconds > 2 * DAY else duration(seconds)


def money(dollars: float | None) -> str:
    """US dollars for people: 1234.5 -> "$1,234"; unknown -> "?"."""
    return "?" if dollars is None else f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:,.2f}"


def _print_json(config: "RunConfig", plans: list["ClusterPlan"]) -> None:
    import json

    from scratchlm.cli.console import write_text

    found = []
    for plan in plans:
        derived = {
            "seconds": plan.seconds,
            "tokens_per_second": plan.tokens_per_second,
            "mfu": plan.mfu,
            "cost": plan.cost,
            "best": plan.best.layout if plan.best else None,
        }
        record = plan.model_dump(mode="json")
        for candidate, made in zip(record["candidates"], plan.candidates, strict=True):
            candidate["memory"] = {part.name: part.num_bytes for part in made.memory}
            candidate["calls"] = [call._asdict() for call in made.calls]
        found.append({"name": config.name} | record | derived)
    write_text(json.dumps(found, indent=2) + "\n")


def _print_markdown(plans: list["ClusterPlan"]) -> None:
    from scratchlm.bench.tables import markdown
    from scratchlm.cli.console import write_text

    single = len(plans) == 1 and plans[0].candidates
    write_text(markdown([layouts_table(plans[0]) if single else scaling_table(plans)]))


def _print_tables(title: str, plans: list["ClusterPlan"]) -> None:
    from scratchlm.cli.console import out, print_table, table

    console, first, single = out(), plans[0], len(plans) == 1
    if single and first.obstacle:
        raise ValueError(f"--gpus {first.gpus}: {first.obstacle}.")
    console.print(title, style="bold")
    shown = layouts_table(first) if single else scaling_table(plans)
    made = table(*shown.header, numbers=tuple(filter(None, shown.header[shown.labels :])))
    for row in shown.rows:
        made.add_row(*row)
    print_table(made, spare=SPARE)
    console.print()
    facts = table("", "", "")
    obstacles = [("not on", f"{plan.gpus:,} GPUs", plan.obstacle) for plan in plans if plan.obstacle]
    rows = _best_rows(first) if single else obstacles
    for what, figure, why in [*_run_rows(first), *rows, *_machine_rows(first)]:
        facts.add_row(f"  {what}", figure, why)
    print_table(facts)
    if single and first.best is not None:
        console.print("\nWhat to say to scratchlm train:")
        console.print(f"  {' '.join(_settings(first, first.best))}", style="cyan")


def _run_rows(plan: "ClusterPlan") -> list[Row]:
    from scratchlm.cli.console import count

    return [
        ("parameters", count(plan.parameters), f"{count(plan.flops_per_token)} FLOPs a token"),
        (
            "tokens",
            count(plan.tokens),
            f"{plan.steps:,} steps x {plan.batch_tokens:,}; {plan.tokens / plan.parameters:.3g} a parameter",
        ),
    ]


def _best_rows(plan: "ClusterPlan") -> list[Row]:
    from scratchlm.cli.console import size

    best = plan.best
    if best is None:
        least = min(plan.candidates, key=lambda found: found.memory_bytes)
        return [("no layout fits", f"{size(least.memory_bytes)} at least", "take more or larger GPUs")]
    rows = [
        ("best layout", best.layout, "the fastest that fits; of two within 1 %, the simpler"),
        ("memory", size(best.memory_bytes), "on each GPU"),
        *[(f"  {part.name}", size(part.num_bytes), part.formula) for part in best.memory],
        ("step", short(best.step_seconds), "computing + update + waiting"),
        ("  computing", short(best.compute_seconds), _computing(plan, best)),
        ("  update", short(best.update_seconds), "weights, gradients, state once through memory"),
        ("  waiting", short(best.exposed_seconds), f"of {short(best.communication_seconds)} of messages"),
        *_call_rows(best),
        ("speed", f"{plan.tokens_per_second:,.0f} tokens/s", f"MFU {plan.mfu:.1%}"),
        ("time", days(plan.seconds or 0.0), "without validations, samples and checkpoints"),
    ]
    price = plan.machine.price
    if price is None:
        return [*rows, ("cost", "unknown", "no price is known; say it: --price 2.50")]
    return [*rows, ("cost", money(plan.cost), f"{plan.gpus} GPUs x hours x ${price:.2f}")]


def _call_rows(best: "Candidate") -> list[Row]:
    from scratchlm.cli.console import size

    return [
        (
            f"    {call.kind}",
            size(call.sent_bytes),
            f"{short(call.seconds)}, {call.gpus:,} GPUs, {call.phase}",
        )
        for call in best.calls
    ]


def _machine_rows(plan: "ClusterPlan") -> list[Row]:
    from scratchlm.machines import PRICES
    from scratchlm.train.cluster import USABLE
    from scratchlm.train.messages import BANDWIDTH_SHARE

    machine, prices = plan.machine, PRICES.removeprefix("https://")
    share = f"{BANDWIDTH_SHARE:.0%} of it is used"
    return [
        (
            "GPU",
            machine.name,
            f"{plan.peak_flops / 1e12:,.0f} TFLOP/s in {plan.precision}; while computing "
            f"{plan.efficiency:.0%} of it are assumed (--efficiency)",
        ),
        ("its memory", f"{machine.memory_gb:g} GB", f"{USABLE:.0%} for tensors"),
        ("links", f"{machine.inside_gb_per_second:g} GB/s", f"inside a machine of {machine.gpus}; {share}"),
        ("", f"{machine.between_gb_per_second:.3g} GB/s", "for each GPU to other machines (--between)"),
        ("price", money(machine.price), f"for a GPU and hour (--price); {prices}" if machine.price else ""),
    ]


def _settings(plan: "ClusterPlan", best: "Candidate") -> list[str]:
    """What to say to `scratchlm train` for this layout."""
    context = plan.batch_tokens // (plan.gpus * best.micro_rows * best.accumulation)
    words = [f"train.micro_batch_tokens={best.micro_rows * context}"]
    if plan.gpus > 1:
        words = [f"distributed={best.layout.partition(' ')[0]}", *words]
    if 1 < plan.gpus <= plan.machine.gpus:
        words = [f"nproc={plan.gpus}", *words]
    if best.shard not in (1, plan.gpus):
        words.append(f"distributed.shard_processes={best.shard}")
    return [*words, "train.gradient_checkpointing=true"] if best.checkpointing else words


def _computing(plan: "ClusterPlan", best: "Candidate") -> str:
    again = " x 4/3 (blocks computed again)" if best.checkpointing else ""
    return f"FLOPs / ({plan.gpus:,} x {plan.efficiency:.2f} x {plan.peak_flops / 1e12:,.0f} TFLOP/s){again}"


def _micro_batches(found: "Candidate") -> str:
    again = ", recomputed" if found.checkpointing else ""
    return f"{found.accumulation} x {found.micro_rows} rows{again}"


def _mfu(plan: "ClusterPlan", found: "Candidate") -> float:
    return plan.batch_tokens * plan.flops_per_token / (found.step_seconds * plan.gpus * plan.peak_flops)


def _verdict(found: "Candidate", best: "Candidate | None") -> str:
    if found is best or found == best:
        return "best"
    if not found.fits:
        return "does not fit"
    return "" if found.has_engine else "by hand only"
