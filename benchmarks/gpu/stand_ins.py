"""Small stand-ins for packages that a GPU machine may lack, so that the proof needs nothing installed.

The library checks its settings with pydantic, writes shapes with jaxtyping and reshapes with einops. On a
machine with torch, triton and numpy alone these modules take their places: settings are taken as they are
given (unchecked), shapes are not looked at, `rearrange` understands what the library asks of it. A package
that is there is used, never replaced. Nothing here is meant for anything but the proof: install the packages
where you can.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, get_type_hints

import torch


def install() -> list[str]:
    """Put stand-ins where packages are missing; return whose."""
    made = {
        "pydantic": _pydantic,
        "pydantic_core": _pydantic_core,
        "jaxtyping": _jaxtyping,
        "einops": _einops,
    }
    missing = [name for name in made if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in missing:
        module = ModuleType(name, f"A stand-in for {name}; see benchmarks/gpu/stand_ins.py.")
        module.__spec__ = ModuleSpec(name, None)  # find_spec asks for it
        made[name](module)
        sys.modules[name] = module
    return missing


_REQUIRED = object()


class FieldInfo:
    """A field's default; its bounds are not checked."""

    def __init__(self, default: Any = _REQUIRED, *, default_factory: Callable[[], Any] | None = None) -> None:
        self.default, self.default_factory, self.annotation = default, default_factory, None

    def is_required(self) -> bool:
        return self.default is _REQUIRED and self.default_factory is None

    def get_default(self, *, call_default_factory: bool = False) -> Any:
        return self.default_factory() if self.default_factory else self.default


def field(default: Any = _REQUIRED, *, default_factory: Any = None, **bounds: Any) -> Any:
    return FieldInfo(_REQUIRED if default is ... else default, default_factory=default_factory)


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        getattr(function, "__func__", function)._validates = mode
        return function

    return mark


class BaseModel:
    """Keyword arguments become attributes; defaults, nested models and model validators are honoured."""

    model_fields: dict[str, FieldInfo] = {}  # noqa: RUF012
    model_config: dict[str, Any] = {}  # noqa: RUF012

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.model_config = {**cls.__base__.model_config, **cls.__dict__.get("model_config", {})}
        fields = dict(getattr(cls.__base__, "model_fields", {}))
        for name in inspect.get_annotations(cls):
            if not name.startswith("_") and name not in ("model_config", "model_fields"):
                given = cls.__dict__.get(name, _REQUIRED)
                fields[name] = given if isinstance(given, FieldInfo) else FieldInfo(given)
        cls.model_fields = fields

    def __init__(self, **given: Any) -> None:
        made = self._build(given)
        self.__dict__.update(made.__dict__)

    @classmethod
    def _build(cls, given: Any) -> Any:
        for validate in cls._validators("before"):
            given = validate(given)
        if isinstance(given, BaseModel):
            given = given.model_dump()
        self = object.__new__(cls)
        values = dict(given)
        for name, known in cls.model_fields.items():
            if name not in values and known.is_required():
                raise ValidationError(f"{cls.__name__}.{name}: missing")
            kind, value = _hints(cls).get(name), values.pop(name, known.get_default())
            nested = isinstance(kind, type) and issubclass(kind, BaseModel) and type(value) is not kind
            self.__dict__[name] = kind._build(value) if nested else value
        if values and cls.model_config.get("extra") != "allow":
            raise ValidationError(f"{cls.__name__}: unknown {', '.join(map(str, values))}")
        self.__dict__ |= values
        for name in cls._validators("after"):
            name(self)
        return self

    @classmethod
    def _validators(cls, mode: str) -> list[Callable[[Any], Any]]:
        found = []
        for name in {name: None for kind in reversed(cls.__mro__) for name in vars(kind)}:
            raw = next(vars(kind)[name] for kind in cls.__mro__ if name in vars(kind))
            if getattr(getattr(raw, "__func__", raw), "_validates", None) == mode:
                found.append(getattr(cls, name))
        return found

    @classmethod
    def model_validate(cls, given: Any) -> Any:
        return cls._build(given)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {name: v.model_dump() if isinstance(v, BaseModel) else v for name, v in self.__dict__.items()}

    def model_copy(self, *, update: dict[str, Any] | None = None, **_: Any) -> Any:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__ | (update or {}))
        return made

    @property
    def model_extra(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in type(self).model_fields}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None


class ValidationError(ValueError):
    """Raised by models that lack a value."""

    def errors(self) -> list[dict[str, Any]]:
        return [{"msg": str(self), "loc": (), "type": "value_error"}]


class TypeAdapter:
    """Takes every value as it is."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def validate_python(self, value: Any) -> Any:
        return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a name that only a type checker imports
        return {}


def _pydantic(module: ModuleType) -> None:
    module.BaseModel, module.TypeAdapter, module.ValidationError = BaseModel, TypeAdapter, ValidationError
    module.ConfigDict, module.Field, module.model_validator = dict, field, model_validator
    module.field_validator = lambda *names, **settings: lambda function: function


def _pydantic_core(module: ModuleType) -> None:
    module.ErrorDetails, module.PydanticUndefined = dict, _REQUIRED
    module.ValidationError = ValidationError


class _Shaped:
    """Float[Tensor, "batch time"] is Tensor."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item[0] if isinstance(item, tuple) else item


def _jaxtyping(module: ModuleType) -> None:
    for name in (
        "Bool",
        "Float",
        "Float32",
        "Int",
        "Int32",
        "Int64",
        "Integer",
        "Num",
        "Shaped",
        "UInt",
        "UInt8",
    ):
        setattr(module, name, _Shaped)
    module.jaxtyped = lambda *_, **__: lambda function: function
    module.Array = torch.Tensor


def rearrange(x: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    """Reshape and permute as einops does: names, (groups of names), 1, and "..."."""
    left, right = (_parse(side) for side in pattern.split("->"))
    if ["..."] in left:
        at = left.index(["..."])
        more = [[f"...{n}"] for n in range(x.ndim - len(left) + 1)]
        left = left[:at] + more + left[at + 1 :]
        at = right.index(["..."])
        right = right[:at] + more + right[at + 1 :]
    known = dict(sizes)
    for group, size in zip(left, x.shape, strict=True):
        product = 1
        for name in group:
            product *= known.get(name, 1)
        unknown = [name for name in group if name not in known]
        assert len(unknown) <= 1, f"{pattern}: {group} needs sizes"
        known |= {name: size // product for name in unknown}
    names = [name for group in left for name in group]
    order = [names.index(name) for group in right for name in group]
    x = x.reshape([known[name] for name in names]).permute(order)
    shape = []
    for group in right:
        product = 1
        for name in group:
            product *= known[name]
        shape.append(product)
    return x.reshape(shape)


def _parse(side: str) -> list[list[str]]:
    groups: list[list[str]] = []
    inside = False
    for word in side.replace("(", " ( ").replace(")", " ) ").split():
        if word in "()":
            inside = word == "("
            groups += [[]] if inside else []
        elif inside:
            groups[-1].append(word)
        else:
            groups.append([] if word == "1" else [word])
    return groups


def _einops(module: ModuleType) -> None:
    module.rearrange = rearrange
