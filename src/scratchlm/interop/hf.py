r"""A run comes in, a folder comes out that transformers' AutoModelForCausalLM and AutoTokenizer open.

    config.json, generation_config.json      the class and its sizes; which tokens end a text
    model.safetensors                        or several files and model.safetensors.index.json
    tokenizer.json, tokenizer_config.json    the same ids as here
    chat_template.jinja                      how a conversation becomes text
    README.md                                measured numbers and the recipe

The folder appears whole or not at all. Whether transformers can compute the model at all is said before
anything is read or written.

Source: https://huggingface.co/docs/transformers/main_classes/model; https://github.com/huggingface/safetensors.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from scratchlm import runtime
from scratchlm.interop.card import model_card
from scratchlm.interop.hf_config import config_table
from scratchlm.interop.names import to_huggingface
from scratchlm.interop.weights import check_tokenizer, is_tied, kind_of, whole_weights
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.base import check_name
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.tokenizer.formats import save_huggingface
from scratchlm.train.folder import LoadedRun

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SHARD_BYTES = 5 * 10**9
"""More goes into several files, as transformers does it."""

_USAGE = f"""
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
ids = tokenizer("{END_OF_TEXT}" + "Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))
```
"""


def export_hf(
    run: LoadedRun, folder: Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write the folder; return the content of its config.json.

    Args:
        run: The run, read back.
        folder: Must not exist, or be empty.
        dtype: Format of the numbers: float32, bfloat16 or float16.
        shard_bytes: The most bytes of numbers in one file.

    Raises:
        ValueError: The folder is in use, or transformers has no class that computes this model; the message
            names the settings.
    """
    kind, tokenizer = kind_of(run.model.config), check_tokenizer(run.tokenizer)
    check_name(dtype, DTYPES, "format of numbers")
    check_free(folder)
    config, end = run.model.config, tokenizer.special_tokens.get(END_OF_TEXT)
    table = config_table(kind, config, tied=is_tied(run.model), dtype=dtype, end=end)
    weights = to_huggingface(kind, whole_weights(run.model), d_head=config.d_head)
    with runtime.folder_atomically(folder) as temporary:
        _write_weights(temporary, {n: w.to(DTYPES[dtype]) for n, w in weights.items()}, shard_bytes)
        _write_tokenizer(temporary, tokenizer, config.context_length)
        _write_json(temporary / "config.json", table)
        _write_json(temporary / "generation_config.json", _generation(tokenizer, end))
        text = model_card(run, usage=_USAGE.replace("FOLDER", folder.name))
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return table


def check_free(path: Path) -> None:
    """See that nothing would be overwritten.

    Raises:
        ValueError: There is something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path}: is there already; choose another name, or remove it.")


def _write_weights(folder: Path, weights: Mapping[str, Float[Tensor, "..."]], shard_bytes: int) -> None:
    """One safetensors file, or several and the table of which tensor lies where."""
    shards = list(_shards(weights, shard_bytes))
    told = {"format": "pt"}  # transformers refuses files that do not say so
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata=told)
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata=told)
        where |= dict.fromkeys(shard, name)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(
    weights: Mapping[str, Float[Tensor, "..."]], shard_bytes: int
) -> Iterator[dict[str, Float[Tensor, "..."]]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, value in weights.items():
        num_bytes = value.numel() * value.element_size()
        if shard and size + num_bytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += num_bytes
    yield shard


def _write_tokenizer(folder: Path, tokenizer: BPETokenizer, context_length: int) -> None:
    template = ChatTemplate(tokenizer)
    has_end = END_OF_TEXT in tokenizer.special_tokens
    roles = dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT) if has_end else {}
    save_huggingface(
        tokenizer, folder, roles=roles, model_max_length=context_length, chat_template=template.jinja
    )
    (folder / "chat_template.jinja").write_text(template.jinja, encoding="utf-8")


def _generation(tokenizer: BPETokenizer, end: int | None) -> dict[str, Any]:
    stops = ChatTemplate(tokenizer).stop_ids
    return {"bos_token_id": end, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
