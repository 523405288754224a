"""Words on the command line come in, opened things go out: corpora, tokenizers, plugins."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scratchlm.data.corpora import Corpus
    from scratchlm.tokenizer import Tokenizer
    from scratchlm.tokenizer.bpe import BPETokenizer

Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE.py", help="Python file whose registered parts can be used by name."
    ),
]
"""The option of every command in which a part of somebody's own may be named."""

CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", help="newest, best (of the best validation) or a step.")
]
"""The option of every command that reads a trained model."""

Temperature = Annotated[float, typer.Option(min=0, help="Below 1: likelier tokens; 0: always the likeliest.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Only the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens that have this probability.")]
"""The options of every command that draws tokens."""

TOKENIZER_HELP = (
    "A saved tokenizer, a run folder, tokenizer.json, ranks.tiktoken, or vocab.json with merges.txt."
)
PATTERN_HELP = "Split pattern, for files that do not name it: ranks.tiktoken."


def load_plugins(paths: Iterable[Path] | None) -> None:
    """Run the plugin files so that their parts have names.

    Raises:
        ValueError: There is no such file.
    """
    if not paths:
        return
    from scratchlm.registry import load_plugin

    for path in paths:
        load_plugin(path)


def split_settings(words: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate names and paths from `key=value` words; what exists as a file is a path.

    Example: ["stories", "seed=3"] -> (["stories"], {"seed": 3}).
    """
    from scratchlm.config import parse_override

    names: list[str] = []
    settings: dict[str, Any] = {}
    for word in words:
        if "=" in word and not Path(word).exists():
            keys, value = parse_override(word)
            settings[".".join(keys)] = value
        else:
            names.append(word)
    return names, settings


def open_corpus(words: Iterable[str], **extra: Any) -> "Corpus":
    """Open a corpus by its name, or files and folders, with settings after it.

    Args:
        words: "stories" and "seed=3", or "book.txt" and "notes/"; a name wins over a folder of that name.
        **extra: More settings.

    Raises:
        ValueError: Neither a name nor a path, or a setting is wrong.
    """
    from scratchlm.data import CORPORA
    from scratchlm.registry import unknown

    names, settings = split_settings(words)
    settings |= extra
    if len(names) == 1 and names[0] in CORPORA.names() and names[0] != "files":
        return CORPORA.build(names[0], **settings)
    if "paths" in settings:
        return CORPORA.build("files", **settings)
    for name in names:
        if not Path(name).exists():
            if "/" in name or "." in name:
                raise ValueError(f"{name}: no such file or folder; check the path.")
            raise ValueError(f"{unknown('corpus', name, CORPORA.names())} Or give files and folders of text.")
    if not names or names == ["files"]:
        raise ValueError(f"no text named; give files and folders, or one of {', '.join(CORPORA.names())}.")
    return CORPORA.build("files", paths=tuple(names), **settings)


def open_tokenizer(
    path: Path, pattern: str | None = None, special_tokens: dict[str, int] | None = None
) -> "Tokenizer":
    """Load a tokenizer from a file or folder of any known format.

    Args:
        path: Our file, a run folder, or a file or folder of GPT-2's, tiktoken's or Hugging Face's form.
        pattern: The split pattern, for formats that do not name it.
        special_tokens: Special token -> id, for formats that do not hold them.

    Raises:
        ValueError: There is none.
    """
    from scratchlm.tokenizer.formats import read_any

    if not path.exists():
        raise ValueError(
            f"{path}: no such tokenizer; make one with: scratchlm tokenizer train TEXT -o {path}"
        )
    return read_any(path, pattern=pattern, special_tokens=special_tokens)


def open_bpe(
    path: Path, pattern: str | None = None, special_tokens: dict[str, int] | None = None
) -> "BPETokenizer":
    """Load a tokenizer that is a byte-pair encoding; arguments as `open_tokenizer`.

    Raises:
        ValueError: There is none, or it is of another kind.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer

    loaded = open_tokenizer(path, pattern, special_tokens)
    if not isinstance(loaded, BPETokenizer):
        raise ValueError(
            f"{path}: a {type(loaded).__name__}; this needs a byte-pair encoding (BPETokenizer)."
        )
    return loaded


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file; "-" reads what comes in through a pipe.

    Raises:
        ValueError: The file is missing or not UTF-8; the message names it and the place.
    """
    import sys

    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not valid UTF-8 ({error.reason}); convert it to UTF-8 first."
        ) from None
