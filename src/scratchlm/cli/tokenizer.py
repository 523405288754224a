"""`scratchlm tokenizer`: learn one from text, encode and decode with it, look inside it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from scratchlm.cli.sources import TOKENIZER_HELP, Plugin, load_plugins, open_corpus, open_tokenizer, read_text
from scratchlm.cli.tokenizer_views import compare, inspect

app = typer.Typer(no_args_is_help=True, help="Learn a tokenizer, use it, look inside it.")

Saved = Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)]
TextFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="Take the text from a file; - reads a pipe.")
]


@app.command()
def train(
    source: Annotated[
        list[str], typer.Argument(help="A corpus name or files and folders, then key=value settings.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "tokenizer.scratchlm.json"
    ),
    kind: Annotated[str, typer.Option(help="Which tokenizer; see: scratchlm help tokenizer.")] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Entries of the vocabulary, bytes and specials included.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Split pattern, such as gpt2.")] = None,
    plugin: Plugin = None,
) -> None:
    """Learn a tokenizer from the training split of a text and save it as one JSON file."""
    from scratchlm.cli.console import count, err, out
    from scratchlm.cli.errors import naming
    from scratchlm.cli.progress import Bar
    from scratchlm.tokenizer import TOKENIZERS

    load_plugins(plugin)
    if output.is_dir():
        raise ValueError(f"{output}: is a folder; give the name of a file with --output.")
    asked = {"vocab_size": vocab_size, "pattern": pattern}
    settings = {key: value for key, value in asked.items() if value is not None}
    trainer = TOKENIZERS.build(kind, **settings)
    corpus = open_corpus(source)
    with Bar("tokenizer") as bar:
        texts = (chunk.text for chunk in corpus.chunks("train"))
        tokenizer = trainer.train(texts, progress=lambda phase, done, total: bar.update(done, total, phase))
    with naming(output):
        tokenizer.save(output)
    out().print(f"{output}: {count(tokenizer.vocab_size)} entries, fingerprint {tokenizer.fingerprint[:12]}")
    err().print(f"look inside: scratchlm tokenizer inspect {output}", style="dim")


@app.command()
def encode(
    tokenizer: Saved,
    text: Annotated[str | None, typer.Argument(help="The text.")] = None,
    file: TextFile = None,
    special: Annotated[
        bool, typer.Option("--special", help="Special tokens in the text become one id.")
    ] = False,
) -> None:
    """Print the ids of a text, separated by blanks."""
    loaded = open_tokenizer(tokenizer)
    ids = loaded.encode_iterable(
        _text(text, file), allowed_special="all" if special else (), disallowed_special=()
    )
    for index, number in enumerate(ids):
        sys.stdout.write(f" {number}" if index else str(number))
    sys.stdout.write("\n")


@app.command()
def decode(
    tokenizer: Saved,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, separated by blanks or commas.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Take the ids from a file; - reads a pipe.")
    ] = None,
) -> None:
    """Print the text of ids."""
    from scratchlm.cli.console import write_text

    loaded = open_tokenizer(tokenizer)
    words = " ".join([*(ids or []), *_text(None, file)] if file or not ids else ids).replace(",", " ").split()
    for word in words:
        if not word.isdecimal():
            raise ValueError(f"{word!r} is no id; ids are whole numbers from 0 to {loaded.vocab_size - 1}.")
    write_text(loaded.decode([int(word) for word in words]) + "\n")


app.command()(inspect)
app.command()(compare)


def _text(text: str | None, file: Path | None) -> Iterator[str]:
    """The text from the command line, a file, or a pipe.

    Raises:
        ValueError: None of them, or two.
    """
    if text is not None and file is not None:
        raise ValueError("a text and --file were both given; leave one out.")
    if text is not None:
        yield text
    elif file is not None or not sys.stdin.isatty():
        yield read_text(file or Path("-"))
    else:
        raise ValueError("no text; give it as a word in quotes, with --file FILE, or through a pipe.")
