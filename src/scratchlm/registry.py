"""Families of exchangeable parts: a name comes in, the part (a class or a function) goes out.

    OPTIMIZERS = Family("optimizer", package="scratchlm.optim")

    @OPTIMIZERS.register("lion")
    class Lion(Optimizer):
        def __init__(self, params, *, lr: float = 1e-4, weight_decay: float = 0.1): ...

A part's *settings* are the keyword-only arguments of its constructor: names, types and defaults have one
home, the signature. Positional arguments are what the code supplies (`params` above) and are never settings;
neither are the keyword-only arguments in `SUPPLIED`. The modules of `package` are imported on the first
look-up, so a new file with one decorated class is found without editing another file.
"""

import difflib
import importlib
import importlib.util
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

Part = TypeVar("Part")
Registered = TypeVar("Registered", bound=Callable[..., Any])

SUPPLIED = frozenset({"device", "dtype", "generator"})
"""Keyword-only arguments that the code supplies: they describe the machine, not the part."""

_FAMILIES: dict[str, "Family"] = {}


class UnknownNameError(ValueError):
    """A name or key that nothing answers to; the message lists what exists and the nearest match."""


class Setting(NamedTuple):
    """One setting of a part, as its constructor's signature states it."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the part cannot be built without this setting."""
        return self.default is inspect.Parameter.empty


class Family(Generic[Part]):
    """All parts that answer to one role, by name."""

    def __init__(self, role: str, *, package: str, variable: str | None = None) -> None:
        """Start a family.

        Args:
            role: What a part of this family is ("optimizer"); used in messages and on the command line.
            package: Package or module whose files define the parts; imported on the first look-up.
            variable: Name of the variable that holds this family, where the package has heavy files that
                register nothing: only those in which "@VARIABLE.register(" stands are imported.
        """
        self.role = role
        self._package = package
        self._decorator = f"@{variable}.register(" if variable else ""
        self._parts: dict[str, Callable[..., Part]] = {}
        self._discovered = False
        _FAMILIES[role] = self

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that enters a class or function under `name`.

        Raises:
            ValueError: The name is taken by another part.
        """

        def enter(part: Registered) -> Registered:
            taken = self._parts.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (
                part.__module__,
                part.__qualname__,
            ):
                raise ValueError(
                    f"{self.role} {name!r} is already {taken.__module__}.{taken.__qualname__}; "
                    "choose another name."
                )
            self._parts[name] = part
            return part

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._parts)

    def get(self, name: str) -> Callable[..., Part]:
        """The part called `name`.

        Raises:
            UnknownNameError: There is none; the message lists the names and the nearest one.
        """
        self._discover()
        if name not in self._parts:
            raise UnknownNameError(unknown(self.role, name, self.names()))
        return self._parts[name]

    def settings(self, name: str) -> dict[str, Setting]:
        """The settings of part `name`: its constructor's keyword-only arguments."""
        signature = inspect.signature(self.get(name))
        return {
            parameter.name: Setting(parameter.name, parameter.annotation, parameter.default)
            for parameter in signature.parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in SUPPLIED
        }

    def check(self, name: str, settings: Mapping[str, Any], *, where: str | None = None) -> dict[str, Any]:
        """Return `settings` converted to the types of part `name`'s signature.

        Args:
            name: The part.
            settings: What somebody asked for, as it came from a file or the command line.
            where: Dotted path for messages ("model.norm"); the role by default.

        Raises:
            UnknownNameError: A key is no setting of this part.
            ValueError: A value has the wrong type, or a required setting is missing.
        """
        where = where or self.role
        known = self.settings(name)
        checked = {}
        for key, value in settings.items():
            if key not in known:
                raise UnknownNameError(f"{where}.{key}: {unknown(f'setting of {name!r}', key, known)}")
            annotation = known[key].annotation
            try:
                checked[key] = (
                    value
                    if annotation is inspect.Parameter.empty
                    else TypeAdapter(annotation).validate_python(value)
                )
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{where}.{key}={value}: must be a finite number.")
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise ValueError(f"{where}.{key}={value!r}: {reason} (a setting of {name!r}).") from None
        missing = [
            setting.name for setting in known.values() if setting.required and setting.name not in checked
        ]
        if missing:
            raise ValueError(f"{where}: {name!r} needs {', '.join(missing)}; add {where}.{missing[0]}=VALUE.")
        return checked

    def resolve(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Like `check`, with defaults filled in: every setting of part `name`, in the signature's order."""
        checked = self.check(name, settings)
        return {key: checked.get(key, setting.default) for key, setting in self.settings(name).items()}

    def build(self, part_name: str, /, *supplied: Any, **settings: Any) -> Part:
        """Build part `part_name` from what the code supplies and what somebody set."""
        extra = {key: settings.pop(key) for key in SUPPLIED & settings.keys()}
        return self.get(part_name)(*supplied, **extra, **self.check(part_name, settings))

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        module = importlib.import_module(self._package)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            name = f"{self._package}.{found.name}"
            if not self._decorator or self._decorator in _source(name):
                importlib.import_module(name)


def _source(module: str) -> str:
    """The text of a module that need not be imported for it."""
    spec = importlib.util.find_spec(module)
    return (getattr(spec and spec.loader, "get_source", None) or (lambda name: None))(module) or ""


def families() -> dict[str, Family[Any]]:
    """All families that have been defined so far, by role."""
    return dict(sorted(_FAMILIES.items()))


def load_plugin(path: Path) -> None:
    """Run a Python file so that the parts it registers can be used by name.

    Raises:
        ValueError: There is no such file, or it is not a Python file.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(
            f"--plugin {path}: no such Python file; give the path of a .py file that registers parts."
        )
    spec = importlib.util.spec_from_file_location(f"scratchlm_plugin_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is not known, what is nearest and what exists.

    Example: unknown("key", "d_modle", ["d_model", "d_ff"]) ->
    "unknown key 'd_modle'. Did you mean 'd_model'? Known: d_ff, d_model."
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names) or '(none)'}."


def first_line(part: Callable[..., Any]) -> str:
    """The first line of a part's docstring: what `scratchlm help` shows beside its name."""
    lines: Iterator[str] = iter((inspect.getdoc(part) or "").splitlines())
    return next(lines, "")
