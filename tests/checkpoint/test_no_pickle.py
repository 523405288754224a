"""No file of the package reads or writes pickled objects: loading a stranger's file must run no code."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "scratchlm"
PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EXCEPTION = {"checkpoint/foreign.py": {"pickle.UnpicklingError"}}
"""torch.load(weights_only=True) raises this error; its name is all that is taken from pickle."""


def name_of(node):
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_literally(call, keyword, value):
    return any(
        given.arg == keyword and isinstance(given.value, ast.Constant) and given.value.value is value
        for given in call.keywords
    )


def faults(source, place):
    """What in a file could unpickle."""
    for node in ast.walk(ast.parse(source)):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in imported:
            if name.partition(".")[0] in PICKLING and name not in EXCEPTION.get(place, ()):
                yield f"import {name}"
            if name in ("torch.load", "torch.save", "numpy.load"):
                yield f"import {name}: call it with its module's name, so that its arguments are checked"
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            if name.endswith("torch.load") and not is_literally(node, "weights_only", True):
                yield f"line {node.lineno}: torch.load without weights_only=True"
            if name.endswith("torch.save"):
                yield f"line {node.lineno}: torch.save writes a pickle"
            if name in ("np.load", "numpy.load") and not is_literally(node, "allow_pickle", False):
                yield f"line {node.lineno}: {name} without allow_pickle=False"
            if any(given.arg == "allow_pickle" for given in node.keywords) and not is_literally(
                node, "allow_pickle", False
            ):
                yield f"line {node.lineno}: allow_pickle"
            if name.endswith((".set_default_load_weights_only", ".add_safe_globals", ".read_pickle")):
                yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: path.relative_to(SRC).as_posix())
def test_a_file_unpickles_nothing(path):
    assert not list(faults(path.read_text(encoding="utf-8"), path.relative_to(SRC).as_posix()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "from torch import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import torch\ntorch.save({}, path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "array.tofile(path, allow_pickle=True)",
        "torch.serialization.add_safe_globals([Thing])",
    ],
)
def test_the_check_sees(source):
    assert list(faults(source, "model/linear.py"))


def test_the_check_lets_the_safe_form_pass():
    safe = "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"
    assert list(faults(safe, "checkpoint/foreign.py")) == []
