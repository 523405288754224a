"""Rows of metrics.jsonl come in; TensorBoard, Weights & Biases or Trackio show them, as they are asked for.

    open_trackers(["tensorboard", "wandb"], folder, config.model_dump(mode="json"))
        .log({"kind": "train", "step": 20, "loss": 3.1})      ->  train/loss = 3.1 at step 20

metrics.jsonl stays the record; a tracker is a window on it and never decides about the run. So a tracker
that fails is reported once and left out from then on, while training goes on. A resumed run repeats the
steps since its checkpoint, bit for bit: tracking.json remembers what was shown, and nothing is shown twice,
so steps only grow (after a rollback the curve goes on where the abandoned steps ended). Nothing is sent
anywhere unless the user has set that up: TensorBoard writes files only, Weights & Biases too without an
account or with WANDB_MODE=offline, Trackio too without TRACKIO_SPACE_ID or TRACKIO_SERVER_URL (with a
Hugging Face token it asks the hub whose that is).
"""

import contextlib
import io
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from scratchlm.runtime import write_text_atomically

log = logging.getLogger("scratchlm")

STATE_FILE = "tracking.json"
"""In the run folder: the run's id at the trackers and the last step that each kind of row was shown for."""
PROJECT = "scratchlm"
"""What the runs are filed under."""
WANDB_ADDRESS = "https://api.wandb.ai"
"""Where Weights & Biases is, unless WANDB_BASE_URL says otherwise."""
MAX_REASON = 200
"""Characters of a failure's reason that are shown."""
FLUSH_SECONDS = 10
"""A killed run loses at most this much of its curves in TensorBoard (whose default is 120 s)."""


class Tracker(Protocol):
    """One place where curves are shown."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` at `step`."""

    def close(self) -> None:
        """Write everything out."""


