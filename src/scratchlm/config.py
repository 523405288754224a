"""Configuration: a TOML or JSON file and `key=value` words come in, a frozen typed model goes out.

    load(RunConfig, path, ["optimizer.lr=3e-4", "model.norm.name=layernorm"])

Three rules make a run's settings trustworthy. Keys are strict: a mistyped one is an error that names the
nearest known key. A part is chosen by `name` and carries its own settings, all of them once it is loaded
(see registry.py); choosing another `name` on the command line drops the settings of the part that it
replaces. The resolved configuration is saved with the run as JSON and loads back equal.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from scratchlm.registry import Family, UnknownNameError, unknown

Tree = dict[str, Any]
Loaded = TypeVar("Loaded", bound="Config")


class Config(BaseModel):
    """Base of every configuration section: frozen, strict about keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def to_json(self) -> str:
        """This configuration as indented JSON; `load` reads it back equal."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


class Part(Config):
    """A part chosen by name, with its own settings beside the name: {name = "lion", lr = 1e-4}."""

    model_config = ConfigDict(extra="allow")

    name: str
    """Which part of the family."""

    @property
    def settings(self) -> Tree:
        """Everything but the name: the keyword arguments for the part's constructor."""
        return dict(self.model_extra or {})


def part_of(family: Family[Any]) -> type[Part]:
    """A `Part` type whose name and settings are checked against `family` while the configuration loads.

    Annotate a field with it: `norm: part_of(NORMS) = Part(name="rmsnorm")`. A bare string is short for a
    name alone.
    """

    class Checked(Part):
        @model_validator(mode="before")
        @classmethod
        def _known(cls, value: object) -> object:
            if isinstance(value, Part):
                value = {"name": value.name, **value.settings}
            elif isinstance(value, str):
                value = {"name": value}
            if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
                return value
            settings = {key: item for key, item in value.items() if key != "name"}
            return {"name": value["name"], **family.resolve(value["name"], settings)}

    Checked.__name__ = Checked.__qualname__ = f"{family.role.title().replace(' ', '')}Part"
    return Checked


def load(
    kind: type[Loaded],
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a configuration: defaults <- `base` <- file <- `key=value` words.

    Args:
        kind: The `Config` class to build.
        path: A .toml or .json file, or None.
        overrides: Words such as "optimizer.lr=1e-3"; values are read as TOML, and as plain text where that
            fails. They are laid over each other in this order.
        base: Settings underneath the file.

    Raises:
        ValueError: A file that cannot be read, an unknown key, a value of the wrong type; the message says
            which.
    """
    tree = _merge(_defaults(kind), base or {})
    if path is not None:
        tree = _merge(tree, read_tree(path))
    for word in overrides:
        keys, value = parse_override(word)
        tree = _merge(tree, _nested(keys, value))
    return validate(kind, tree, source=str(path) if path else "configuration")


def validate(kind: type[Loaded], tree: Mapping[str, Any], *, source: str = "configuration") -> Loaded:
    """Build `kind` from a tree of plain values, with one readable line per mistake.

    Raises:
        ValueError: As `load`.
    """
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        lines = [_explain(kind, detail) for detail in error.errors()]
        raise ValueError("\n".join(dict.fromkeys(lines))) from None
    except UnknownNameError as error:
        raise ValueError(f"{source}: {error}") from None


def read_tree(path: Path) -> Tree:
    """Read a .toml or .json file as a tree of plain values.

    Raises:
        ValueError: The file is missing, has another suffix, or does not parse.
    """
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"{path}: a configuration is a .toml or .json file.")
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds a {type(tree).__name__}; a configuration is a table of keys.")
    return tree


def parse_override(word: str) -> tuple[list[str], Any]:
    """Split "a.b=1" into (["a", "b"], 1).

    Examples: "lr=1e-3" -> 0.001, "tied=true" -> True, "name=lion" -> "lion", "betas=[0.9, 0.99]" -> [0.9,
    0.99].

    Raises:
        ValueError: No "=", or an empty key.
    """
    path, equals, text = word.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"{word!r}: an override is key=value with a dotted key, such as optimizer.lr=3e-4.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = {"none": None, "null": None}.get(text.strip().lower(), text.strip())
    return keys, value


def choices_first(words: Iterable[str]) -> list[str]:
    """Put "optimizer.name=sgd" before "optimizer.lr=0.5": a new part drops the settings of the old one.

    For words that somebody typed together, in any order.

    Raises:
        ValueError: As `parse_override`.
    """
    words = list(words)
    parsed = {word: parse_override(word) for word in words}

    def chooses(word: str) -> bool:
        keys, value = parsed[word]
        part = keys[:-1] if len(keys) > 1 and keys[-1] == "name" else keys
        others = (other for other, _ in parsed.values() if other != keys and len(other) > len(part))
        return isinstance(value, str) and any(other[: len(part)] == part for other in others)

    return sorted(words, key=lambda word: not chooses(word))


def _defaults(kind: type[BaseModel]) -> Tree:
    """The defaults of `kind` as a tree, so that `norm.eps=1e-6` finds the norm that is there already."""
    tree: Tree = {}
    for name, field in kind.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            tree[name] = value.model_dump()
        elif not field.is_required():
            tree[name] = value
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            tree[name] = _defaults(field.annotation)
    return tree


def _nested(keys: list[str], value: object) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict), keys
    return value


def _merge(under: Tree, over: Mapping[str, Any]) -> Tree:
    """Lay `over` on `under`; where `over` chooses another part name, the old part's settings go."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}  # "norm = 'rmsnorm'" in a file, then norm.eps=1e-6 on the command line
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            replaced = "name" in value and value["name"] != old.get("name")
            merged[key] = dict(value) if replaced else _merge(dict(old), value)
        else:
            merged[key] = value
    return merged


def _explain(kind: type[BaseModel], detail: ErrorDetails) -> str:
    where = ".".join(str(step) for step in detail["loc"])
    if detail["type"] == "extra_forbidden":
        owner = _owner(kind, detail["loc"][:-1])
        known = owner.model_fields if owner is not None else ()
        return f"{where}: {unknown('key', str(detail['loc'][-1]), known)}"
    if detail["type"] == "missing":
        return f"{where}: missing; add {where}=VALUE."
    reason = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return reason if not where or reason.startswith(where) else f"{where}: {reason}"
    return f"{where}={detail['input']!r}: {reason}."


def _owner(kind: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    owner: Any = kind
    for step in path:
        if isinstance(step, int):
            continue  # the place in a list: its items are of one kind
        fields = getattr(owner, "model_fields", {})
        if step not in fields:
            return None
        owner = next(_models_in(fields[step].annotation), None)
        if owner is None:
            return None
    return owner


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, however deep: tuple[Case, ...] | None -> Case."""
    if get_args(annotation):
        for option in get_args(annotation):
            yield from _models_in(option)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
