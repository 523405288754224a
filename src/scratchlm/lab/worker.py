"""One cell in a process of its own: a request file comes in, a run folder and progress come out.

    python -m scratchlm.lab.worker STATE/KEY.request       started by runner.py, never by hand

Progress goes to a small file twice a second; what is the cell's own fault goes to a failure file, and
anything else is a traceback in its log. When the runner dies, its end of our standard input closes: the run
then stops as on SIGTERM, with a checkpoint, and no process is left behind.
"""

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from scratchlm.config import load
from scratchlm.lab.cells import BEYOND, COORDINATES, read_note
from scratchlm.lab.experiments import EXPERIMENTS
from scratchlm.registry import load_plugin
from scratchlm.runtime import write_text_atomically
from scratchlm.train.events import Event, PhaseStarted, StepEnded, Validated

SECONDS_BETWEEN_NOTES = 0.5
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED = 3
"""Exit code where a failure file says what happened."""


def main(request_path: Path) -> int:
    """Do what a request asks for and return an exit code."""
    request = json.loads(request_path.read_text(encoding="utf-8"))
    for plugin in request["plugins"]:
        load_plugin(Path(plugin))
    if request["watched"]:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    failure = Path(request["failure"])
    from scratchlm.train.session import NonFiniteLossError

    try:
        if request["do"] == "prepare":
            from scratchlm.lab.shared import prepare_shared

            prepare_shared(request["config"], Path(request["folder"]), Notes(Path(request["progress"])))
        elif request["do"] == "start":
            from scratchlm.lab.start import make_start

            make_start(request["config"], Path(request["folder"]), Notes(Path(request["progress"])).take)
        else:
            _run_cell(request)
    except NonFiniteLossError as error:
        return _fail(failure, "diverged", error)
    except OSError as error:
        return _fail(failure, "disk full" if error.errno in DISK_FULL else "failed", error)
    except (ValueError, MemoryError) as error:
        return _fail(failure, "failed", error)
    return 0


class Notes:
    """An on_event that writes where a run is."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self.path, self.last = path, -SECONDS_BETWEEN_NOTES
        self.now: dict[str, Any] = {"phase": "starting"}

    def take(self, event: Event) -> None:
        """Remember what `event` says, and write it if the last note is old."""
        if isinstance(event, PhaseStarted):
            self.now["phase"] = event.name
        elif isinstance(event, Validated):
            self.now["valid_loss"] = event.loss
        elif isinstance(event, StepEnded):
            if "step" not in self.now:
                self.last = -SECONDS_BETWEEN_NOTES  # the first step is told at once
            self.now |= {
                "phase": "training",
                "step": event.step,
                "total": event.total_steps,
                "loss": event.loss,
                "tokens_per_second": event.tokens_per_second,
                "seconds_left": event.seconds_left,
            }
        self.write()

    def write(self) -> None:
        """Write, at most twice a second; without waiting for the disk: a lost note costs nothing."""
        if time.monotonic() - self.last >= SECONDS_BETWEEN_NOTES:
            self.last = time.monotonic()
            temporary = self.path.with_name(f"{self.path.name}.new")
            temporary.write_text(json.dumps(self.now), encoding="utf-8")
            temporary.replace(self.path)


def _run_cell(request: dict[str, Any]) -> None:
    experiment = EXPERIMENTS.build(request["experiment"])
    config = load(experiment.settings, base=request["config"])
    folder = Path(request["folder"])
    if request["shared"] is not None:
        from scratchlm.lab.shared import link_shared

        link_shared(Path(request["shared"]), folder)
    summary = read_note(folder / "summary.json")  # a run that has ended has only to be measured
    if not summary or summary.get("stopped_early"):
        summary = experiment.run(config, folder, Notes(Path(request["progress"])).take)
    for name in () if summary.get("stopped_early") else request.get("measures", ()):
        _measure(name, config, folder)


def _measure(name: str, config: Any, folder: Path) -> None:
    """Make one of the files that a study wants of a run that has ended."""
    if (folder / name).is_file():
        return
    if name == BEYOND:
        from scratchlm.lab.beyond import measure_beyond as measure
    else:
        assert name == COORDINATES, name
        from scratchlm.lab.coordinates import measure_coordinates as measure
    measure(config, folder)


def _fail(path: Path, kind: str, error: BaseException) -> int:
    text = str(error) or type(error).__name__
    number = getattr(error, "errno", None)
    write_text_atomically(path, json.dumps({"kind": kind, "error": text, "errno": number}) + "\n")
    return FAILED


def _stop_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
