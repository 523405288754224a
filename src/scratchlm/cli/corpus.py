"""`scratchlm corpus`: which texts there are, what they hold, fetching and writing them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scratchlm.cli.sources import Plugin, load_plugins, open_corpus, split_settings

if TYPE_CHECKING:
    from scratchlm.data.corpora import Corpus

app = typer.Typer(no_args_is_help=True, help="List, show, fetch and write texts to train on.")

Source = Annotated[
    list[str],
    typer.Argument(metavar="CORPUS|FILES... [key=value ...]", help="A corpus name, or files and folders."),
]
Split = Annotated[Literal["train", "valid"], typer.Option(help="Which split.")]


@app.command("list")
def list_corpora(plugin: Plugin = None) -> None:
    """List the corpora by name, with licence and where they come from."""
    from scratchlm.cli.console import print_table, size, table
    from scratchlm.data import CORPORA
    from scratchlm.registry import first_line

    load_plugins(plugin)
    rows = table("corpus", "size", "licence", "what it is", numbers=("size",))
    for name in CORPORA.names():
        part = CORPORA.get(name)
        sizes = [file.size for file in getattr(part, "files", ())]
        total = size(sum(sizes)) if sizes and all(sizes) else ""
        rows.add_row(name, total, str(getattr(part, "licence", "")), first_line(part))
    print_table(rows)


@app.command()
def show(
    source: Source,
    number: Annotated[int, typer.Option("-n", min=0, help="How many documents to show.")] = 2,
    split: Split = "train",
    plugin: Plugin = None,
) -> None:
    """Show a corpus: licence, settings and its first documents."""
    from scratchlm.cli.console import out, size, write_text

    load_plugins(plugin)
    corpus = open_corpus(source)
    console = out()
    console.print(f"{corpus.name}, licence: {corpus.licence}", style="bold")
    for file in getattr(corpus, "files", ()):
        console.print(f"{file.url}, {size(file.size) if file.size else 'size not known'}", style="dim")
    if not getattr(corpus, "is_here", lambda: True)():
        console.print(f"not here yet; fetch it with: scratchlm corpus fetch {corpus.name}")
        return
    for index, text in enumerate(itertools.islice(_documents(corpus, split), number)):
        known = corpus.log_probability(text)
        figures = "" if known is None else f", {-known:.1f} nats"
        console.print(f"\n{split} document {index}: {len(text.encode()):,} bytes{figures}", style="dim")
        write_text(text.rstrip("\n") + "\n")


@app.command()
def fetch(
    source: Source,
    plugin: Plugin = None,
) -> None:
    """Download a corpus, with checksum; an interrupted download goes on where it stopped."""
    from scratchlm.cli.console import out
    from scratchlm.cli.progress import Bar

    load_plugins(plugin)
    corpus = open_corpus(source)
    download = getattr(corpus, "fetch", None)
    if download is None:
        out().print(f"{corpus.name}: nothing to download.")
        return
    with Bar(corpus.name, is_bytes=True) as bar:
        paths = download(progress=lambda name, done, total: bar.update(done, total, name))
    for path in paths:
        out().print(f"{path}")
    out().print(f"{corpus.name}: complete; licence: {corpus.licence}")


@app.command()
def write(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS|FILES... [key=value ...] FILE", help="A corpus, then the file to write."
        ),
    ],
    number: Annotated[
        int | None, typer.Option("-n", min=1, help="How many documents; all by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a generated corpus.")] = None,
    split: Split = "train",
    plugin: Plugin = None,
) -> None:
    """Write documents to a file: .jsonl has one JSON object a line, any other is text with separators."""
    from scratchlm.cli.console import err, out, size
    from scratchlm.cli.errors import naming
    from scratchlm.runtime import replace_atomically

    load_plugins(plugin)
    names, _ = split_settings(source)
    if len(names) < 2:
        raise ValueError(
            "name the corpus and then the file to write: scratchlm corpus write stories -n 1000 FILE"
        )
    target = Path(names[-1])
    if target.is_dir():
        raise ValueError(f"{target}: is a folder; give the name of the file to write.")
    words = [
        word for index, word in enumerate(source) if index != len(source) - 1 - source[::-1].index(names[-1])
    ]
    corpus = open_corpus(words, **_generated(words, number, seed))
    as_lines = target.suffix == ".jsonl"
    written = 0
    with (
        naming(target),
        replace_atomically(target) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for text in itertools.islice(_documents(corpus, split), number):
            file.write(_line(text) if as_lines else _with_separator(text, first=written == 0))
            written += 1
        if not as_lines:
            file.write("\n")
    out().print(f"{target}: {written:,} documents, {size(target.stat().st_size)}")
    err().print(f"train on it: scratchlm run {target}", style="dim")


def _generated(words: list[str], number: int | None, seed: int | None) -> dict[str, Any]:
    """-n and --seed as settings of a corpus that has such settings.

    Raises:
        ValueError: --seed for a corpus that is not generated.
    """
    from scratchlm.data import CORPORA

    known = CORPORA.settings(words[0]) if words[0] in CORPORA.names() else {}
    asked = {"num_train": number, "num_valid": number, "seed": seed}
    if seed is not None and "seed" not in known:
        raise ValueError(f"--seed: {words[0]} is not generated; leave --seed out.")
    return {key: value for key, value in asked.items() if value is not None and key in known}


def _documents(corpus: "Corpus", split: Literal["train", "valid"]) -> Iterator[str]:
    """Whole documents; a long one arrives from the corpus in several chunks."""
    parts: list[str] = []
    for chunk in corpus.chunks(split):
        parts.append(chunk.text)
        if chunk.ends_document:
            yield "".join(parts)
            parts = []
    if parts:
        yield "".join(parts)


def _line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"


def _with_separator(text: str, *, first: bool) -> str:
    from scratchlm.tokenizer import END_OF_TEXT

    return text if first else f"\n{END_OF_TEXT}\n{text}"
