"""Code that a page shows is the code of the file it names: blocks marked `py` begin with the file's name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCERPT = re.compile(r"^```py\n# ([\w./]+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {page: EXCERPT.findall(page.read_text(encoding="utf-8")) for page in (ROOT / "docs").rglob("*.md")}
CASES = [(page.name, path, code) for page, excerpts in PAGES.items() for path, code in excerpts]


def stands_in(part, lines):
    """Whether some lines stand in a file one after the other, however far they are indented."""
    return any(lines[start : start + len(part)] == part for start in range(len(lines)))


@pytest.mark.parametrize(("page", "path", "code"), CASES, ids=[f"{page}:{path}" for page, path, _ in CASES])
def test_an_excerpt_stands_in_the_file_it_names(page, path, code):
    lines = [
        line.strip() for line in (ROOT / "src" / "scratchlm" / path).read_text(encoding="utf-8").splitlines()
    ]
    # "..." on a line of its own leaves lines out
    for part in re.split(r"^\s*\.\.\.\n", code, flags=re.MULTILINE):
        shown = [line.strip() for line in part.strip("\n").split("\n")]
        assert stands_in(shown, lines), f"{page}: this is not in {path}:\n{part}"


def test_every_block_of_that_kind_names_its_file():
    for page, excerpts in PAGES.items():
        blocks = re.findall(r"^```py$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(blocks) == len(excerpts), f"{page.name}: a block marked py begins with '# path/of/file.py'"
