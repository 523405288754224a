r"""Hugging Face's tokenizer.json and tokenizer_config.json <-> BPETokenizer.

    {"added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": true, ...}],
     "normalizer": null, "pre_tokenizer": {...}, "post_processor": {...}, "decoder": {"type": "ByteLevel"},
     "model": {"type": "BPE", "vocab": {"!": 34, ...}, "merges": [["t", "h"], ...], ...}}

`tokenizers` loads the first file, `transformers.AutoTokenizer` a folder with both. GPT-2's split pattern is
built into its ByteLevel step; every other one is a Split by regular expression before a ByteLevel step that
splits no more. Reading refuses what we would do otherwise, and names the field: other models, other
patterns, other normalizers, tokens that swallow the blanks beside them. Settings that only add to an encoded
text (a template with a first token, truncation, padding) are not part of encoding here: a warning says so.

Added tokens all become special tokens: text from a user never turns into one of them unnoticed. Hugging Face
always finds them, as `allowed_special="all"` does.

Source: https://github.com/huggingface/tokenizers, tokenizers/src/models/bpe/serialization.rs and
tokenizers/src/tokenizer/serialization.rs.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm import runtime
from scratchlm.tokenizer.formats.gpt2 import vocab_from_table, vocab_table
from scratchlm.tokenizer.formats.printable import all_to_printable, merges_from_printable, split_merge_lines
from scratchlm.tokenizer.formats.reading import (
    check_ids,
    is_id,
    parse_json,
    read_json,
    read_text,
    saved_problem,
    shown,
)
from scratchlm.tokenizer.formats.split_patterns import NEWLINE_THEN_BLANK, known_pattern

if TYPE_CHECKING:
    from scratchlm.tokenizer.bpe import BPETokenizer

log = logging.getLogger("scratchlm")

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"

NO_LIMIT = int(1e30)
"""What `transformers` writes for a tokenizer that knows no longest text."""

_ADDING_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""They put special tokens before and behind an encoded text."""


# writing


