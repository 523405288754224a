"""The README's tables are those of the committed results."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["tokenizer_table", "train_table"])
def test_the_tables_of_the_readme_are_made_from_the_results(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(module.BEGIN) + len(module.BEGIN) : text.index(module.END)]
    assert shown.strip() == module.tables().strip()
