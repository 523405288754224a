"""The frame: help, version, errors, streams, signals."""

import os
import re
import subprocess
import sys

import pytest

from scratchlm.cli import main
from scratchlm.cli.console import count, duration, printable, size
from scratchlm.cli.errors import lines_of

COMMANDS = [
    ["demo"], ["run"], ["train"], ["generate"], ["evaluate"], ["report"], ["plan"], ["doctor"], ["help"],
    ["launch"], ["runs"], ["visualize"], ["study"], ["study", "list"], ["study", "run"], ["study", "export"],
    ["corpus"], ["corpus", "list"], ["corpus", "show"], ["corpus", "fetch"], ["corpus", "write"],
    ["tokenizer"], ["tokenizer", "train"], ["tokenizer", "encode"], ["tokenizer", "decode"],
    ["tokenizer", "inspect"], ["data"], ["data", "prepare"], ["data", "merge"], ["data", "show"],
]  # fmt: skip


def python(*words, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "scratchlm", *words], capture_output=True, text=True, env=environment, **more
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(cli, words):
    found = cli(*words, "--help")
    assert found.code == 0
    assert "Usage: scratchlm" in found.out
    assert "\x1b" not in found.out


@pytest.mark.parametrize("words", [[], ["corpus"], ["tokenizer"], ["data"]])
def test_a_bare_group_shows_its_help(cli, words):
    found = cli(*words)
    assert found.code == 0
    assert "Commands" in found.out or "Make a model" in found.out


def test_version(cli):
    from scratchlm import __version__

    assert cli("--version") == (0, f"scratchlm {__version__}\n", "")
    assert python("--version").stdout == f"scratchlm {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "demo"], "No such command 'trian'. Did you mean 'train'? See: scratchlm --help"),
        (["train"], "Missing argument 'recipe'. See: scratchlm train --help"),
        (["train", "demo", "--foldr", "x"], "No such option: --foldr"),
        (["generate", "x", "-n", "some"], "Invalid value for '-n'"),
        (["data", "prepare", "stories"], "Missing option '--tokenizer'"),
        (["corpus", "show", "stories", "--split", "test"], "Invalid value for '--split'"),
    ],
)
def test_a_wrong_call_is_one_line_with_a_pointer(cli, words, message):
    error = cli(*words).error
    assert message in error
    assert "See: scratchlm" in error


def test_debug_shows_the_traceback_wherever_it_stands(cli):
    for words in (["--debug", "train", "nope"], ["train", "nope", "--debug"]):
        found = cli(*words)
        assert found.code == 2
        assert "Traceback (most recent call last)" in found.err
        assert "unknown recipe 'nope'" in found.err


def test_an_unforeseen_exception_is_one_line_that_asks_for_debug(cli, monkeypatch):
    from scratchlm import runtime

    monkeypatch.setattr(runtime, "processor_name", lambda: 1 / 0)
    error = cli("doctor").error
    assert re.search(r"internal error in test_cli_basics|internal error in \w+\.py:\d+", error)
    assert "ZeroDivisionError: division by zero. Run again with --debug for the traceback." in error


def test_a_value_error_of_a_library_is_an_internal_error():
    def call(function, *arguments):
        try:
            function(*arguments)
        except ValueError as error:
            return lines_of(error)[0]
        raise AssertionError

    assert call(int, "x").startswith("internal error")
    from scratchlm.config import parse_override

    assert call(parse_override, "x").startswith("'x': an override is key=value")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: no such file; check the path."),
        (OSError(28, "No space left on device", "a"), "a: no space left on device; free some space; a run"),
        (OSError(30, "Read-only file system", "/x"), "/x: read-only file system; choose a folder on a disk"),
        (PermissionError(13, "Permission denied", "b"), "b: permission denied; choose a place that you may"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start"), "byte 1 is not valid UTF-8"),
        (MemoryError(), "out of memory: choose a smaller train.micro_batch_tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: choose a smaller"),
    ],
)
def test_trouble_with_the_machine_says_what_to_do(error, expected):
    assert lines_of(error)[0].startswith(expected)


def test_ctrl_c_is_one_line_and_exit_code_130(cli, monkeypatch):
    from scratchlm import runtime

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "processor_name", interrupt)
    found = cli("doctor")
    assert found.code == 130
    assert found.err.splitlines() == ["stopped."]


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m scratchlm corpus show stories -n 500 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_characters_that_a_terminal_cannot_show_are_replaced(tmp_path):
    (tmp_path / "a.txt").write_text("Gr\u00fc\u00dfe \u4f60\u597d, " * 40, encoding="utf-8")
    done = python("corpus", "show", "a.txt", "-n", "1", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "Gr??e" in done.stdout


def test_shell_completion_answers(tmp_path):
    more = {"_SCRATCHLM_COMPLETE": "complete_bash", "COMP_WORDS": "scratchlm tr", "COMP_CWORD": "1"}
    assert python(cwd=tmp_path, env=more).stdout.split() == ["train"]
    more |= {"COMP_WORDS": "scratchlm train de", "COMP_CWORD": "2"}
    assert python(cwd=tmp_path, env=more).stdout.split() == ["demo", "demo-speed"]


def test_warnings_are_lines_on_stderr(cli, monkeypatch):
    from scratchlm import runtime

    def warn():
        runtime.log.warning("something is %s", "slow")
        return "a processor"

    monkeypatch.setattr(runtime, "processor_name", warn)
    found = cli("doctor")
    assert found.code == 0
    assert "warning: something is slow\n" in found.err


def test_numbers_are_written_for_people():
    assert [count(950), count(12_345), count(1_234_567)] == ["950", "12,345", "1.23 M"]
    assert [size(12), size(1_500_000), size(2.25e9)] == ["12 B", "1.5 MB", "2.25 GB"]
    assert [duration(4.21), duration(75), duration(7300), duration(float("inf"))] == [
        "4.2 s", "1 min 15 s", "2 h 1 min", "-",
    ]  # fmt: skip
    assert printable("a\x1b[2Jb\n\tc") == "a\ufffd[2Jb\n\tc"


def test_main_takes_the_words_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scratchlm", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("scratchlm ")
