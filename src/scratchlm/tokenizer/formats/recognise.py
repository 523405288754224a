"""A file or folder -> the tokenizer in it, whichever of the formats it is.

Content decides, not the name: JSON with our "format" is our file, JSON with a "model" a tokenizer.json, a
table of token -> number a vocab.json, whose merges lie beside it; lines of base64 and a number are ranks. In
a folder our file is taken first, then tokenizer.json, then the two files of GPT-2, then one file of ranks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm.tokenizer.formats.gpt2 import FILE_PAIRS, load_gpt2
from scratchlm.tokenizer.formats.huggingface import TOKENIZER_FILE, load_huggingface
from scratchlm.tokenizer.formats.reading import decode, is_id, parse_json, read_bytes
from scratchlm.tokenizer.formats.saved import bpe_from_content, check_saved
from scratchlm.tokenizer.formats.tiktoken_ranks import SUFFIX, load_tiktoken

if TYPE_CHECKING:
    from scratchlm.tokenizer.base import Tokenizer

_KNOWN = (
    "our own JSON, tokenizer.json, vocab.json with merges.txt (or encoder.json with vocab.bpe), or a file of "
    f"ranks ({SUFFIX})"
)


def read_any(
    path: Path, *, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> "Tokenizer":
    """Load a tokenizer from a file or folder of any known format.

    Args:
        path: The file or the folder.
        pattern: Name of the split pattern: needed for ranks, "gpt2" by default for vocab.json + merges.txt.
            Other files name their own.
        special_tokens: Special token -> id, for ranks, which do not hold them.

    Raises:
        ValueError: It is none of them, or damaged, or names its pattern and `pattern` is another; the message
            names the file.
    """
    from scratchlm.tokenizer import FILE_NAME

    path = Path(path)
    if path.is_dir():
        names = [
            FILE_NAME,
            TOKENIZER_FILE,
            *(vocab for vocab, merges in FILE_PAIRS if (path / merges).is_file()),
        ]
        found = [path / name for name in names if (path / name).is_file()] or sorted(path.glob(f"*{SUFFIX}"))
        if not found or (found[0].suffix == SUFFIX and len(found) > 1):
            problem = "several files of ranks; name one" if found else f"no tokenizer; expected {_KNOWN}"
            raise ValueError(f"{path}: a folder with {problem}.")
        path = found[0]
    tokenizer = _read_file(path, pattern, special_tokens)
    if pattern is not None and getattr(tokenizer, "pattern", pattern) != pattern:
        raise ValueError(f"{path}: its split pattern is {tokenizer.pattern!r}, not {pattern!r}.")
    if special_tokens is not None and dict(special_tokens) != tokenizer.special_tokens:
        raise ValueError(f"{path}: its special tokens are {tokenizer.special_tokens}, not {special_tokens}.")
    return tokenizer


def _read_file(path: Path, pattern: str | None, special_tokens: Mapping[str, int] | None) -> "Tokenizer":
    data = read_bytes(path)
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data.startswith(b"GGUF"):
        raise ValueError(f"{path}: a GGUF file; its tokenizer is read with the model, not from here.")
    if start.startswith((b"{", b"[")):
        return _read_table(path, parse_json(path, decode(path, data)), pattern)
    for vocab, merges in FILE_PAIRS:
        if path.name == merges:
            return load_gpt2(path.with_name(vocab), path, pattern=pattern or "gpt2")
    if path.suffix == SUFFIX or _looks_like_ranks(start):
        return load_tiktoken(path, pattern=pattern, special_tokens=special_tokens)
    raise ValueError(f"{path}: no tokenizer's file; expected {_KNOWN}.")


def _read_table(path: Path, content: dict[str, Any], pattern: str | None) -> "Tokenizer":
    if "format" in content:
        if check_saved(path, content)["type"] == "bpe":
            return bpe_from_content(path, content)
        from scratchlm.tokenizer import load_tokenizer

        return load_tokenizer(path)
    if "model" in content and not is_id(content["model"]):
        return load_huggingface(path if path.name != TOKENIZER_FILE else path.parent)
    if content and all(map(is_id, content.values())):
        for vocab, merges in FILE_PAIRS:
            if path.with_name(merges).is_file() and (path.name == vocab or path.name not in dict(FILE_PAIRS)):
                return load_gpt2(path, path.with_name(merges), pattern=pattern or "gpt2")
        raise ValueError(f"{path}: a vocabulary, but no merges.txt or vocab.bpe beside it.")
    raise ValueError(f"{path}: JSON, but no tokenizer's; expected {_KNOWN}.")


def _looks_like_ranks(start: bytes) -> bool:
    encoded, _, digits = start.partition(b"\n")[0].rstrip(b"\r").partition(b" ")
    return bool(encoded) and digits.isdigit()
