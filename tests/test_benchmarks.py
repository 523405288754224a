"""The README's tables are those of the committed results."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # a folder of scripts, not a part of the package


@pytest.mark.parametrize("name", ["tokenizer_table", "train_table"])
def test_the_tables_of_the_readme_are_made_from_the_results(name):
    module = importlib.import_module(name)
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(module.BEGIN) + len(module.BEGIN) : text.index(module.END)]
    assert shown.strip() == module.tables().strip()