class Trackers:
    """All trackers of a run; none is fine too."""

    def __init__(self, trackers: Mapping[str, Tracker], path: Path, state: Mapping[str, Any]) -> None:
        """Keep the trackers by name, the file of what was shown, and what it says."""
        self._trackers, self._path, self._state = dict(trackers), path, dict(state)
        self._shown: dict[str, int] = dict(self._state.get("shown", {}))
        self._told = False

    def log(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics.jsonl; one whose step was shown before (a resumed run) is left out."""
        kind, step = str(row["kind"]), int(row["step"])
        if not self._trackers or step <= self._shown.get(kind, -1):
            return
        values = numbers_of(row)
        for name, tracker in list(self._trackers.items()):
            with _Failing(name) as attempt:
                tracker.log(step, values)
            if attempt.failed:
                del self._trackers[name]
        self._shown[kind] = step
        self._remember()

    def close(self) -> None:
        """Write everything out; more calls do nothing."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            with _Failing(name):
                tracker.close()

    def _remember(self) -> None:
        try:
            _write_state(self._path, {**self._state, "shown": self._shown})
        except OSError as error:
            if not self._told:
                log.warning(
                    "%s cannot be written (%s); a resumed run will show steps twice.", self._path, error
                )
            self._told = True


def open_trackers(names: Iterable[str], folder: Path, config: Mapping[str, Any]) -> Trackers:
    """Open the trackers called `names` for the run in `folder`.

    Args:
        names: Any of tensorboard, wandb, trackio.
        folder: The run folder; its name is the run's name.
        config: All settings as plain values, shown beside the curves.

    Raises:
        ValueError: There is no such tracker, or its library is not installed.
    """
    names = list(dict.fromkeys(names))
    require_trackers(names)
    state = folder / STATE_FILE
    saved: dict[str, Any] = {}
    opened: dict[str, Tracker] = {}
    for name in names:
        if not saved:
            saved = {"id": uuid.uuid4().hex[:8], "shown": {}, **_read_state(state)}
            folder.mkdir(parents=True, exist_ok=True)
            _write_state(state, saved)
        with _Failing(name):
            opened[name] = TRACKERS[name](folder, str(saved["id"]), config)
    return Trackers(opened, state, saved)


def require_trackers(names: Iterable[str]) -> None:
    """See that the libraries of trackers are installed, before hours of other work; imports nothing.

    Raises:
        ValueError: There is no such tracker, or its library is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"train.track={name}: unknown tracker; choose from {', '.join(TRACKERS)}.")
        if find_spec(name) is None:
            raise ValueError(f"tracking with {name} needs the 'track' extra: pip install 'scratchlm[track]'.")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row under slash-separated names, which trackers group by.

    Example: {"kind": "statistics", "step": 5, "layers": {"0": {"weight": 1.0}}} ->
    {"statistics/layers/0/weight": 1.0}. A row without any number counts: {"skip/count": 1.0}.
    """
    kind = str(row["kind"])
    values = dict(_flat(kind, {key: value for key, value in row.items() if key not in ("kind", "step")}))
    return values or {f"{kind}/count": 1.0}


def _flat(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(f"{name}/{key}", below)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin another event file; the id is not needed, the folder says which run it is."""
        del run_id
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        begins = not place.exists()
        self._writer = SummaryWriter(str(place), flush_secs=FLUSH_SECONDS)
        if begins:
            indented = json.dumps(dict(config), indent=2).replace("\n", "\n    ")
            self._writer.add_text("config", f"    {indented}")  # four blanks: Markdown shows it as it is

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run: on its server with an account, else files below RUN/wandb for `wandb sync`."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it: the id is the same after a resume."""
        mode = _wandb_mode()
        if mode != "online":  # version 0.31 reports its own use to the server even when offline
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read while wandb is imported
        import wandb

        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.resolve().name, id=run_id,
            dir=str(folder), config=dict(config), mode=mode, resume="allow", settings=settings,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values at a step; those of several rows at one step come together."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until everything is written, or sent."""
        self._run.finish()


class Trackio:
    """A Trackio run in the user's own Trackio folder: `trackio show` opens the dashboard."""

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it: Trackio knows runs by name, so the id is in it."""
        import trackio

        name = f"{folder.resolve().name}-{run_id}"
        with _without_output():
            self._run = trackio.init(
                project=PROJECT, name=name, config=dict(config), resume="allow",
                embed=False, auto_log_cpu=False, auto_log_gpu=False,
            )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what waits in memory."""
        import trackio

        with _without_output():
            trackio.finish()  # run.finish() alone would be called again, and print, when Python exits


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
"""Name in train.track -> what opens it."""


def _wandb_mode() -> Any:
    """What WANDB_MODE says; without it, online where an account is set up here and offline elsewhere."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked
    if os.environ.get("WANDB_API_KEY") or _in_netrc(os.environ.get("WANDB_BASE_URL", WANDB_ADDRESS)):
        return "online"
    log.warning(
        "wandb: no account is set up here (`wandb login`), so the run is recorded offline; "
        "`wandb sync` can send it later."
    )
    return "offline"


def _in_netrc(address: str) -> bool:
    """Whether the user's netrc file, where `wandb login` puts the key, knows the server."""
    import netrc

    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return urlsplit(address).hostname in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Keep a library that prints from writing into the live view."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class _Failing:
    """A context in which a tracker may fail: the failure is reported, and `failed` says that it happened.

    What is raised is not ours to know: a lost connection is an error of httpx2, requests or Go's side of
    wandb. A wish to stop (KeyboardInterrupt, SystemExit) is no Exception and goes through.
    """

    def __init__(self, name: str) -> None:
        self.name, self.failed = name, False

    def __enter__(self) -> "_Failing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.failed = isinstance(error, Exception)
        if self.failed:
            reason = " ".join(str(error).split())[:MAX_REASON] or "no reason given"
            log.warning(
                "tracking with %s failed (%s: %s) and ends here; training goes on, "
                "metrics.jsonl has every row.",
                self.name,
                type(error).__name__,
                reason,
            )
        return self.failed


def _read_state(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    write_text_atomically(path, json.dumps(dict(state)) + "\n")
