r"""A function in somebody's Python file, in a process of its own: an answer comes in, a number goes out.

    parent   {"prompt": ..., "response": ..., "answer": ...}\n   ->   child, its standard input
    child    {"reward": 1.0}\n  or  {"error": "..."}\n           ->   parent

A function may never return, take all memory or end its process. The parent waits for `seconds` and no longer;
then it kills the process with all that it started and begins a new one for the next answer. What the function
prints goes to standard error and disturbs nothing. It is no sandbox: the file runs with the rights of whoever
started it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 60.0
"""How long a process may take to read the file: it may import a large library."""

MOST_BYTES = 1 << 16
"""Of one answer of the child: a number or a message."""

_CHILD = """
import importlib.util, json, os, sys
out = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
def tell(found):
    out.write(json.dumps(found) + "\\n")
    out.flush()
file, name = sys.argv[1:]
try:
    spec = importlib.util.spec_from_file_location("reward_program", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise NameError(f"there is no function {name!r} in it")
except Exception as error:
    tell({"error": f"{type(error).__name__}: {error}"[:1000]})
    sys.exit(1)
tell({"ready": True})
for line in sys.stdin:
    try:
        tell({"reward": float(function(**json.loads(line)))})
    except Exception as error:
        tell({"error": f"{type(error).__name__}: {error}"[:1000]})
"""
"""What the child runs: whatever a stranger's function raises is told, so it alone catches everything."""


class RewardProcess:
    """Calls a function of a file, each time for a bounded time."""

    def __init__(self, file: Path, function: str, seconds: float) -> None:
        """Keep what to call; the process begins with `start` or the first call.

        Args:
            file: A Python file.
            function: (prompt, response, answer) -> a number.
            seconds: How long one call may take.

        Raises:
            ValueError: There is no such file, or no time.
        """
        if not file.is_file() or file.suffix != ".py":
            raise ValueError(f"reward.file={file}: no such Python file.")
        if not seconds > 0:
            raise ValueError(f"reward.seconds={seconds}: must be above 0.")
        self.file, self.function, self.seconds = file, function, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, prompt: str, response: str, answer: str) -> tuple[float | None, str]:
        """Return (number, "") or (None, why there is none).

        Raises:
            ValueError: The file cannot be run or has no such function: no answer will ever be judged.
        """
        self.start()
        asked = json.dumps({"prompt": prompt, "response": response, "answer": answer}) + "\n"
        found = self._exchange(asked.encode("utf-8"), self.seconds)
        if found is None:
            return None, f"took longer than {self.seconds:g} seconds"
        if "reward" in found:
            return float(found["reward"]), ""
        return None, str(found["error"])

    def close(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, and all of its group
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        process.wait()

    def start(self) -> None:
        """Begin the process, if there is none.

        Raises:
            ValueError: The file cannot be run or has no such function.
        """
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(self.file.resolve()), self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a group of its own: Ctrl-C does not reach it, and one kill ends all
        )
        os.set_blocking(self._process.stdin.fileno(), False)
        found = self._exchange(b"", START_SECONDS)
        if found is None or "ready" not in found:
            why = f"took longer than {START_SECONDS:g} seconds" if found is None else found["error"]
            self.close()
            raise ValueError(f"reward.file={self.file}: cannot be used: {why}.")

    def _exchange(self, asked: bytes, seconds: float) -> dict[str, object] | None:
        """Send bytes and return the child's next line; None: not in time. A child that is lost is ended."""
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        deadline, received = time.monotonic() + seconds, b""
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            readable, writable, _ = select.select([stdout], [stdin] if asked else [], [], max(0.0, left))
            if not readable and not writable:
                self.close()
                return None
            if writable:
                try:
                    asked = asked[os.write(stdin, asked) :]
                except BrokenPipeError:
                    asked = b""  # its output tells, or ends
            if readable:
                part = os.read(stdout, MOST_BYTES)
                received += part
                if not part or len(received) > MOST_BYTES:
                    self.close()
                    return {"error": "ended its process" if not part else "wrote more than a number"}
        return json.loads(received)