def save_huggingface(
    tokenizer: "BPETokenizer",
    folder: Path,
    *,
    roles: dict[str, str] | None = None,
    model_max_length: int | None = None,
    chat_template: str | None = None,
) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        tokenizer: Any BPE tokenizer.
        folder: Made if it is missing.
        roles: "bos_token", "eos_token", "pad_token" or "unk_token" -> a special token. By default
            <|endoftext|>, if there is one, is the eos_token.
        model_max_length: Longest text in tokens that the model takes.
        chat_template: Jinja template of a conversation.

    Raises:
        ValueError: A role is not known or its token is no special token; or a special token reads like the
            printable form of another token.
    """
    whole = json.dumps(tokenizer_table(tokenizer), ensure_ascii=False, indent=1)
    config = json.dumps(
        _config_table(tokenizer, roles, model_max_length, chat_template), ensure_ascii=False, indent=2
    )
    runtime.write_text_atomically(Path(folder) / TOKENIZER_FILE, whole + "\n")
    runtime.write_text_atomically(Path(folder) / CONFIG_FILE, config + "\n")


def tokenizer_table(tokenizer: "BPETokenizer") -> dict[str, Any]:
    """The content of tokenizer.json.

    Raises:
        ValueError: A special token reads like the printable form of another token.
    """
    lefts = all_to_printable(left for left, _ in tokenizer.merges)
    rights = all_to_printable(right for _, right in tokenizer.merges)
    specials = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": name, **_flags()} for name, id in specials],
        "normalizer": None if tokenizer.normalization is None else {"type": tokenizer.normalization},
        "pre_tokenizer": _pre_tokenizer(tokenizer.pattern),
        "post_processor": _byte_level(trim_offsets=False, use_regex=False),
        "decoder": _byte_level(trim_offsets=True, use_regex=False),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": vocab_table(tokenizer),
            "merges": [list(pair) for pair in zip(lefts, rights, strict=True)],
        },
    }


def _flags() -> dict[str, bool]:
    return {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _byte_level(*, trim_offsets: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    from scratchlm.tokenizer.pretokenize import PATTERNS

    if pattern == "gpt2":
        return _byte_level(trim_offsets=True, use_regex=True)
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[pattern]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(trim_offsets=True, use_regex=False)]}


def _config_table(
    tokenizer: "BPETokenizer",
    roles: dict[str, str] | None,
    model_max_length: int | None,
    chat_template: str | None,
) -> dict[str, Any]:
    from scratchlm.tokenizer.base import END_OF_TEXT, check_name

    if roles is None:
        roles = {"eos_token": END_OF_TEXT} if END_OF_TEXT in tokenizer.special_tokens else {}
    for role, name in roles.items():
        check_name(role, ("bos_token", "eos_token", "pad_token", "unk_token"), "role of a special token")
        check_name(name, tokenizer.special_tokens, role)
    table = {
        "added_tokens_decoder": {
            str(id): {"content": name, **_flags()} for name, id in tokenizer.special_tokens.items()
        },
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": NO_LIMIT if model_max_length is None else model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
    }
    return table if chat_template is None else {**table, "chat_template": chat_template}


# reading


def load_huggingface(path: Path) -> "BPETokenizer":
    """Load a tokenizer from a tokenizer.json, or a folder with one and perhaps a tokenizer_config.json.

    Raises:
        ValueError: A file is missing or damaged, or says something that we do not do; the message names the
            file and the field.
    """
    path = Path(path)
    file, config = (path / TOKENIZER_FILE, path / CONFIG_FILE) if path.is_dir() else (path, None)
    specials = _config_specials(config) if config is not None and config.exists() else {}
    return tokenizer_from_table(file, parse_json(file, read_text(file)), specials)


def tokenizer_from_table(
    path: Path, content: dict[str, Any], more_specials: dict[str, int] | None = None
) -> "BPETokenizer":
    """The tokenizer that the content of a tokenizer.json describes.

    Args:
        path: For the messages.
        content: The file's table.
        more_specials: Special token -> id from tokenizer_config.json.

    Raises:
        ValueError: As `load_huggingface`.
    """
    from scratchlm.tokenizer.bpe import BPETokenizer

    with saved_problem(path):
        model = _model(content)
        normalization = _normalization(content.get("normalizer"))
        specials = _merge_specials(_added_tokens(content, normalization), more_specials or {}, model["vocab"])
        table = {**model["vocab"], **specials}
        check_ids(table.values(), "model.vocab with added_tokens")
        vocab = vocab_from_table(table, specials)
        pattern = _pattern(content.get("pre_tokenizer"), vocab)
        _check_decoder(content.get("decoder"))
        _warn_about_additions(path, content)
        return BPETokenizer(
            vocab,
            _merges(model["merges"]),
            list(specials),
            pattern=pattern,
            ignore_merges=bool(model.get("ignore_merges")),
            normalization=normalization,
        )


def _model(content: dict[str, Any]) -> dict[str, Any]:
    model = _table(content.get("model"), "model")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"model.type={shown(model['type'])}: only BPE can be read")
    _table(model.get("vocab"), "model.vocab")
    check_ids(model["vocab"].values(), "model.vocab")
    if not isinstance(model.get("merges"), list):
        raise ValueError("model.merges must be a list of pairs")
    if not isinstance(model.get("ignore_merges", False), bool | None):
        raise ValueError("model.ignore_merges must be true or false")
    # A token for unknown characters is never needed: every byte is in the vocabulary, or we refuse it.
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(field):
            raise ValueError(
                f"model.{field}={shown(model[field])}: only byte-level BPE without it can be read"
            )
    return model


def _merges(merges: list[Any]) -> list[tuple[bytes, bytes]]:
    if all(type(merge) is str for merge in merges):
        return merges_from_printable(split_merge_lines(merges))
    for merge in merges:
        if type(merge) is not list or len(merge) != 2 or not (type(merge[0]) is type(merge[1]) is str):
            raise ValueError(f'model.merges: {shown(merge)} is no pair of tokens such as ["t", "h"]')
    return merges_from_printable(merges)


def _normalization(normalizer: Any) -> str | None:
    steps = _steps(normalizer, "normalizer", "normalizers")
    if not steps:
        return None
    if [step.get("type") for step in steps] == ["NFC"]:
        return "NFC"
    raise ValueError(f"normalizer={shown(normalizer)}: only null and NFC can be read")


def _added_tokens(content: dict[str, Any], normalization: str | None) -> dict[str, int]:
    added = content.get("added_tokens")
    if not isinstance(added, list | None):
        raise ValueError("added_tokens must be a list")
    found: dict[str, int] = {}
    for number, token in enumerate(added or []):
        name = _table(token, f"added_tokens[{number}]").get("content")
        if not isinstance(name, str) or not is_id(token.get("id")):
            raise ValueError(f"added_tokens[{number}]={shown(token)} has no content (a text) and id")
        _check_flags(token, f"added_tokens[{number}]", normalization)
        if found.setdefault(name, token["id"]) != token["id"]:
            raise ValueError(f"added_tokens: {shown(name)} has two ids, {found[name]} and {token['id']}")
    return found


def _check_flags(token: dict[str, Any], place: str, normalization: str | None) -> None:
    from scratchlm.tokenizer.normalization import normalize

    for flag in ("single_word", "lstrip", "rstrip"):
        if token.get(flag):
            raise ValueError(
                f"{place}.{flag}=true ({shown(token['content'])}): tokens that look at the text beside them "
                "cannot be read"
            )
    if token.get("normalized") and normalize(token["content"], normalization) != token["content"]:
        raise ValueError(f"{place}.normalized=true: {shown(token['content'])} changes when normalized")


def _config_specials(path: Path) -> dict[str, int]:
    """Special token -> id of a tokenizer_config.json."""
    content = read_json(path)
    with saved_problem(path):
        tokens = _table(content.get("added_tokens_decoder") or {}, "added_tokens_decoder")
        listed = []
        for id, token in tokens.items():
            if not (id.isascii() and id.isdigit() and len(id) < 9):
                raise ValueError(f"added_tokens_decoder: {shown(id)} is no id")
            listed.append({**_table(token, f"added_tokens_decoder[{id}]"), "id": int(id)})
        return _added_tokens({"added_tokens": listed}, None)


def _merge_specials(
    added: dict[str, int], configured: dict[str, int], vocab: dict[str, int]
) -> dict[str, int]:
    """All special tokens; an id that is said twice must be the same."""
    for name, id in [*configured.items(), *added.items()]:
        for where, others in (("model.vocab", vocab), ("added_tokens", added)):
            if others.get(name, id) != id:
                raise ValueError(f"{shown(name)} has the id {id}, but in {where} {others[name]}")
    return {**added, **configured}


def _pattern(pre_tokenizer: Any, vocab: dict[int, bytes]) -> str:
    """The split pattern of a ByteLevel step alone, or of a Split before it."""
    from scratchlm.tokenizer.pretokenize import PATTERNS

    steps = _steps(pre_tokenizer, "pre_tokenizer", "pretokenizers")
    kinds = [step.get("type") for step in steps]
    advice = (
        f"only ByteLevel, alone or after a Split by one of our patterns ({', '.join(PATTERNS)}), can be read"
    )
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise ValueError(f"pre_tokenizer={shown(pre_tokenizer)}: {advice}")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("pre_tokenizer.add_prefix_space=true: a blank before every text cannot be read")
    splits_again = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and splits_again:
        return "gpt2"
    expression = steps[0].get("pattern")
    regular = expression.get("Regex") if isinstance(expression, dict) else None
    known = known_pattern(regular) if isinstance(regular, str) else None
    behaviour = steps[0].get("behavior"), bool(steps[0].get("invert"))
    # "Removed" inverted keeps the matches and drops what lies between them, of which there may be nothing.
    alike = behaviour == ("Isolated", False) or (behaviour == ("Removed", True) and known and known.covers)
    if known is None or not alike or splits_again:
        raise ValueError(f"pre_tokenizer={shown(steps)}: {advice}")
    if known.at_end and any(NEWLINE_THEN_BLANK.search(token) for token in vocab.values()):
        raise ValueError(
            r"pre_tokenizer: with `\s++$` a newline and the blanks after it are one piece at the end of a "
            "text, and this vocabulary has tokens of both; that cannot be read"
        )
    return known.name


def _steps(value: Any, field: str, list_name: str) -> list[dict[str, Any]]:
    """The steps of a Sequence, or the one step; none for null."""
    if value is None:
        return []
    step = _table(value, field)
    if step.get("type") != "Sequence":
        return [step]
    inner = step.get(list_name)
    if not isinstance(inner, list):
        raise ValueError(f"{field}.{list_name} must be a list")
    return [_table(one, f"{field}.{list_name}") for one in inner]


def _check_decoder(decoder: Any) -> None:
    kinds = [step.get("type") for step in _steps(decoder, "decoder", "decoders")]
    if kinds not in ([], ["ByteLevel"]):
        raise ValueError(f"decoder={shown(decoder)}: only ByteLevel can be read")


def _warn_about_additions(path: Path, content: dict[str, Any]) -> None:
    processors = _steps(content.get("post_processor"), "post_processor", "processors")
    kinds = [step.get("type") for step in processors]
    if any(kind not in ("ByteLevel", *_ADDING_PROCESSORS) for kind in kinds):
        raise ValueError(f"post_processor={shown(processors)}: not known")
    ignored = [kind for kind in kinds if kind != "ByteLevel"]
    ignored += [field for field in ("truncation", "padding") if content.get(field)]
    if ignored:
        log.warning("%s: %s: not part of encoding here, left out", path, ", ".join(ignored))


def _table(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{field}={shown(value)}: expected a table")
    return value
