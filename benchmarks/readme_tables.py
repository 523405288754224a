"""The README's tables: two markers and Markdown come in; the README is written with it between them."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def put(begin: str, end: str, made: str) -> None:
    """Replace what stands between two lines of the README.

    Args:
        begin: The marker before it, which stays.
        end: The marker after it.
        made: The new lines.
    """
    from scratchlm.runtime import write_text_atomically

    text = README.read_text(encoding="utf-8")
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    write_text_atomically(README, f"{before}\n{made}\n{after}")
