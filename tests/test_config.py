"""Configuration: files, key=value words, strict keys, parts by name."""

from typing import Literal

import pytest

from scratchlm import config
from scratchlm.config import Config, Part, choices_first, load, parse_override, part_of, validate
from scratchlm.registry import Family

ENGINES = Family("test engine", package="scratchlm.config")


@ENGINES.register("steam")
def steam(*, pressure: float = 2.0, fuel: str = "coal"):
    """Boil water."""


@ENGINES.register("electric")
def electric(*, volts: int = 400):
    """Turn magnets."""


@ENGINES.register("muscle")
def muscle(*, animal: str):
    """Pull."""


@pytest.fixture(autouse=True, scope="module")
def _forget_the_family():
    yield
    from scratchlm import registry

    registry._FAMILIES.pop("test engine", None)


class Wheels(Config):
    number: int = 4
    """How many."""
    kind: Literal["wood", "rubber"] = "wood"
    """What they are made of."""


class Car(Config):
    name: str
    """What it is called."""
    engine: part_of(ENGINES) = Part(name="steam")
    """What drives it."""
    wheels: Wheels = Wheels()
    """What it rolls on."""
    seats: int | None = None
    """How many people."""


def test_defaults_file_and_words_are_laid_over_each_other(tmp_path):
    path = tmp_path / "car.toml"
    path.write_text('name = "A"\n[wheels]\nnumber = 3\nkind = "rubber"\n', encoding="utf-8")
    car = load(Car, path, ["wheels.number=6", "seats=2"])
    assert (car.name, car.wheels.number, car.wheels.kind, car.seats) == ("A", 6, "rubber", 2)


def test_a_loaded_part_carries_all_its_settings():
    car = load(Car, overrides=["name=A", "engine.pressure=3"])
    assert car.engine.settings == {"pressure": 3.0, "fuel": "coal"}


def test_another_name_drops_the_settings_of_the_part_before(tmp_path):
    path = tmp_path / "car.toml"
    path.write_text('name = "A"\n[engine]\nname = "steam"\npressure = 9.0\n', encoding="utf-8")
    assert load(Car, path, ["engine.name=electric"]).engine.settings == {"volts": 400}
    assert load(Car, path, ["engine.name=steam"]).engine.settings["pressure"] == 9.0
    changed = load(Car, path, ["engine.name=electric", "engine.volts=12"])
    assert changed.engine.settings == {"volts": 12}


def test_a_bare_name_stands_for_a_part(tmp_path):
    path = tmp_path / "car.toml"
    path.write_text('name = "A"\nengine = "electric"\n', encoding="utf-8")
    assert load(Car, path, ["engine.volts=12"]).engine.settings == {"volts": 12}


def test_a_resolved_configuration_loads_back_equal(tmp_path):
    car = load(Car, overrides=["name=A", "engine.name=muscle", "engine.animal=horse", "wheels.kind=rubber"])
    path = tmp_path / "config.json"
    path.write_text(car.to_json(), encoding="utf-8")
    assert load(Car, path) == car


def test_the_real_recipes_load_back_equal(tmp_path):
    from scratchlm.train import recipes
    from scratchlm.train.config import RunConfig

    for name in recipes.names():
        words = ['corpus.paths=["a.txt"]'] if name == "quick" else []
        found = recipes.read(name, words)
        path = tmp_path / f"{name}.json"
        path.write_text(found.to_json(), encoding="utf-8")
        assert load(RunConfig, path) == found, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name=A", "wheals.number=3"], r"wheals: unknown key 'wheals'\. Did you mean 'wheels'\?"),
        (
            ["name=A", "wheels.nmber=3"],
            r"wheels\.nmber: unknown key 'nmber'\. Did you mean 'number'\? Known: kind, number\.",
        ),
        (["name=A", "engine.name=stem"], r"unknown test engine 'stem'\. Did you mean 'steam'\?"),
        (["name=A", "engine.presure=3"], r"unknown setting of 'steam' 'presure'\. Did you mean 'pressure'\?"),
        (["name=A", "engine.pressure=high"], r"pressure='high'.*a setting of 'steam'"),
        (["name=A", "engine.name=muscle"], r"'muscle' needs animal; add .*animal=VALUE"),
        (["name=A", "wheels.kind=stone"], r"wheels\.kind='stone': .*'wood' or 'rubber'"),
        (["name=A", "wheels.number=some"], r"wheels\.number='some': .*integer"),
        ([], r"name: missing; add name=VALUE\."),
        (["name"], r"'name': an override is key=value with a dotted key"),
        (["=3"], r"'=3': an override is key=value"),
    ],
)
def test_a_mistake_is_one_readable_line(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(Car, overrides=words)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_all_told():
    with pytest.raises(ValueError, match="wheals") as caught:
        load(Car, overrides=["name=A", "wheals=1", "saets=2"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lr=1e-3", (["lr"], 0.001)),
        ("a.b=true", (["a", "b"], True)),
        ("name=lion", (["name"], "lion")),
        ("betas=[0.9, 0.99]", (["betas"], [0.9, 0.99])),
        ("seats=none", (["seats"], None)),
        ('prompt="a = b"', (["prompt"], "a = b")),
        ("path=a/b.txt", (["path"], "a/b.txt")),
    ],
)
def test_values_are_read_as_toml_and_else_as_text(word, expected):
    assert parse_override(word) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"x: 1", "a configuration is a .toml or .json file"),
        ("a.toml", b"x = = 1", "not valid TOML"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"\xff\xfe", "not valid JSON"),
        ("a.json", b"[1]", "holds a list; a configuration is a table of keys"),
        ("missing.toml", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        config.read_tree(path)
    assert str(path) in str(caught.value)


def test_a_configuration_is_frozen():
    car = validate(Car, {"name": "A"})
    with pytest.raises(ValueError, match="frozen"):
        car.name = "B"


def test_every_setting_of_a_run_is_documented():
    from pydantic import BaseModel

    from scratchlm.train.config import RunConfig

    todo: list[type[BaseModel]] = [RunConfig]
    while todo:
        kind = todo.pop()
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no docstring line"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                todo.append(field.annotation)


def test_a_part_is_chosen_before_its_settings_in_whichever_order_they_are_typed():
    words = [
        "optimizer.lr=0.5",
        "train.steps=3",
        "optimizer.name=sgd",
        "model.norm.eps=1e-3",
        "model.norm=rmsnorm",
    ]
    assert choices_first(words) == [
        "optimizer.name=sgd",
        "model.norm=rmsnorm",
        "optimizer.lr=0.5",
        "train.steps=3",
        "model.norm.eps=1e-3",
    ]
    assert choices_first(["a=true", "a=auto", "name=x", "b.c=1"]) == ["a=true", "a=auto", "name=x", "b.c=1"]
