r"""GPT-2's two files: vocab.json, printable token -> id; merges.txt, one merge a line in order of rank.

    {"!": 0, ..., "\u0120the": 262, ..., "<|endoftext|>": 50256}        #version: 0.2
                                                                        \u0120 t
                                                                        \u0120 a

In GPT-2's own repository they are called encoder.json and vocab.bpe. They name neither the split pattern nor
the special tokens: whoever reads them says the pattern, and a token that is no byte and that no merge makes
or takes counts as special.

Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py.
"""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from scratchlm import runtime
from scratchlm.tokenizer.formats.printable import (
    all_from_printable,
    all_to_printable,
    byte_characters,
    merges_from_printable,
    split_merge_lines,
)
from scratchlm.tokenizer.formats.reading import check_ids, read_json, read_text, saved_problem
from scratchlm.tokenizer.formats.saved import special_bytes

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

FILE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""Names of the two files in a folder: Hugging Face's, then OpenAI's."""


def save_gpt2(tokenizer: "BPETokenizer", vocab_path: Path, merges_path: Path) -> None:
    """Write vocab.json (special tokens as themselves) and merges.txt.

    Raises:
        ValueError: The files cannot say what this tokenizer does.
    """
    check_plain(tokenizer, "vocab.json + merges.txt")
    merges = merge_lines(tokenizer)
    vocab = json.dumps(vocab_table(tokenizer), ensure_ascii=False)
    runtime.write_text_atomically(Path(vocab_path), vocab)
    runtime.write_text_atomically(Path(merges_path), "\n".join(["#version: 0.2", *merges, ""]))


def check_plain(tokenizer: "BPETokenizer", files: str) -> None:
    """Refuse settings that `files` have no place for.

    Raises:
        ValueError: The tokenizer ignores merges or normalizes text.
    """
    for setting in ("ignore_merges", "normalization"):
        if getattr(tokenizer, setting):
            raise ValueError(
                f"{files} cannot say {setting}={getattr(tokenizer, setting)!r}, without which the ids "
                "differ; write tokenizer.json or our own file."
            )


def vocab_table(tokenizer: "BPETokenizer") -> dict[str, int]:
    """Printable token -> id in the order of the ids; special tokens as themselves.

    Raises:
        ValueError: A special token reads like the printable form of another token.
    """
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    ordered = dict(sorted(tokenizer.vocab.items()))
    printable = all_to_printable(ordered.values())
    table: dict[str, int] = {}
    for id, text in zip(ordered, printable, strict=True):
        text = names.get(id, text)
        if text in table:
            raise ValueError(
                f"the special token {text!r} reads like the printable form of another token "
                f"(ids {table[text]} and {id}); rename it."
            )
        table[text] = id
    return table


def merge_lines(tokenizer: "BPETokenizer") -> list[str]:
    """The merges as printable lines, in order of rank."""
    lefts = all_to_printable(left for left, _ in tokenizer.merges)
    rights = all_to_printable(right for _, right in tokenizer.merges)
    return [f"{left} {right}" for left, right in zip(lefts, rights, strict=True)]


def load_gpt2(
    vocab_path: Path,
    merges_path: Path,
    special_tokens: Iterable[str] | None = None,
    *,
    pattern: str = "gpt2",
) -> "BPETokenizer":
    """Load a tokenizer from vocab.json and merges.txt (in GPT-2's repository: encoder.json and vocab.bpe).

    Args:
        vocab_path: Printable token -> id.
        merges_path: One merge a line; a first line that starts with "#version" is skipped.
        special_tokens: By default every token that is no byte and that no merge makes or takes.
        pattern: The files do not name their split pattern; "gpt2" is GPT-2's.

    Raises:
        ValueError: A file is missing or damaged, or they do not belong together; the message names it.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer

    vocab_path, merges_path = Path(vocab_path), Path(merges_path)
    table = read_json(vocab_path)
    lines = read_text(merges_path).replace("\r\n", "\n").split("\n")
    with saved_problem(merges_path):
        pairs = split_merge_lines([line for line in lines[lines[0].startswith("#version") :] if line])
        merges = merges_from_printable(pairs)
    with saved_problem(vocab_path):
        check_ids(table.values(), "its tokens")
        made = {*byte_characters().values(), *chain.from_iterable(pairs)}
        made.update(left + right for left, right in pairs)
        names = (
            [text for text in table if text not in made] if special_tokens is None else list(special_tokens)
        )
        return BPETokenizer(vocab_from_table(table, names), merges, names, pattern=pattern)


def vocab_from_table(table: dict[str, int], names: Iterable[str]) -> dict[int, bytes]:
    """Id -> bytes; the tokens called `names` stand in the table as themselves, the others printable.

    Raises:
        ValueError: A character stands for no byte.
    """
    special = set(names)
    ordinary = [text for text in table if text not in special]
    vocab = dict(zip((table[text] for text in ordinary), all_from_printable(ordinary), strict=True))
    return vocab | {table[name]: special_bytes(name) for name in special & table.keys()}
