"""`scratchlm help`: the families of parts, their settings, the sections of a recipe; read from the code."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scratchlm.cli.sources import Plugin, load_plugins

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scratchlm.registry import Family

PACKAGES = tuple(
    f"scratchlm.{name}"
    for name in (
        "tokenizer",
        "data",
        "model",
        "optim",
        "distributed",
        "evaluate.tasks",
        "posttrain",
        "posttrain.tasks",
    )
)
"""Where the families are defined."""


WRITTEN = {
    "distributed": "distributed={}",
    "exercise": "data.name={}",
    "instructions": "data.name={}",
    "preferences": "data.name={}",
    "policy loss": "loss.name={}",
    "preference loss": "loss.name={}",
    "reward": "[[rewards]] name={}",
    "stage": "scratchlm {}",
    "task": "--tasks {}",
}
"""How a part is chosen where it is not by FAMILY.name=PART."""


def help_part(
    part: Annotated[
        str | None,
        typer.Argument(help="A family (optimizer), a part (adamw, optimizer.adamw) or a section (train)."),
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Show what can be chosen by name, and every setting with its type and default."""
    families = load_families()
    load_plugins(plugin)
    if part is None:
        _print_overview(families)
        return
    sections = load_sections()
    matches = list(find_parts(families, part))
    if part not in families and part not in sections and not matches:
        from scratchlm.registry import unknown

        known = {*families, *sections, *(name for family in families.values() for name in family.names())}
        raise ValueError(f"help: {unknown('part', part, known)}")
    if part in families:
        _print_family(families[part])
    if part in sections:
        _print_section(part, sections[part])
    for role, name in matches:
        if not (role == "stage" and name in sections):  # told already
            _print_part(families[role], name)


def load_families() -> "dict[str, Family[Any]]":
    """All families of the package, by role."""
    import importlib
    import pkgutil

    from scratchlm.registry import families

    for package in PACKAGES:
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{found.name}")
    return families()


def load_sections() -> "dict[str, type[BaseModel]]":
    """The sections of a recipe that have settings of their own: name -> configuration class."""
    from pydantic import BaseModel

    from scratchlm.config import Part
    from scratchlm.posttrain import STAGES
    from scratchlm.posttrain.rollout import RolloutConfig
    from scratchlm.train.config import RunConfig

    stages = {name: STAGES.get(name).Config for name in STAGES.names()}
    kinds = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    kinds["rollout"] = RolloutConfig
    own = {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Part)
    }
    return {"recipe": RunConfig, **stages, **own}


def find_parts(families: "Mapping[str, Family[Any]]", word: str) -> Iterator[tuple[str, str]]:
    """Where "adamw" or "optimizer.adamw" is defined: (role, name), once for each family that has it."""
    wanted_role, dot, rest = word.partition(".")
    for role, family in families.items():
        name = rest if dot and role == wanted_role else word
        if name in family.names():
            yield role, name


def argument_texts(part: Callable[..., Any]) -> dict[str, str]:
    """The explanation of each argument in the "Args:" of a part's docstrings.

    Example: a line "lr: Step size." below "Args:" -> {"lr": "Step size."}.
    """
    texts: dict[str, str] = {}
    for text in (inspect.getdoc(part), inspect.getdoc(getattr(part, "__init__", None))):
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", text or "", re.MULTILINE)
        if section is None:
            continue
        for found in re.finditer(
            r"^ {4}\*{0,2}(\w+):\s*((?:.*\n?)(?:^ {5,}.*\n?)*)", section[1], re.MULTILINE
        ):
            texts.setdefault(found[1], " ".join(found[2].split()))
    return texts


def type_name(annotation: Any) -> str:
    """A type as people write it: `float`, `int | None`, `"linear" | "cosine"`."""
    from types import UnionType
    from typing import Literal, Union, get_args, get_origin

    if annotation is inspect.Parameter.empty:
        return "any"
    if annotation is type(None):
        return "none"
    if get_origin(annotation) is Literal:
        return " | ".join(repr(value) for value in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return (
            annotation.__name__.removesuffix("Part").lower()
            if annotation.__name__.endswith("Part")
            else annotation.__name__
        )
    if get_origin(annotation) is tuple:
        return f"list of {type_name(get_args(annotation)[0])}"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(type_name(option) for option in get_args(annotation))
    text = re.sub(r"Annotated\[([^,\[\]]+),.*?\]$", r"\1", str(annotation).replace("typing.", ""))
    return re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " | "), text)


def _print_overview(families: "Mapping[str, Family[Any]]") -> None:
    from scratchlm.cli.console import err, out, print_table, table
    from scratchlm.registry import first_line

    for role, family in families.items():
        if not family.names():
            continue
        out().print(role, style="bold")
        rows = table("", "")
        for name in family.names():
            rows.add_row(f"  {name}", first_line(family.get(name)))
        print_table(rows)
    err().print("settings of a part: scratchlm help adamw; of a recipe: scratchlm help recipe", style="dim")


def _print_family(family: "Family[Any]") -> None:
    for name in family.names():
        _print_part(family, name)


def _print_part(family: "Family[Any]", name: str) -> None:
    from scratchlm.cli.console import out, print_table, table
    from scratchlm.registry import first_line

    part = family.get(name)
    console = out()
    written = WRITTEN.get(family.role, f"{family.role}.name={{}}").format(name)
    console.print(written, style="bold cyan", markup=False)
    console.print(f"  {first_line(part)}")
    settings, texts = family.settings(name), argument_texts(part)
    if settings:
        rows = table("  setting", "type", "default", "meaning")
        for setting in settings.values():
            default = "needed" if setting.required else repr(setting.default)
            rows.add_row(
                f"  {setting.name}", type_name(setting.annotation), default, texts.get(setting.name, "")
            )
        print_table(rows)
    elif family.role in ("model", "stage"):
        about = "model" if family.role == "model" else name
        console.print(f"  settings: scratchlm help {about}", style="dim")
    else:
        console.print("  no settings", style="dim")
    console.print()


def _print_section(name: str, kind: "type[BaseModel]") -> None:
    from scratchlm.cli.console import out, print_table, table

    out().print(name, style="bold cyan")
    prefix = "" if name == "recipe" or "base" in kind.model_fields else f"{name}."  # those of a whole file
    rows = table("  setting", "type", "default", "meaning")
    for key, field in kind.model_fields.items():
        shown = _default(field.get_default(call_default_factory=True), key, needed=field.is_required())
        rows.add_row(f"  {prefix}{key}", type_name(field.annotation), shown, field.description or "")
    print_table(rows)


def _default(default: Any, key: str, *, needed: bool) -> str:
    """A default as people write it."""
    from scratchlm.config import Part

    if needed:
        return "needed"
    if isinstance(default, Part):
        return default.name
    if isinstance(default, dict) and "name" in default:  # a part that is checked later
        return str(default["name"])
    if isinstance(default, tuple):
        return ", ".join(_default(one, key, needed=False) for one in default) or "none"
    return f"see help {key}" if hasattr(default, "model_fields_set") else repr(default)
