"""Run folders for the tests of this area."""

from pathlib import Path

import pytest
from synthetic_run import write_run, write_tokenizer


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run without a tokenizer file."""
    return write_run(tmp_path / "runs" / "demo")


@pytest.fixture
def whole_run_folder(run_folder: Path) -> Path:
    """A finished run with its tokenizer."""
    write_tokenizer(run_folder)
    return run_folder
