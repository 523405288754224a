"""`scratchlm tokenizer train`, `extend`, `cut`, `convert`: make a tokenizer, change it, write it out."""

import logging
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from scratchlm.cli.sources import (
    PATTERN_HELP,
    TOKENIZER_HELP,
    Plugin,
    load_plugins,
    open_bpe,
    open_corpus,
    split_settings,
)

if TYPE_CHECKING:
    from scratchlm.cli.progress import Bar
    from scratchlm.tokenizer import Tokenizer

log = logging.getLogger("scratchlm")

Source = Annotated[
    list[str], typer.Argument(help="Text files, or a corpus name and key=value settings of it.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
OUTPUT = Path("tokenizer.scratchlm.json")
Profile = Annotated[bool, typer.Option("--profile", help="Show seconds and memory of each phase.")]
Size = Annotated[int, typer.Option("--vocab-size", help="Entries of the new vocabulary.")]


def train(
    source: Source,
    output: Output = OUTPUT,
    kind: Annotated[str, typer.Option(help="Which tokenizer; see: scratchlm help tokenizer.")] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Entries of the vocabulary, bytes and specials included.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Split pattern, such as gpt2.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Another setting of it, such as tie=hf."),
    ] = None,
    profile: Profile = False,
    plugin: Plugin = None,
) -> None:
    """Learn a tokenizer from whole text files, or from a corpus's training split; saved as one JSON file."""
    from scratchlm.tokenizer import TOKENIZERS

    load_plugins(plugin)
    _check_output(output)
    names, given = split_settings(settings or ())
    if names:
        raise ValueError(f"--set {names[0]}: write it as key=value.")
    asked = {"vocab_size": vocab_size, "pattern": pattern} | given
    trainer = TOKENIZERS.build(kind, **{key: value for key, value in asked.items() if value is not None})
    profiled = "profile" in signature(trainer.train).parameters
    if profile and not profiled:
        log.warning("--profile: a %r has no phases to measure; it is ignored.", kind)
    files = [Path(word) for word in source if _is_plain_text(Path(word))]
    if len(files) == len(source) and hasattr(trainer, "train_on_file"):
        _train(lambda **how: trainer.train_on_file(files, **how), output, profile and profiled)
    else:
        corpus = open_corpus(source)
        texts = (chunk.text for chunk in corpus.chunks("train"))
        _train(lambda **how: trainer.train(texts, **how), output, profile and profiled)


def extend(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    source: Source,
    vocab_size: Size,
    output: Output = OUTPUT,
    pattern: Annotated[str | None, typer.Option(help=PATTERN_HELP)] = None,
    learn_pattern: Annotated[
        str | None, typer.Option(help="Split pattern to learn with and to keep, such as superbpe.")
    ] = None,
    tie: Annotated[
        str, typer.Option(help="Which of equally frequent pairs is merged: bytes, hf, raw.")
    ] = "bytes",
    plugin: Plugin = None,
) -> None:
    """Learn more merges from another text: old entries keep their ids, new ones follow."""
    from scratchlm.tokenizer.base import check_name
    from scratchlm.tokenizer.bpe_extend import extend_bpe
    from scratchlm.tokenizer.bpe_reference import Tie

    load_plugins(plugin)
    _check_output(output)
    old = open_bpe(tokenizer, pattern)
    texts = (chunk.text for chunk in open_corpus(source).chunks("train"))
    check_name(tie, get_args(Tie), "tie rule")
    settings: dict[str, Any] = {"vocab_size": vocab_size, "pattern": learn_pattern, "tie": tie}
    _train(lambda progress: extend_bpe(old, texts, progress=progress, **settings), output)


def cut(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    vocab_size: Size,
    output: Output = OUTPUT,
    pattern: Annotated[str | None, typer.Option(help=PATTERN_HELP)] = None,
) -> None:
    """Keep the first merges only: the tokenizer that training would have given at that size."""
    from scratchlm.tokenizer.bpe_extend import cut_vocabulary

    _check_output(output)
    _save(cut_vocabulary(open_bpe(tokenizer, pattern), vocab_size), output)


def convert(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP)],
    to: Annotated[
        Literal["scratchlm", "gpt2", "tiktoken", "huggingface"],
        typer.Option(help="Format; gpt2 and huggingface are two files in a folder."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    pattern: Annotated[str | None, typer.Option(help=PATTERN_HELP)] = None,
    special: Annotated[
        list[str] | None,
        typer.Option("--special", metavar="NAME=ID", help="Special token of ranks, which do not hold any."),
    ] = None,
) -> None:
    """Write a tokenizer in another program's format; what it cannot hold is an error."""
    from scratchlm.cli.console import err, out, printable
    from scratchlm.cli.errors import naming
    from scratchlm.tokenizer.formats import save_gpt2, save_huggingface, save_tiktoken

    loaded = open_bpe(tokenizer, pattern, _special_tokens(special))
    writers: dict[str, Callable[[], Any]] = {
        "scratchlm": lambda: loaded.save(output),
        "gpt2": lambda: save_gpt2(loaded, _folder(output) / "vocab.json", output / "merges.txt"),
        "tiktoken": lambda: save_tiktoken(loaded, output),
        "huggingface": lambda: save_huggingface(loaded, output),
    }
    with naming(output):
        writers[to]()
    out().print(f"{output}: {loaded.vocab_size:,} entries, as {to}")
    if to == "tiktoken" or (to == "gpt2" and loaded.pattern != "gpt2"):
        err().print(f"this format does not name the split pattern; read it with --pattern {loaded.pattern}")
    if to == "tiktoken" and loaded.special_tokens:
        names = ", ".join(f"{printable(name)} = {id}" for name, id in loaded.special_tokens.items())
        err().print(f"this format does not hold special tokens; tell its reader: {names}")


def _special_tokens(words: list[str] | None) -> dict[str, int] | None:
    """["<|endoftext|>=50256"] -> {"<|endoftext|>": 50256}."""
    found = {}
    for word in words or ():
        name, _, id = word.rpartition("=")
        if not (name and id.isdecimal()):
            raise ValueError(f"--special {word}: write it as NAME=ID, such as '<|endoftext|>=50256'.")
        found[name] = int(id)
    return found or None


def _train(learn: "Callable[..., Tokenizer]", output: Path, profile: bool = False) -> None:
    """Learn with a bar on the screen, save, and show the profile if it was asked for."""
    from scratchlm.cli.console import err
    from scratchlm.cli.progress import Bar

    how: dict[str, Any] = {}
    if profile:
        from scratchlm.tokenizer.train_profile import TrainingProfile

        how["profile"] = TrainingProfile()
    with Bar("tokenizer") as bar:
        made = learn(progress=_reporter(bar), **how)
    _save(made, output)
    if profile:
        err().print(str(how["profile"]))


def _reporter(bar: "Bar") -> Callable[[str, int, int], None]:
    """Show phase and speed: MB/s of text, or merges a second."""
    began: dict[str, float] = {}

    def report(phase: str, done: int, total: int) -> None:
        seconds = time.perf_counter() - began.setdefault(phase, time.perf_counter())
        unit, scale = ("MB/s", 1e6) if phase == "count" else ("merges/s", 1)
        rate = f", {done / scale / seconds:,.0f} {unit}" if seconds > 0 else ""
        bar.update(done, total, f"{phase}{rate}")

    return report


def _save(tokenizer: "Tokenizer", output: Path) -> None:
    from scratchlm.cli.console import count, err, out
    from scratchlm.cli.errors import naming

    with naming(output):
        tokenizer.save(output)
    out().print(f"{output}: {count(tokenizer.vocab_size)} entries, fingerprint {tokenizer.fingerprint[:12]}")
    err().print(f"look inside: scratchlm tokenizer inspect {output}", style="dim")


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise ValueError(f"{output}: is a folder; give the name of a file with --output.")


def _is_plain_text(path: Path) -> bool:
    return path.is_file() and path.suffix not in {".jsonl", ".json", ".parquet", ".gz", ".zst"}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
