"""`scratchlm study list`: the shipped studies, and what each measured, in lines that fit the terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from scratchlm.lab.shipped import Shipped

WIDTH = 100
"""Characters of a line at most; longer ones are hard to read, however wide the terminal is."""
INDENT = 2


def list_studies() -> None:
    """List the shipped studies with what they measured."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from scratchlm.cli.console import out
    from scratchlm.lab.shipped import shipped

    width = min(out().width, WIDTH) if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    studies = shipped()
    for one in studies:
        console.print(Text(one.name, "bold cyan"))
        for line, more in lines_of(one):
            console.print(Padding(line, (0, 0, 0, INDENT * (2 if more else 1)), expand=False))
        console.print()
    measured = sum(bool(one.conclusions) for one in studies)
    console.print(f"{measured} of {len(studies)} studies come with measured results.")
    console.print("scratchlm study show NAME   which runs it would make, and how long they would take here")
    console.print("scratchlm study run NAME    make them (--scale gpu: at full size) and say what came out")


def lines_of(one: "Shipped") -> "list[tuple[Text, bool]]":
    """What stands below a study's name; `True` for lines that explain the one above."""
    from rich.text import Text

    lines = [(Text(one.question, "bold"), False), (Text(one.cells, "dim"), False)]
    for size, conclusion in one.conclusions.items():
        first, *rest = conclusion.replace(". ", ".\n").split("\n")
        lines.append((Text.assemble((f"measured ({size}): ", "dim"), (first, "green")), False))
        lines += [(Text(sentence), True) for sentence in rest]
    if not one.conclusions:
        words = Text.assemble(
            ("no result comes along; measure: ", "yellow"), f"scratchlm study run {one.name}"
        )
        lines.append((words, False))
    return lines
