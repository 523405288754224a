r"""A folder of Hugging Face comes in, a run folder comes out: settings, tokenizer, weights at step 0.

    config.json                 which class, which sizes                           hf_config
    tokenizer.json, ...         the tokenizer                                      tokenizer.formats
    model.safetensors           or the files that model.safetensors.index.json names

Nothing in the folder is believed: names of files stay inside of it, only safetensors are read (a .bin file
is a pickle, which can run code), names and shapes are compared with what the settings need before a number is
read, and what is left over is refused. The run folder goes on with `train --resume`, which then trains the
weights on, or answers to `generate` at once.

Source: https://huggingface.co/docs/safetensors; the index,
https://huggingface.co/docs/transformers/big_models.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scratchlm.checkpoint import save_checkpoint
from scratchlm.config import load
from scratchlm.interop.hf_config import settings_from
from scratchlm.interop.names import Source, sources
from scratchlm.model.config import ModelSettings
from scratchlm.model.transformer import TransformerLM
from scratchlm.runtime import log, random_state, set_seed
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.formats import read_json
from scratchlm.tokenizer.formats.reading import shown
from scratchlm.train import recipes
from scratchlm.train.changes import leaves
from scratchlm.train.config import RunConfig
from scratchlm.train.folder import RunFolder

INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"

LEAST_BATCH_TOKENS = 4096
"""Tokens of a step, in rows of the whole context: those of the recipe "quick"."""

FINE_TUNING_RATE = 1e-4
"""A thirtieth of the recipe's rate: the weights are not to be forgotten. Settings over it come last."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")

_IGNORED = re.compile(r"(.*\.)?(attn\.(masked_)?bias|rotary_emb\.inv_freq)")
"""Tables that are computed; older programs saved them."""


class Imported(NamedTuple):
    """What was read."""

    kind: str
    settings: ModelSettings
    tokenizer: BPETokenizer
    tensors: dict[str, Float[Tensor, "..."]]
    """The weights by our names, in float32."""


def import_hf(
    folder: Path, run: Path, texts: Iterable[Path] = (), overrides: Iterable[str] = ()
) -> tuple[Imported, RunConfig]:
    """Make a run folder of a folder of Hugging Face.

    Args:
        folder: Holds config.json, safetensors and a tokenizer.
        run: The run folder; must not exist, or be empty.
        texts: What `train --resume` shall train on.
        overrides: `key=value` words over the settings of the recipe "quick".

    Raises:
        ValueError: Something is missing, damaged, or not what we compute; the message names file and field.
    """
    if run.is_file() or (run.is_dir() and any(run.iterdir())):
        raise ValueError(f"{run}: is there already; choose another name for the run.")
    found = read_hf(folder)
    config = _run_config(found, run.name, list(texts), list(overrides))
    set_seed(config.seed)
    generators, numbers = random_state()
    state = {"imported_from": folder.name, "optimizer": {}, "random": numbers, "best_loss": None}
    state |= {"best_step": 0, "training_seconds": 0.0}
    groups = {"model": found.tensors, "optimizer": {}, "random": generators}
    target = RunFolder(run)
    run.mkdir(parents=True, exist_ok=True)
    found.tokenizer.save(target.tokenizer)
    save_checkpoint(target.checkpoints, 0, groups, state)
    # last: a folder with a config.json is a run
    target.config.write_text(config.to_json(), encoding="utf-8")
    return found, config


