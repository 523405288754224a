"""`scratchlm data`: turn text into token shards, look at shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scratchlm.cli.sources import TOKENIZER_HELP, Plugin, load_plugins, open_corpus, open_tokenizer

if TYPE_CHECKING:
    from scratchlm.data.prepare import Engine, PrepareStats
    from scratchlm.data.tasks import Mark

app = typer.Typer(no_args_is_help=True, help="Turn text into token shards, look at shards.")


@app.command()
def prepare(
    source: Annotated[
        list[str], typer.Argument(help="A corpus name or files and folders, then key=value settings.")
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", "-t", help=TOKENIZER_HELP)],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Folder for the shards.")],
    split: Annotated[Literal["train", "valid"], typer.Option(help="Which split.")] = "train",
    workers: Annotated[int, typer.Option(min=1, help="Threads or processes at work; 1: this one.")] = 2,
    engine: Annotated[
        Literal["threads", "processes", "ray"],
        typer.Option(help="What the workers are; processes pay for .jsonl and words, ray on many machines."),
    ] = "threads",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster; without it Ray starts here.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Characters that are encoded at a time; 4194304 if left out.")
    ] = None,
    queue_size: Annotated[int, typer.Option(min=1, help="Such portions that may wait.")] = 8,
    task: Annotated[int | None, typer.Option(min=0, help="Encode this part only, counted from 0.")] = None,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="Number of parts; merge them later.")] = None,
    plugin: Plugin = None,
) -> None:
    """Encode a text into shards of token ids; goes on where an interrupted call stopped.

    With --task I --num-tasks N only part I of N, on any machine that sees the folder; scratchlm data merge
    puts the parts together.
    """
    from scratchlm.cli.errors import naming
    from scratchlm.cli.progress import Bar
    from scratchlm.data import tasks
    from scratchlm.data.prepare import PORTION_CHARACTERS
    from scratchlm.data.prepare import prepare as prepare_shards

    if task is not None and engine != "threads":
        raise ValueError(f"--engine {engine}: a task of --num-tasks has threads; leave one of the two out.")
    if task is not None and chunk_size is not None:
        raise ValueError("--chunk-size: all tasks of --num-tasks cut the text alike; leave it out.")
    if address is not None and engine != "ray":
        raise ValueError(f"--address {address}: is for --engine ray.")
    if (task is None) != (num_tasks is None):
        raise ValueError("--task and --num-tasks go together: --task 0 --num-tasks 4 is the first of four.")
    load_plugins(plugin)
    loaded, corpus = open_tokenizer(tokenizer), open_corpus(source)
    with naming(folder), Bar(split, is_bytes=True) as bar:
        settings = {
            "split": split,
            "workers": workers,
            "queue_size": queue_size,
            "progress": lambda done, total, documents, tokens: bar.update(done, total),
        }
        if task is None:
            settings["chunk_size"] = chunk_size or PORTION_CHARACTERS
            stats = prepare_shards(corpus, loaded, folder, **settings, engine=_engine(engine, address))
        else:
            mark = tasks.prepare_task(corpus, loaded, folder, task=task, num_tasks=num_tasks, **settings)
    if task is None:
        _print_stats(folder, stats)
    else:
        _print_task(folder, mark)


def _engine(name: str, address: str | None) -> "Engine":
    """The engine of this name; Ray is imported for its own only."""
    import functools

    from scratchlm.data.prepare import encode_in_threads
    from scratchlm.data.processes import encode_in_processes
    from scratchlm.data.ray_engine import encode_on_ray

    known = {"threads": encode_in_threads, "processes": encode_in_processes}
    return known.get(name) or functools.partial(encode_on_ray, address=address)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="As given to `data prepare --task I --num-tasks N`.")],
) -> None:
    """Verify the parts that tasks encoded and put them together, in the order of the text."""
    from scratchlm.cli.errors import naming
    from scratchlm.cli.progress import Bar
    from scratchlm.data.tasks import merge_tasks

    with naming(folder), Bar("merging", is_bytes=True) as bar:
        stats = merge_tasks(folder, progress=lambda done, total, documents, tokens: bar.update(done, total))
    _print_stats(folder, stats)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A folder of shards, or a run folder.")],
    number: Annotated[int, typer.Option("-n", min=0, help="How many documents to show.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-t", help="To read the documents as text.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
) -> None:
    """Show what shards hold: counts, tokenizer, first documents."""
    from scratchlm.cli.console import out, size, write_text
    from scratchlm.data.shards import TokenDataset

    places = (
        [folder / "data" / "train", folder / "data" / "valid"] if (folder / "data").is_dir() else [folder]
    )
    if tokenizer is None and (folder / "data").is_dir():
        tokenizer = folder
    loaded = open_tokenizer(tokenizer) if tokenizer is not None else None
    fingerprint = loaded.fingerprint if loaded else None
    for place in places:
        data = TokenDataset.open(place, tokenizer_fingerprint=fingerprint, verify=verify)
        console = out()
        console.print(f"{place}", style="bold")
        console.print(
            f"{data.num_documents:,} documents, {data.num_tokens:,} tokens of {data.dtype}, "
            f"{size(data.num_bytes)} of text: {data.num_bytes / max(1, data.num_tokens):.2f} bytes per token"
        )
        console.print(
            f"tokenizer {data.manifest.tokenizer_fingerprint[:12]}, {data.manifest.vocab_size:,} entries"
        )
        for index in range(min(number, data.num_documents)):
            ids = data.document(index).tolist()
            console.print(f"\ndocument {index}, {len(ids):,} tokens", style="dim")
            write_text((loaded.decode(ids) if loaded else " ".join(map(str, ids))) + "\n")
    if verify:
        out().print("every checksum is right.", style="green")


def _print_stats(folder: Path, stats: "PrepareStats") -> None:
    from scratchlm.cli.console import duration, out, size

    console = out()
    speed = f", {size(stats.bytes / stats.seconds)}/s" if stats.seconds > 0 else ""
    counts = f"{stats.documents:,} documents, {stats.tokens:,} tokens"
    console.print(f"{folder}: {counts} from {size(stats.bytes)} of text")
    console.print(f"{stats.bytes_per_token:.2f} bytes per token; {duration(stats.seconds)}{speed}")
    console.print(f"first ids  {' '.join(map(str, stats.first_ids))}")
    console.print(f"last ids   {' '.join(map(str, stats.last_ids))}")


def _print_task(folder: Path, mark: "Mark | None") -> None:
    from scratchlm.cli.console import out
    from scratchlm.data.tasks import tasks_left

    if mark is None:
        out().print(f"{folder}: all tasks are done and merged")
        return
    tokens = sum(block.num_tokens for block in mark.blocks)
    out().print(f"task {mark.task} of {mark.num_tasks}: {len(mark.blocks):,} blocks, {tokens:,} tokens")
    left = tasks_left(folder, mark.num_tasks)
    if left:
        out().print(f"not done yet: {', '.join(map(str, left))}")
    else:
        out().print(f"all are done: scratchlm data merge {folder}")
