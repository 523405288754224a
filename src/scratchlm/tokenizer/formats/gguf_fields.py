"""The tokenizer's fields of a GGUF file, as a table of key -> value <-> BPETokenizer.

    tokenizer.ggml.model       "gpt2", which means byte-level BPE
    tokenizer.ggml.pre         name of the split pattern; llama.cpp has the expressions built in
    tokenizer.ggml.tokens      printable tokens in order of id, special tokens as themselves
    tokenizer.ggml.token_type  1 ordinary, 3 special, 5 an id that stands for nothing
    tokenizer.ggml.merges      "t h" in order of rank

Only the names of patterns are in the file, so we write those that llama.cpp splits as we do. Its version of
o200k knows the case of ASCII letters only and takes no marks into words, and it never normalizes text: both
are refused unless the caller wants the nearest thing. "llama-bpe" makes each piece that is a token that token
(our ignore_merges); "dbrx" is the same pattern without. add_bos_token is written always, because "llama-bpe"
alone would put one before every text.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the names and what comes with them,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scratchlm.tokenizer.formats.gpt2 import merge_lines, vocab_from_table, vocab_table
from scratchlm.tokenizer.formats.printable import merges_from_printable, split_merge_lines
from scratchlm.tokenizer.formats.reading import MAX_VOCAB_SIZE, shown

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

log = logging.getLogger("scratchlm")

PREFIX = "tokenizer.ggml."

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of tokens. 6 is a byte of SentencePiece's vocabularies, which we do not read."""

_PATTERN_OF = {
    "gpt-2": "gpt2", "phi-2": "gpt2", "jina-es": "gpt2", "jina-de": "gpt2", "jina-v2-es": "gpt2",
    "jina-v2-de": "gpt2", "mpt": "gpt2", "olmo": "gpt2", "jais": "gpt2", "exaone4": "gpt2",
    "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3", "falcon3": "llama3", "pixtral": "llama3",
    "dbrx": "cl100k", "smaug-bpe": "cl100k", "glm4": "cl100k", "chatglm-bpe": "cl100k",
    "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "megrez": "qwen2",
    "hunyuan": "qwen2", "gpt-4o": "o200k", "llama4": "o200k",
}  # fmt: skip
"""tokenizer.ggml.pre -> our pattern."""

_ROLES = ("bos", "eos", "eot", "padding")


def gguf_fields(
    tokenizer: "BPETokenizer",
    *,
    roles: Mapping[str, str] | None = None,
    num_tokens: int | None = None,
    approximate: bool = False,
) -> dict[str, Any]:
    """The fields that describe a tokenizer.

    Args:
        tokenizer: Any BPE tokenizer.
        roles: "bos", "eos", "eot" or "padding" -> a special token. By default <|endoftext|>, if there is one,
            is bos and eos: llama.cpp takes id 11 where it is told nothing.
        num_tokens: Rows of the model's embedding, at least the vocabulary's size; more are marked unused.
        approximate: Write o200k and normalization too, though llama.cpp's ids differ for some texts.

    Raises:
        ValueError: llama.cpp would split or normalize otherwise, or a role is wrong.
    """
    from scratchlm.tokenizer.base import END_OF_TEXT, check_name

    if roles is None:
        roles = dict.fromkeys(("bos", "eos"), END_OF_TEXT) if END_OF_TEXT in tokenizer.special_tokens else {}
    for role, name in roles.items():
        check_name(role, _ROLES, "role of a special token")
        check_name(name, tokenizer.special_tokens, role)
    tokens, types = _token_list(tokenizer, num_tokens)
    fields = {
        "model": "gpt2",
        "pre": _pre(tokenizer, approximate),
        "tokens": tokens,
        "token_type": types,
        "merges": merge_lines(tokenizer),
        **{f"{role}_token_id": tokenizer.special_tokens[name] for role, name in roles.items()},
        "add_bos_token": False,
        "add_eos_token": False,
    }
    return {PREFIX + key: value for key, value in fields.items()}


