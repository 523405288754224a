"""The command line: words come in, an exit code goes out.

    main(["train", "quick", "optimizer.lr=1e-3"]) -> 0

One file per command group. Each imports the library only inside the command that needs it, so that `--help`
answers before torch could even be found on the disk. Exit codes: 0 done, 2 an error (one readable line on
stderr), 130 stopped by Ctrl-C, 143 stopped by SIGTERM (a run has saved a checkpoint in both cases).
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
TERMINATED = 143
"""128 + SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `scratchlm`; those of this process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        from scratchlm import __version__

        sys.stdout.write(f"scratchlm {__version__}\n")
        return 0
    words, debug = _without_debug(words)
    _prepare_streams()
    try:
        return _run(words)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except (Exception, KeyboardInterrupt) as error:  # the one place where every error becomes a line
        from scratchlm.cli.errors import report

        return report(error, debug=debug)


def command() -> NoReturn:
    """Be the command `scratchlm`: run one command, and end this process with its exit code."""
    code = main()
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        # a thread of gloo's may abort an interpreter that is being taken down; all is said, so leave at once
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(words: list[str]) -> int:
    from typer.main import get_command

    from scratchlm.cli.app import build_app

    result = get_command(build_app()).main(args=words, prog_name="scratchlm", standalone_mode=False)
    sys.stdout.flush()
    if result == INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """Take the global `--debug` from anywhere before a bare `--`: it is wanted after an error."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _prepare_streams() -> None:
    """Never fail because a terminal cannot show a character."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _silence_stdout() -> None:
    """Send what is still buffered nowhere: whoever read our output has left."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
