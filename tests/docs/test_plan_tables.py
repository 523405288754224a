"""Every table of "From a laptop to 1,000 GPUs" is what the command above it prints."""

import re
import shlex
from pathlib import Path

import pytest

from scratchlm.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "from-a-laptop-to-1000-gpus.md"
TABLE = re.compile(r"^```sh\nscratchlm (plan .*--format markdown)\n```\n\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = TABLE.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("command", "table"), TABLES, ids=[command[:60] for command, _ in TABLES])
def test_a_table_is_what_its_command_prints(command, table, capsys):
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == table, f"print it again: scratchlm {command}"


def test_every_command_that_prints_a_table_has_it_below():
    assert len(TABLES) == PAGE.read_text(encoding="utf-8").count("--format markdown\n```") > 5
