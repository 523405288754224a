"""Our own file: one JSON table that holds everything that defines a tokenizer, of any type.

    {"format": "scratchlm.tokenizer", "version": 1, "type": "bpe", "pattern": "gpt2",
     "special_tokens": {"<|endoftext|>": 0}, "vocab": {"!": 34, ...}, "merges": ["t h", ...]}

Tokens are shown as printable characters, special tokens as themselves. `"ignore_merges": true` and
`"normalization": "NFC"` are there when they are not the default, so that fingerprints of older files hold.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm import runtime
from scratchlm.tokenizer.formats.printable import (
    all_from_printable,
    all_to_printable,
    merges_from_printable,
    split_merge_lines,
)
from scratchlm.tokenizer.formats.reading import check_ids, parse_json, read_text, saved_problem, shown

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

FORMAT = "scratchlm.tokenizer"
VERSION = 1

_BPE_KEYS = {
    "format", "version", "type", "pattern", "special_tokens", "vocab", "merges", "ignore_merges",
    "normalization",
}  # fmt: skip


def write_saved(path: Path, content: dict[str, Any]) -> None:
    """Write a tokenizer's content as JSON, atomically."""
    whole = {"format": FORMAT, "version": VERSION, **content}
    runtime.write_text_atomically(path, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


def read_saved(path: Path, *, type: str | None = None) -> dict[str, Any]:
    """Read what `write_saved` wrote and check its outline.

    Args:
        path: The file.
        type: The type of tokenizer that it must hold; any by default.

    Raises:
        ValueError: The file is missing, is no such file, or holds another type; the message names it.
    """
    return check_saved(path, parse_json(path, read_text(path)), type=type)


def check_saved(path: Path, content: dict[str, Any], *, type: str | None = None) -> dict[str, Any]:
    """Return the table of a file of ours after a look at its outline.

    Raises:
        ValueError: As `read_saved`.
    """
    with saved_problem(path):
        if content.get("format") != FORMAT or not isinstance(content.get("type"), str):
            raise ValueError(f'it has no "format": "{FORMAT}"')
        if content.get("version") != VERSION or isinstance(content["version"], bool):
            raise ValueError(f"version {shown(content.get('version'))} is not readable here, only {VERSION}")
        if type is not None and content["type"] != type:
            raise ValueError(f"it holds a tokenizer of type {shown(content['type'])}, not {type!r}")
        if content["type"] == "bpe":
            _check_bpe(content)
    return content


def _check_bpe(content: dict[str, Any]) -> None:
    for key in ("vocab", "special_tokens"):
        if not isinstance(content.get(key), dict):
            raise ValueError(f"{key!r} must be a table of token -> id")
        check_ids(content[key].values(), key)
    merges = content.get("merges")
    if not isinstance(merges, list) or not all(isinstance(line, str) for line in merges):
        raise ValueError("'merges' must be a list of texts such as \"t he\"")
    if not isinstance(content.get("pattern"), str):
        raise ValueError("'pattern' must be the name of a split pattern")
    if not isinstance(content.get("ignore_merges", False), bool):
        raise ValueError("'ignore_merges' must be true or false")
    if unknown := sorted(content.keys() - _BPE_KEYS):
        raise ValueError(f"unknown key {shown(unknown[0])}; known: {', '.join(sorted(_BPE_KEYS))}")


def bpe_content(tokenizer: "BPETokenizer") -> dict[str, Any]:
    """Everything that defines a BPE tokenizer, as `write_saved` takes it."""
    special_ids = set(tokenizer.special_tokens.values())
    ordinary = {id: token for id, token in sorted(tokenizer.vocab.items()) if id not in special_ids}
    lefts = all_to_printable(left for left, _ in tokenizer.merges)
    rights = all_to_printable(right for _, right in tokenizer.merges)
    content = {
        "type": "bpe",
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "vocab": dict(zip(all_to_printable(ordinary.values()), ordinary, strict=True)),
        "merges": [f"{left} {right}" for left, right in zip(lefts, rights, strict=True)],
    }
    if tokenizer.ignore_merges:
        content["ignore_merges"] = True
    if tokenizer.normalization is not None:
        content["normalization"] = tokenizer.normalization
    return content


def load_bpe(path: Path) -> "BPETokenizer":
    """Load a BPE tokenizer that `BPETokenizer.save` wrote.

    Raises:
        ValueError: The file is missing, damaged, or holds another type; the message names it.
    """
    return bpe_from_content(path, read_saved(path, type="bpe"))


def bpe_from_content(path: Path, content: dict[str, Any]) -> "BPETokenizer":
    """The tokenizer that `bpe_content` described; `path` is for the message.

    Raises:
        ValueError: The content contradicts itself; the message names the file.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer

    with saved_problem(path):
        tokens = all_from_printable(list(content["vocab"]))
        vocab = dict(zip(content["vocab"].values(), tokens, strict=True))
        for name, id in content["special_tokens"].items():
            if id in vocab:
                raise ValueError(f"the special token {shown(name)} has the id {id} of {shown(vocab[id])}")
            vocab[id] = special_bytes(name)
        return BPETokenizer(
            vocab,
            merges_from_printable(split_merge_lines(content["merges"])),
            list(content["special_tokens"]),
            pattern=content["pattern"],
            ignore_merges=content.get("ignore_merges", False),
            normalization=content.get("normalization"),
        )


def special_bytes(name: str) -> bytes:
    """UTF-8 of a special token's text.

    Raises:
        ValueError: It is empty, or holds a lone surrogate.
    """
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b""
    if not encoded:
        raise ValueError(f"special token {shown(name)}: must be valid text of at least one character")
    return encoded
