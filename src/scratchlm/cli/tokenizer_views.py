"""`scratchlm tokenizer inspect`, `compare`: what a tokenizer knows, how it cuts, which of two is better."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.sources import (
    PATTERN_HELP,
    TOKENIZER_HELP,
    Plugin,
    load_plugins,
    open_corpus,
    open_tokenizer,
    read_text,
)

if TYPE_CHECKING:
    from rich.text import Text

    from scratchlm.study.tokenizer_figures import Compression, Entry, Figures
    from scratchlm.tokenizer import Tokenizer

COLOURS = ("on blue", "on green", "on magenta", "on cyan", "on red")
"""Backgrounds that take turns, so that the borders between pieces can be seen."""
SHOWN = 600
"""Characters of text that a terminal shows coloured."""
LONGEST_LINE = 100
"""Tokens of a list are shown up to about this many characters."""

Corpora = Annotated[
    list[str] | None,
    typer.Option("--corpus", "-c", help="Corpus name, file or folder to measure on; can be given again."),
]
Page = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page as well.")]
TextWord = Annotated[str | None, typer.Argument(help="A text to cut into pieces.")]
TextFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="Take the text from a file; - reads a pipe.")
]


def inspect(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    text: TextWord = None,
    file: TextFile = None,
    corpus: Corpora = None,
    html: Page = None,
    pattern: Annotated[str | None, typer.Option(help=PATTERN_HELP)] = None,
    plugin: Plugin = None,
) -> None:
    """Show a tokenizer: compression by language and corpus, longest and rarest tokens, a text in pieces."""
    from scratchlm.cli.console import out
    from scratchlm.study.tokenizer_figures import examine

    load_plugins(plugin)
    loaded = open_tokenizer(tokenizer, pattern)
    given = _text(text, file)
    figures = examine(tokenizer.name, loaded, _corpora(corpus))
    console = out()
    _print_facts(figures)
    _print_compression([figures])
    for title, entries, counted in (
        ("longest tokens", figures.longest, False),
        ("most frequent", figures.frequent, True),
        ("rarest", figures.rare, True),
        ("unreachable", figures.unreachable, False),
    ):
        if entries:
            console.print(f"{title:<17}{_line(entries, counted=counted)}")
    if given is not None:
        _print_pieces([tokenizer.name], [loaded], given)
    if html is not None:
        _write_page(html, [figures], [loaded], given)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help=TOKENIZER_HELP)],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other tokenizer.")],
    text: TextWord = None,
    file: TextFile = None,
    corpus: Corpora = None,
    html: Page = None,
    pattern: Annotated[str | None, typer.Option(help=PATTERN_HELP)] = None,
    plugin: Plugin = None,
) -> None:
    """Compare two tokenizers: compression by language and corpus, shared entries, a text in pieces."""
    from scratchlm.cli.console import out
    from scratchlm.study.tokenizer_figures import examine, vocabulary

    load_plugins(plugin)
    loaded = [open_tokenizer(path, pattern) for path in (first, second)]
    given = _text(text, file)
    names = ["A", "B"] if first.name == second.name else [first.name, second.name]
    figures = [examine(name, one, _corpora(corpus)) for name, one in zip(names, loaded, strict=True)]
    console = out()
    for figure in figures:
        console.print(figure.name, style="bold")
        _print_facts(figure)
        console.print()
    first_tokens, second_tokens = ({token for _, token in vocabulary(one)} for one in loaded)
    shared = len(first_tokens & second_tokens)
    console.print(f"{'shared entries':<17}{shared:,}")
    _print_compression(figures)
    if given is not None:
        _print_pieces(names, loaded, given)
    if html is not None:
        _write_page(html, figures, loaded, given)


def _print_facts(figures: "Figures") -> None:
    from scratchlm.cli.console import count, out, printable

    names = [f"{printable(name)} = {id}" for name, id in figures.special_tokens.items()]
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    facts = [
        ("vocabulary", f"{figures.vocab_size:,}"),
        ("special tokens", ", ".join(names[:8]) + more or "none"),
        ("fingerprint", figures.fingerprint[:12]),
        ("unreachable", f"{figures.num_unreachable:,} entries" if figures.num_unreachable else "none"),
    ]
    if figures.num_unused is not None:
        facts.append(("not in corpora", f"{figures.num_unused:,} entries"))
    total = figures.corpus_total
    if total is not None:
        speed = total.num_bytes / 1e6 / max(total.seconds, 1e-9)
        facts.append(("on the corpora", f"{total.bytes_per_token:.2f} bytes per token, {count(speed)} MB/s"))
    for name, value in facts:
        out().print(f"{name:<17}{value}")


def _print_compression(figures: list["Figures"]) -> None:
    """Bytes per token of each text, in a table; of two tokenizers the shorter is marked."""
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.study.tokenizer_figures import side_by_side

    names = ["bytes per token", "tokens"] if len(figures) == 1 else [figure.name for figure in figures]
    columns = ["text", *names] + (["tokens A : B"] if len(figures) == 2 else [])
    rows = table(*columns, numbers=tuple(columns[1:]))
    for kind in ("corpora", "languages"):
        for found in side_by_side([getattr(figure, kind) for figure in figures]):
            rows.add_row(found[0].name, *_cells(found))
    out().print()
    print_table(rows)
    out().print()


def _cells(found: "tuple[Compression, ...]") -> list["Text | str"]:
    from rich.text import Text

    from scratchlm.cli.console import count
    from scratchlm.study.tokenizer_figures import token_ratio

    most = max(one.num_tokens for one in found)
    cells: list[Text | str] = [
        Text(f"{one.bytes_per_token:.2f}", style="bold" if one.num_tokens < most else "") for one in found
    ]
    if len(found) == 1:
        return [*cells, count(found[0].num_tokens)]
    return [*cells, f"{token_ratio(found):.2f}"]


def _line(entries: "list[Entry]", *, counted: bool) -> str:
    words: list[str] = []
    for entry in entries:
        words.append(repr(entry.text) + (f" x{entry.count}" if counted else ""))
        if sum(map(len, words)) > LONGEST_LINE:
            break
    return "  ".join(words)


def _print_pieces(names: list[str], tokenizers: "list[Tokenizer]", text: str) -> None:
    from scratchlm.cli.console import count, out, printable, size
    from scratchlm.study.tokenizer_figures import compress

    console = out()
    for name, tokenizer in zip(names, tokenizers, strict=True):
        found = compress(tokenizer, name, text)
        title = "this text" if len(names) == 1 else name
        if name != names[0]:
            console.print()
        console.print(
            f"{title:<17}{count(found.num_tokens)} tokens for {size(found.num_bytes)}: "
            f"{found.bytes_per_token:.2f} bytes per token"
        )
        console.print()
        console.print(_pieces(tokenizer, printable(text[:SHOWN]), coloured=console.is_terminal))


def _pieces(tokenizer: "Tokenizer", text: str, *, coloured: bool) -> "Text":
    """The text cut into tokens: backgrounds that take turns, or bars where there are no colours."""
    from rich.text import Text

    from scratchlm.study.tokenizer_figures import pieces

    found = pieces(tokenizer, text)
    if not coloured:
        return Text("|".join(piece.text for piece in found))
    shown = Text()
    for number, piece in enumerate(found):
        shown.append(piece.text, style=f"black {COLOURS[number % len(COLOURS)]}")
    return shown


def _text(text: str | None, file: Path | None) -> str | None:
    if text is not None and file is not None:
        raise ValueError("a text and --file were both given; leave one out.")
    given = read_text(file) if file is not None else text
    if given == "":
        raise ValueError(f"{file or 'text'}: empty; give some text to cut into pieces.")
    return given


def _corpora(names: Iterable[str] | None) -> Iterator[tuple[str, Iterator[str]]]:
    for name in names or ():
        corpus = open_corpus([name])
        yield Path(name).name, (chunk.text for chunk in corpus.chunks("train"))


def _write_page(
    path: Path, figures: "list[Figures]", tokenizers: "list[Tokenizer]", text: str | None
) -> None:
    from scratchlm.cli.console import out
    from scratchlm.cli.errors import naming
    from scratchlm.study.tokenizer_page import write_tokenizer_page

    with naming(path):
        write_tokenizer_page(path, figures, tokenizers, text)
    out().print(f"page: {path}")