def _pre(tokenizer: "BPETokenizer", approximate: bool) -> str:
    pattern = {"llama3": "cl100k"}.get(tokenizer.pattern, tokenizer.pattern)
    if tokenizer.normalization is not None and not approximate:
        raise ValueError(
            f"GGUF: llama.cpp does not normalize text, this tokenizer does ({tokenizer.normalization}); "
            "approximate=True writes it all the same."
        )
    if pattern == "o200k" and not approximate:
        raise ValueError(
            "GGUF: llama.cpp's version of o200k splits letters with marks and accented capitals otherwise; "
            "approximate=True writes it all the same."
        )
    exact = {
        ("gpt2", False): "gpt-2", ("cl100k", False): "dbrx", ("cl100k", True): "llama-bpe",
        ("qwen2", False): "qwen2", ("o200k", False): "gpt-4o",
    }  # fmt: skip
    key = (pattern, tokenizer.ignore_merges)
    if key not in exact and not tokenizer.unreachable():
        key = (pattern, False)  # every token is made by merges, so ignoring them changes nothing
    if key not in exact:
        known = ", ".join(sorted({pattern for pattern, _ in exact}))
        raise ValueError(
            f"GGUF: llama.cpp cannot split by pattern {tokenizer.pattern!r} with "
            f"ignore_merges={tokenizer.ignore_merges}; it knows {known} (ignore_merges with cl100k only)."
        )
    return exact[key]


def _token_list(tokenizer: "BPETokenizer", num_tokens: int | None) -> tuple[list[str], list[int]]:
    table = vocab_table(tokenizer)
    size = tokenizer.vocab_size if num_tokens is None else num_tokens
    if not tokenizer.vocab_size <= size <= MAX_VOCAB_SIZE:
        raise ValueError(
            f"GGUF: num_tokens={size} must be from {tokenizer.vocab_size}, the vocabulary's size, to "
            f"{MAX_VOCAB_SIZE}."
        )
    special_ids = set(tokenizer.special_tokens.values())
    tokens = [f"[UNUSED_{id}]" for id in range(size)]
    types = [UNUSED] * size
    for text, id in table.items():
        tokens[id] = text
        types[id] = CONTROL if id in special_ids else NORMAL
    if len(set(tokens)) < size:  # llama.cpp stops the process when two are equal
        raise ValueError("GGUF: a token of the vocabulary reads like [UNUSED_...], which fills gaps.")
    return tokens, types


def tokenizer_from_gguf_fields(fields: Mapping[str, Any]) -> "BPETokenizer":
    """The tokenizer that a GGUF file's fields describe.

    Args:
        fields: Key -> value as in the file; keys of other things are left alone.

    Raises:
        ValueError: A field is missing, contradictory, or says something that we do not do.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer

    model, pre = (fields.get(PREFIX + key) for key in ("model", "pre"))
    if model != "gpt2":
        raise ValueError(f"{PREFIX}model={shown(model)}: only 'gpt2', byte-level BPE, can be read.")
    if not isinstance(pre, str) or pre not in _PATTERN_OF:
        raise ValueError(
            f"{PREFIX}pre={shown(pre)}: none of our patterns; known: {', '.join(sorted(_PATTERN_OF))}."
        )
    tokens, merges = _texts(fields, "tokens"), _texts(fields, "merges")
    types = _types(fields.get(PREFIX + "token_type", [NORMAL] * len(tokens)))
    if len(types) != len(tokens) or set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise ValueError(
            f"{PREFIX}token_type: expected {len(tokens)} numbers, as many as tokens, each one of "
            f"{NORMAL}, {CONTROL}, {USER_DEFINED}, {UNUSED}."
        )
    table = {text: id for id, (text, type) in enumerate(zip(tokens, types, strict=True)) if type != UNUSED}
    if len(table) < len(types) - types.count(UNUSED):
        raise ValueError(f"{PREFIX}tokens: a token stands there twice.")
    names = [text for text, id in table.items() if types[id] != NORMAL]
    for key in ("add_bos_token", "add_eos_token"):
        if fields.get(PREFIX + key):
            log.warning("%s%s: not part of encoding here, left out", PREFIX, key)
    return BPETokenizer(
        vocab_from_table(table, names),
        merges_from_printable(split_merge_lines(merges)),
        names,
        pattern=_PATTERN_OF[pre],
        ignore_merges=_PATTERN_OF[pre] == "llama3",
    )


def _types(value: Any) -> list[int]:
    """Types of tokens as whole numbers; an empty list if they are none."""
    types = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(types, Sequence) or not all(isinstance(type, int) for type in types):
        return []
    return list(types)


def _texts(fields: Mapping[str, Any], key: str) -> Sequence[str]:
    value = fields.get(PREFIX + key)
    texts = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None
    if texts is None or not all(isinstance(text, str) for text in texts) or len(texts) > MAX_VOCAB_SIZE:
        raise ValueError(f"{PREFIX}{key} must be a list of texts; it is {shown(value)}.")
    return texts
