"""Documentation stays true: its Python runs, its links and file names exist, its navigation is complete."""

import importlib.util
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SOLUTION = re.compile(
    r'^<details class="success" markdown="1"><summary>Solution</summary>\n\n(.*?)^</details>$',
    re.MULTILINE | re.DOTALL,
)
"""Hidden on the site and on GitHub alike; a blank line behind the summary, or GitHub reads no Markdown."""


def blocks(page, language):
    """Pairs of (line number, code) of all fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start(2)].count("\n"), found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


def name(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    with redirect_stdout(io.StringIO()):
        for line, code in blocks(page, "python"):
            # the line breaks make line numbers in a traceback those of the page
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_file_names_on_a_page_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    quoted = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml)|(?:loss|checkpoint|registry|config)\.py)`", text)
    places = (ROOT / "src" / "scratchlm", ROOT, ROOT / "docs")
    hypothetical = {"optim/signum.py", "tests/adapters.py"}  # the reader's part, the course's file
    missing = {
        path
        for path in quoted
        if path not in hypothetical and not any((place / path).is_file() for place in places)
    }
    assert not missing, f"{name(page)} names files that do not exist: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    broken = [link for link in links if "://" not in link and not (page.parent / link).is_file()]
    assert not broken, f"{name(page)}: {broken}"


def test_every_page_is_in_the_navigation_once():
    listed = re.findall(
        r":? ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == [name(page) for page in PAGES]


@pytest.mark.parametrize("page", sorted((DOCS / "course").glob("*.md")), ids=name)
def test_a_course_page_is_short_and_has_idea_experiment_reading_and_hidden_solutions(page):
    text = page.read_text(encoding="utf-8")
    assert 60 <= text.count("\n") <= 150
    for part in ("```python\n", "```sh\nscratchlm ", "## Read\n", "## Exercise"):
        assert part in text, part
    exercises = text.partition("## Exercise")[2]
    asked = max(1, len(re.findall(r"^\*\*\d\.\*\*", exercises, re.MULTILINE)))
    hidden = SOLUTION.findall(exercises)
    assert len(hidden) == asked
    assert all(len(solution) > 40 for solution in hidden)


def test_the_plugin_of_the_how_to_page_loads_from_a_file_and_trains(tmp_path):
    from scratchlm.registry import load_plugin

    _, code = blocks(DOCS / "how-to" / "add-a-part.md", "python")[0]
    path = tmp_path / "my_signum.py"
    path.write_text(code.replace('"signum"', '"signum_from_a_file"'), encoding="utf-8")
    load_plugin(path)

    import torch

    from scratchlm.optim import OPTIMIZERS

    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = OPTIMIZERS.build("signum_from_a_file", [p], lr=0.1, weight_decay=0.0)
    for _ in range(30):
        optimizer.zero_grad()
        (p - 1).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.ones(3), atol=0.11, rtol=0)


def test_packing_and_loss_ignore_the_same_target_as_the_page_on_layers_says():
    from scratchlm.data.packing import IGNORED
    from scratchlm.loss import IGNORE

    assert IGNORED == IGNORE == -1


def test_site_builds_without_warnings_and_fetches_nothing_when_read(tmp_path):
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install 'scratchlm[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:)?//[^\"]*\"", page.read_text()
        )
        assert not fetched, f"{page.name}: {fetched}"
