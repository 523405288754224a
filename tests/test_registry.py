"""Families: parts by name, settings from signatures, plugins."""

import inspect

import pytest
import torch

from scratchlm.optim import OPTIMIZERS
from scratchlm.registry import Family, UnknownNameError, families, first_line, load_plugin, unknown

PLUGIN = '''
from torch.optim import Optimizer

from scratchlm.optim import OPTIMIZERS


@OPTIMIZERS.register("{name}")
class Signs(Optimizer):
    """Move every coordinate by lr against the sign of its gradient."""

    def __init__(self, params, *, lr: float = 1e-2):
        super().__init__(params, {{"lr": lr}})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(group["lr"] * parameter.grad.sign())
'''


@pytest.fixture
def shapes():
    family = Family("test shape", package="scratchlm.config")
    yield family
    families()  # a copy: the family itself must leave the registry
    from scratchlm import registry

    del registry._FAMILIES["test shape"]


@pytest.fixture
def forget_optimizer():
    names = []
    yield names.append
    for name in names:
        OPTIMIZERS._parts.pop(name, None)


def test_an_optimizer_is_added_by_one_decorated_class(forget_optimizer):
    forget_optimizer("signs here")

    @OPTIMIZERS.register("signs here")
    class Signs(torch.optim.Optimizer):
        """Move every coordinate by lr against the sign of its gradient."""

        def __init__(self, params, *, lr: float = 1e-2):
            super().__init__(params, {"lr": lr})

        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(group["lr"] * parameter.grad.sign())

    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    weight.grad = torch.tensor([3.0, -0.1])
    OPTIMIZERS.build("signs here", [weight], lr=0.25).step()
    torch.testing.assert_close(weight.data, torch.tensor([0.75, -0.75]))
    assert "signs here" in OPTIMIZERS.names()
    assert OPTIMIZERS.settings("signs here")["lr"].default == 1e-2


def test_an_optimizer_is_added_from_a_plugin_file(tmp_path, forget_optimizer):
    forget_optimizer("plugin_signs")
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="plugin_signs"), encoding="utf-8")
    load_plugin(path)
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    weight.grad = torch.tensor([-5.0])
    OPTIMIZERS.build("plugin_signs", [weight]).step()
    torch.testing.assert_close(weight.data, torch.tensor([1.01]))


def test_a_plugin_that_is_no_python_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x = 1", encoding="utf-8")
    for name in ("missing.py", "notes.txt"):
        with pytest.raises(ValueError, match=r"no such Python file; give the path of a \.py file"):
            load_plugin(tmp_path / name)


def test_settings_are_the_keyword_only_arguments_without_what_the_code_supplies(shapes):
    @shapes.register("box")
    def box(size, *, width: int, depth: float = 2.0, device=None, dtype=None, generator=None):
        """Make a box."""

    settings = shapes.settings("box")
    assert list(settings) == ["width", "depth"]
    assert settings["width"].required
    assert not settings["depth"].required
    assert first_line(box) == "Make a box."


def test_settings_are_converted_to_the_types_of_the_signature(shapes):
    @shapes.register("box")
    def box(size, *, width: int, sides: tuple[float, float] = (1.0, 1.0)):
        return size, width, sides

    assert shapes.build("box", "s", width="3", sides=[1, 2]) == ("s", 3, (1.0, 2.0))
    assert shapes.resolve("box", {"width": 4}) == {"width": 4, "sides": (1.0, 1.0)}


def test_a_wrong_setting_says_what_where_and_what_is_allowed(shapes):
    @shapes.register("box")
    def box(*, width: int, height: int = 1):
        return width

    with pytest.raises(UnknownNameError, match=r"widht.*Did you mean 'width'\? Known: height, width\."):
        shapes.check("box", {"widht": 1})
    with pytest.raises(ValueError, match=r"room\.width='wide': .*integer.*a setting of 'box'"):
        shapes.check("box", {"width": "wide"}, where="room")
    with pytest.raises(ValueError, match=r"'box' needs width; add test shape\.width=VALUE"):
        shapes.build("box")


def test_an_unknown_name_lists_the_names_and_the_nearest(shapes):
    shapes.register("circle")(lambda: None)
    with pytest.raises(
        UnknownNameError, match=r"unknown test shape 'circel'\. Did you mean 'circle'\? Known: circle\."
    ):
        shapes.get("circel")
    assert unknown("key", "d_modle", ["d_model", "d_ff"]) == (
        "unknown key 'd_modle'. Did you mean 'd_model'? Known: d_ff, d_model."
    )


def test_a_taken_name_is_refused(shapes):
    @shapes.register("circle")
    def first():
        pass

    def second():
        pass

    with pytest.raises(ValueError, match=r"'circle' is already .*first; choose another name"):
        shapes.register("circle")(second)
    shapes.register("circle")(first)  # the same part again, as when a module is reloaded


def test_every_part_of_every_family_has_a_first_line_and_typed_settings():
    from scratchlm.cli.help import load_families

    found = load_families()
    assert {"optimizer", "schedule", "corpus", "batches", "tokenizer", "model", "norm", "position"} <= set(
        found
    )
    for role, family in found.items():
        for name in family.names():
            where = f"{role}.{name}"
            assert first_line(family.get(name)).endswith((".", "?")), where
            for setting in family.settings(name).values():
                assert setting.annotation is not inspect.Parameter.empty, f"{where}.{setting.name}: no type"
                assert not isinstance(setting.annotation, str), f"{where}.{setting.name}: a type as text"
