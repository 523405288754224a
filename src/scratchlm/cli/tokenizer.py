"""`scratchlm tokenizer`: learn one from text, encode and decode with it, look inside it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from scratchlm.cli.sources import PATTERN_HELP, TOKENIZER_HELP, open_tokenizer, read_text
from scratchlm.cli.tokenizer_train import convert, cut, extend, train
from scratchlm.cli.tokenizer_views import compare, inspect

app = typer.Typer(no_args_is_help=True, help="Learn a tokenizer, use it, look inside it.")

Pattern = Annotated[str | None, typer.Option(help=PATTERN_HELP)]
Saved = Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)]
TextFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="Take the text from a file; - reads a pipe.")
]


for command in (train, inspect, compare, convert, extend, cut):
    app.command()(command)


@app.command()
def encode(
    tokenizer: Saved,
    text: Annotated[str | None, typer.Argument(help="The text.")] = None,
    file: TextFile = None,
    special: Annotated[
        bool, typer.Option("--special", help="Special tokens in the text become one id.")
    ] = False,
    pattern: Pattern = None,
) -> None:
    """Print the ids of a text, separated by blanks."""
    loaded = open_tokenizer(tokenizer, pattern)
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
    pattern: Pattern = None,
) -> None:
    """Print the text of ids."""
    from scratchlm.cli.console import write_text

    if ids and file is not None:
        raise ValueError("ids and --file were both given; leave one out.")
    loaded = open_tokenizer(tokenizer, pattern)
    words = " ".join(ids or _text(None, file)).replace(",", " ").split()
    for word in words:
        if not word.isdecimal():
            raise ValueError(f"{word!r} is no id; ids are whole numbers from 0 to {loaded.vocab_size - 1}.")
    write_text(loaded.decode([int(word) for word in words]) + "\n")


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
