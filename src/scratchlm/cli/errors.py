"""Errors: an exception comes in, one readable line on stderr and an exit code go out.

A `ValueError` raised by this package is the user's mistake and its message says what to do. Everything that
nobody foresaw is "internal error" and asks for `--debug`, which shows the traceback.
"""

import contextlib
import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from scratchlm.cli import INTERRUPTED, TERMINATED
from scratchlm.cli.console import err
from scratchlm.cli.processes import ERROR_FILE, LAUNCHER

ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "choose a place that you may write to, or change its permissions",
    errno.EPERM: "choose a place that you may write to, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOSPC: "free some space; a run goes on from its last checkpoint with --resume",
    errno.EDQUOT: "free some space; a run goes on from its last checkpoint with --resume",
    errno.EFBIG: "the system limits the size of files here (ulimit -f); raise it, then go on with --resume",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "choose another name",
}


class Interrupted(Exception):  # noqa: N818 - not an error: the user stopped the command
    """The user stopped a command; the message says how to go on."""

    def __init__(self, message: str, *, by: str | None = "SIGINT") -> None:
        """Say how to go on, and which signal it was."""
        super().__init__(message)
        self.code = TERMINATED if by == "SIGTERM" else INTERRUPTED


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the disk that says no place the name of what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def report(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong and return the exit code.

    Args:
        error: What was raised.
        debug: Show the traceback instead of one line.
    """
    if isinstance(error, KeyboardInterrupt | Interrupted) or type(error).__name__ == "Abort":
        if not _hand_on(error, str(error) or "stopped."):
            err().print(str(error) or "stopped.", style="yellow")
        return getattr(error, "code", INTERRUPTED)
    if debug:
        text = "".join(traceback.format_exception(error))
        if not _hand_on(error, text):
            sys.stderr.write(text)
        return 2
    lines = lines_of(error)
    if lines and _hand_on(error, "\n".join(lines)):
        return 2
    for line in lines:
        show(line)
    return 2 if lines else 0


def _hand_on(error: BaseException, text: str) -> bool:
    """Leave the message where whoever started this process reads it; return whether it will be told there.

    The file has torchrun's format, and torchrun shows it in addition.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    extra = {"timestamp": str(int(time.time())), "py_callstack": text}
    message = {"message": text, "kind": type(error).__name__, "extraInfo": extra}
    with contextlib.suppress(OSError):  # then it is told here
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
        return LAUNCHER in os.environ
    return False


def show(message: str) -> None:
    """Print one error line."""
    from rich.text import Text

    err().print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))


def lines_of(error: BaseException) -> list[str]:
    """The readable lines for an exception: one for each mistake; none when help has been shown instead."""
    if hasattr(error, "format_message"):  # typer's: an unknown option, a missing argument
        return _usage(error)
    if isinstance(error, UnicodeDecodeError):
        return [f"byte {error.start} is not valid UTF-8 ({error.reason}); convert the text to UTF-8 first."]
    if isinstance(error, OSError):
        return [_system(error)]
    native = re.search(r"\(os error (\d+)\)", str(error))
    if native and not isinstance(error, ValueError):  # from compiled code, such as the writer of safetensors
        return [_system(OSError(int(native[1]), os.strerror(int(native[1]))))]
    if isinstance(error, ValueError) and _is_ours(error):
        return str(error).splitlines() or [type(error).__name__]
    if _plugin_place(error):
        return [f"{_plugin_place(error)}: {type(error).__name__}: {getattr(error, 'msg', None) or error}"]
    if isinstance(error, ImportError) and _is_ours(error):
        return [str(error)]
    if isinstance(error, MemoryError) or "memory" in str(error).partition("\n")[0].lower():
        return [
            "out of memory: choose a smaller train.micro_batch_tokens, model.d_model or "
            "model.context_length; `scratchlm plan` shows what each needs."
        ]
    return [_internal(error)]


def _usage(error: BaseException) -> list[str]:
    message = error.format_message()  # type: ignore[attr-defined] - asked for above
    message = message.replace("?.", "?").replace("Value error, ", "")
    if not message:
        return []
    context = getattr(error, "ctx", None)
    hint = f" See: {context.command_path} --help" if context is not None else ""
    return [message + ("" if message.endswith((".", "?", ")")) else ".") + hint]


def _system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = ADVICE.get(error.errno or 0)
    reason = reason if str(reason).isupper() else str(reason)[:1].lower() + str(reason)[1:]
    return f"{where}{reason.removesuffix('.')}" + (f"; {advice}." if advice else ".")


def _is_ours(error: BaseException) -> bool:
    """Whether this package or a plugin raised it, rather than a library that we called wrongly."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("scratchlm")


def _plugin_place(error: BaseException) -> str:
    """File and line of a plugin in which `error` arose; empty where it did not."""
    package = Path(__file__).parents[1]
    if isinstance(error, SyntaxError) and error.filename and package not in Path(error.filename).parents:
        return f"{error.filename}, line {error.lineno}"
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("scratchlm_plugin_")
    ]
    return f"{places[-1][0]}, line {places[-1][1]}" if places else ""


def _internal(error: BaseException) -> str:
    place = ""
    ours = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("scratchlm")
    ]
    if ours:
        frame, line = ours[-1]
        place = f" in {Path(frame.f_code.co_filename).name}:{line}"
    reason = str(error).strip().partition("\n")[0][:200]
    return (
        f"internal error{place}: {type(error).__name__}: {reason}. Run again with --debug for the traceback."
    )
