"""The notebooks as they are committed: executed from top to bottom, small, with exercises and solutions.

What they compute is executed by `make test-notebooks`, in a real kernel, with the solutions as cells.
"""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PATHS}

MAX_NOTEBOOK_BYTES = 600_000
"""GitHub shows notebooks of some megabytes slowly or not at all; a drawing here has about 40 KB."""
MAX_PRINTED = 4_000
"""Characters that a cell may print: what a reader reads."""
MACHINE = re.compile(r"/(?:home|root|work|tmp|usr|opt|Users|mnt)/|[A-Z]:\\\\")
PICTURE = re.compile(r'"image/png": "[^"]*"')
LIBRARIES = {"scratchlm", "torch", "numpy", "matplotlib"}

each = pytest.mark.parametrize("name", NOTEBOOKS)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def text(name):
    return "\n\n".join("".join(cell["source"]) for cell in cells(name, "markdown"))


def outputs(name):
    return [output for cell in cells(name, "code") for output in cell["outputs"]]


def test_there_are_at_most_ten_and_their_numbers_follow_each_other():
    assert 6 <= len(NOTEBOOKS) <= 10
    assert [int(name.partition("-")[0]) for name in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))


@each
def test_a_notebook_is_valid(name):
    nbformat = pytest.importorskip("nbformat", reason="needs the 'notebooks' extra")
    nbformat.validate(NOTEBOOKS[name])


@each
def test_it_was_executed_from_top_to_bottom_without_errors_or_warnings(name):
    counts = [cell["execution_count"] for cell in cells(name, "code")]
    assert counts == list(range(1, len(counts) + 1)), "python notebooks/execute.py"
    kinds = {output["output_type"] for output in outputs(name)}
    assert kinds <= {"stream", "display_data"}, kinds
    assert {output["name"] for output in outputs(name) if output["output_type"] == "stream"} <= {"stdout"}


@each
def test_its_outputs_are_small(name):
    assert PATHS[list(NOTEBOOKS).index(name)].stat().st_size < MAX_NOTEBOOK_BYTES
    for output in outputs(name):
        assert sum(map(len, output.get("text", []))) < MAX_PRINTED


@each
def test_it_names_no_machine(name):
    path = FOLDER / f"{name}.ipynb"
    found = MACHINE.search(PICTURE.sub("", path.read_text(encoding="utf-8")))
    assert found is None, found
    assert set(NOTEBOOKS[name]["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOKS[name]["metadata"]["language_info"] == {"name": "python"}
    assert all(not cell["metadata"] for cell in NOTEBOOKS[name]["cells"])


@each
def test_it_is_a_lesson(name):
    said = text(name)
    assert said.startswith(f"# {name.partition('-')[0]}. ")
    assert re.search(r"takes\s+about\s+\d+\s+seconds", said), "says how long it takes"
    pictures = [output for output in outputs(name) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    code = "\n".join("".join(cell["source"]) for cell in cells(name, "code"))
    assert "from scratchlm" in code
    assert sum(map(len, code.splitlines())) < 12_000


@each
def test_its_exercises_have_hidden_solutions_that_are_python(name, script):
    said = text(name).partition("## Exercises\n")[2]
    exercises = re.findall(r"^\*\*(\d)\.\*\* ", said, re.MULTILINE)
    assert exercises == ["1", "2", "3"][: len(exercises)]
    assert len(exercises) >= 2
    found = script.solutions(said)
    assert len(found) == len(exercises) == said.count("<details>")
    for code in found:
        ast.parse(code)


@each
def test_it_imports_nothing_but_the_package_and_what_it_needs(name, script):
    for code in ["".join(cell["source"]) for cell in cells(name, "code")] + script.solutions(text(name)):
        for node in ast.walk(ast.parse(code)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            top = {one.partition(".")[0] for one in names}
            assert top <= LIBRARIES | sys.stdlib_module_names, top


@each
def test_its_links_and_the_files_it_names_exist(name):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text(name))
    assert [link for link in links if not (FOLDER / link).is_file()] == []
    named = re.findall(r"`([\w./]+\.(?:py|toml))`", text(name))
    assert [path for path in named if not (ROOT / "src" / "scratchlm" / path).is_file()] == []


def test_the_page_about_notebooks_names_all_of_them():
    page = (ROOT / "docs" / "how-to" / "notebooks.md").read_text(encoding="utf-8")
    assert [name for name in NOTEBOOKS if f"notebooks/{name}.ipynb" not in page] == []


def test_each_solution_becomes_a_cell_behind_its_exercise(script):
    hidden = "<details><summary>Solution</summary>\n\nWords.\n\n```python\n{}\n```\n\n</details>\n\n"
    words = "<details><summary>Solution</summary>\n\nOnly words.\n\n</details>\n"
    exercises = {
        "cell_type": "markdown",
        "id": "e",
        "source": [hidden.format("a = 1"), hidden.format("b = 2"), words],
    }
    code = {"cell_type": "code", "id": "c", "source": ["x = 0"], "outputs": []}
    filled = script.with_solutions({"nbformat": 4, "cells": [code, exercises, code]})
    assert [cell["id"] for cell in filled["cells"]] == ["c", "e", "e-solution-1", "e-solution-2", "c"]
    assert [cell["source"] for cell in filled["cells"][2:4]] == ["a = 1", "b = 2"]
    assert script.solutions(words) == [""]
