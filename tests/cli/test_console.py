"""Tables on narrow terminals: figures stay with their units, columns go before figures break."""

import io
import re
from contextlib import redirect_stdout

import pytest

from scratchlm.cli.console import print_table, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, width: int, spare: tuple[str, ...] = ()) -> list[str]:
    """The lines of a table with four columns on a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    made = table("layout", "micro-batches", "sent a step", "", numbers=("micro-batches", "sent a step"))
    made.add_row("fsdp2 x8", "32 x 1 rows, recomputed", "38.9 GB", "by hand only")
    made.add_row("ddp", "4 x 2 rows", "8.65 GB", "")
    with redirect_stdout(Terminal()) as out:
        print_table(made, spare=spare)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.getvalue().splitlines()]


def test_a_table_that_fits_is_as_wide_as_it_needs(monkeypatch):
    assert shown(monkeypatch, 80)[1] == "fsdp2 x8   32 x 1 rows, recomputed       38.9 GB   by hand only"


def test_lines_break_behind_commas_and_between_words_but_not_in_figures(monkeypatch):
    lines = shown(monkeypatch, 50)
    assert max(map(len, lines)) <= 50
    assert lines[-1].split("  ")[0] == "ddp"
    assert any("32 x 1 rows," in line and "38.9 GB" in line for line in lines)
    assert any(line.strip() == "recomputed" for line in lines)


def test_columns_that_are_spare_go_first(monkeypatch):
    lines = shown(monkeypatch, 34, ("sent a step",))
    assert max(map(len, lines)) <= 34
    assert not any("GB" in line for line in lines)
    assert any("32 x 1 rows," in line for line in lines)