def read_hf(folder: Path) -> Imported:
    """Read settings, tokenizer and weights.

    Raises:
        ValueError: As `import_hf`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give one with config.json and model.safetensors.")
    path = folder / "config.json"
    kind, settings, rows = settings_from(read_json(path), path)
    tokenizer = BPETokenizer.from_file(folder)
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} ids, but the model {rows:,} embeddings; "
            "the two do not belong together."
        )
    if rows > tokenizer.vocab_size:
        log.warning(
            "%s: %s of %s embeddings belong to no token and are left out.",
            folder,
            f"{rows - tokenizer.vocab_size:,}",
            f"{rows:,}",
        )
    if END_OF_TEXT not in tokenizer.special_tokens:
        log.warning("%s: its tokenizer has no %s, which generating and training need.", folder, END_OF_TEXT)
    stored = _stored(folder)
    if settings.num_layers > len(stored):
        raise ValueError(f"{path}: num_hidden_layers={settings.num_layers:,}: more than the files hold.")
    return Imported(kind, settings, tokenizer, _weights(folder, kind, settings, rows, tokenizer, stored))


class _Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def _stored(folder: Path) -> dict[str, _Stored]:
    """Every tensor of the folder's safetensors files; nothing but their heads is read."""
    found: dict[str, _Stored] = {}
    for file, names in _files(folder).items():
        with _opened(file) as stream:
            inside = list(stream.keys())
            for name in inside if names is None else names:
                if name not in inside:
                    raise ValueError(f"{folder / INDEX}: {shown(name)} is not in {file.name}.")
                view = stream.get_slice(name)
                if view.get_dtype() not in ("F32", "F16", "BF16"):
                    raise ValueError(
                        f"{file}: {shown(name)} has the format {view.get_dtype()}; F32, F16 and "
                        "BF16 can be imported."
                    )
                found[name] = _Stored(file, tuple(view.get_shape()))
    return found


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files, and which tensors to take of each; None: all."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / ONE_FILE).is_file():
            raise ValueError(
                f"{folder}: holds neither {ONE_FILE} nor {INDEX}; files of other kinds (.bin, .pt) are not "
                "read, because they can run code. Save the model with safe_serialization=True."
            )
        return {folder / ONE_FILE: None}
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{index}: weight_map={shown(table)}: expected a table of tensor -> file.")
    found: dict[Path, list[str] | None] = {}
    for name, file in table.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise ValueError(f"{index}: {shown(file)} is no name of a safetensors file in this folder.")
        names = found.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    return found


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, its head checked by the library."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file, but the folder's index names it.")
    try:
        with safe_open(file, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error}); is it complete?") from None


def _weights(
    folder: Path,
    kind: str,
    settings: ModelSettings,
    rows: int,
    tokenizer: BPETokenizer,
    stored: Mapping[str, _Stored],
) -> dict[str, Float[Tensor, "..."]]:
    """The weights by our names, once all names and shapes are right."""
    with torch.device("meta"):
        model = TransformerLM(settings.with_vocabulary(rows))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    plan = dict(sources(kind, wanted, d_head=settings.d_head))
    before = "transformer." if kind == "gpt2" else "model."
    if not any(name.startswith(before) for name in stored):  # files of the part below the head
        plan = {name: one._replace(name=one.name.removeprefix(before)) for name, one in plan.items()}
    for one in plan.values():
        if one.name not in stored:
            raise ValueError(f"{folder}: the weight {one.name} is missing; is the download complete?")
        file, shape = stored[one.name]
        if shape != one.shape:
            raise ValueError(
                f"{file}: {one.name} has the shape {list(shape)}, config.json says {list(one.shape)}."
            )
    _check_rest(folder, settings, stored, plan)
    return _read(plan, stored, tokenizer.vocab_size)


def _check_rest(
    folder: Path, settings: ModelSettings, stored: Mapping[str, _Stored], plan: Mapping[str, Source]
) -> None:
    """What no weight of ours comes from must be known to mean nothing."""
    rest = set(stored) - {one.name for one in plan.values()}
    if settings.tied:
        rest.discard("lm_head.weight")  # older programs saved the table twice
    left = sorted(name for name in rest if not _IGNORED.fullmatch(name))
    if left:
        raise ValueError(
            f"{folder}: {len(left)} weights have no place in this model, such as {shown(left[0])}; the files "
            "belong to another class."
        )


def _read(
    plan: Mapping[str, Source], stored: Mapping[str, _Stored], vocab_size: int
) -> dict[str, Float[Tensor, "..."]]:
    found: dict[str, Tensor] = {}
    for name, one in plan.items():
        with _opened(stored[one.name].file) as stream:
            value = one.read(stream.get_tensor(one.name).float())
        if name in ("token_embeddings.weight", "lm_head.weight"):
            value = value[:vocab_size]
        found[name] = value.contiguous()
    return found


def _run_config(found: Imported, name: str, texts: list[Path], overrides: list[str]) -> RunConfig:
    """The settings of a run that goes on from the weights."""
    model = found.settings.model_dump(mode="json")
    rows = max(1, LEAST_BATCH_TOKENS // found.settings.context_length)
    fitted = {
        "name": name,
        "description": f"A {found.kind} model of another program.",
        "tokenizer.vocab_size": found.tokenizer.vocab_size,
        "optimizer.lr": FINE_TUNING_RATE,
        "train.batch_tokens": rows * found.settings.context_length,
        **{key: value for key, value in leaves({"model": model}) if value is not None},
    }
    words = [f"{key}={json.dumps(value)}" for key, value in fitted.items()]
    if texts:
        return recipes.for_text(texts, [*words, *overrides])
    return load(RunConfig, recipes.find("quick"), [*words, *overrides])
