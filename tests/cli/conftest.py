"""The command line called in this process: words in, exit code and both streams out."""

from typing import NamedTuple

import pytest
from tiny_settings import TINY, TINY_STORIES

from scratchlm.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line, after checking that it is one and that there is no traceback."""
        assert self.code == 2, self
        shown = [line for line in self.err.splitlines() if line.strip()]
        lines = [line for line in shown if not line.startswith("warning: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0]


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Call the command line inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished tiny run of the demo recipe, made once; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished") / "small"
    words = ["train", "demo", *TINY, *TINY_STORIES, "--folder", str(folder)]
    assert main(words) == 0
    return folder


@pytest.fixture
def stories(tmp_path):
    """A text file of stories."""
    from scratchlm.data.stories import generate_story

    path = tmp_path / "stories.txt"
    text = "\n<|endoftext|>\n".join(generate_story(3, index) for index in range(60))
    path.write_text(text, encoding="utf-8")
    return path
