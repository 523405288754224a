r"""Headings and rows come in; a table in Markdown goes out.

    table(["cell", "loss"], [("base", "1.20"), ("a|b", "1.10")]) ->   | cell | loss |
                                                                      |---|---:|
                                                                      | base | 1.20 |
                                                                      | a\\|b | 1.10 |

Source: GitHub Flavored Markdown, section 4.10, https://github.github.com/gfm/#tables-extension-.
"""

from collections.abc import Collection, Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, words: Collection[int] = (0,)) -> str:
    """Return a table without a line break at its end.

    Args:
        head: The headings.
        rows: The cells of each row, as many as headings.
        words: The columns that hold words and begin at the left; figures end at the right.
    """
    rule = "".join("---|" if column in words else "---:|" for column in range(len(head)))
    return "\n".join([_line(head), f"|{rule}", *(_line([str(cell) for cell in row]) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
