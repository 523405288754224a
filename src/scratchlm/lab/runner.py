"""A study and a folder come in; each missing cell is run in a process of its own, and rows.csv comes out.

    resolve all cells -> prepare shared data -> start up to `jobs` processes -> a row for each that ends

A cell that fails is a row with its error and costs no other cell. Calling again runs what is missing, goes on
with what was interrupted from its last checkpoint, and tries again what failed; a cell that diverged has a
result. Ctrl-C and SIGTERM stop every process with a checkpoint. A full disk stops the study: all other cells
would fail likewise.
"""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.config import Config, load
from scratchlm.lab.cells import Cell, State, StudyFolder, read_note, resolve, state_of
from scratchlm.lab.processes import Job, Task, drain, start
from scratchlm.lab.rows import Result, result_of, write_rows
from scratchlm.lab.search import Point, is_open, points
from scratchlm.lab.spec import ScaleName, Study
from scratchlm.lab.start import Chain, start_folder
from scratchlm.lock import run_lock
from scratchlm.runtime import num_cores, write_text_atomically
from scratchlm.train.signals import StopSignals

POLL_SECONDS = 0.1
UNDONE = ("missing", "interrupted", "failed")
"""States of cells that a call runs."""


class CellView(NamedTuple):
    """What a watcher is told of one cell."""

    cell: Cell
    state: State | str
    """Of its folder, or "running"."""
    progress: dict[str, Any]
    """What its process wrote last: phase, step, total, loss, seconds_left."""


class Snapshot(NamedTuple):
    """The whole study at one moment."""

    cells: list[CellView]
    preparing: int
    """Sets of shared data, or a start, that are being made."""


OnChange = Callable[[Snapshot], None]


class Outcome(NamedTuple):
    """How a call ended."""

    results: list[Result]
    stopped_by: str | None
    """The signal that ended it; None where all cells were run."""
    num_left: int
    """Cells without a row."""


class StudyRun:
    """One call of run_study: what is queued, what runs, what is known."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        scale: ScaleName,
        jobs: int,
        plugins: Sequence[Path],
        watch: OnChange,
    ) -> None:
        """Resolve the cells; nothing is started yet."""
        self.study, self.scale, self.folder = study, scale, StudyFolder(folder)
        self.jobs, self.plugins, self.watch = jobs, plugins, watch
        self.running: list[Job] = []
        self.tried: set[str] = set()
        self.signals = StopSignals()
        self.cells = self._known_cells()

    def run(self) -> Outcome:
        """Run until every cell has a row, or a signal."""
        with self.signals, self._ending_processes():
            while not self.signals.requested():
                self._settle()
                self._prepare()
                queue = [cell for cell in self.cells if self._wanted(cell)]
                self._work_off(queue)
                known = len(self.cells)
                self.cells = self._known_cells() if is_open(self.study) else self.cells
                if len(self.cells) == known and not any(self._wanted(cell) for cell in self.cells):
                    break
        results = self._write_rows()
        self._tell()
        return Outcome(results, self.signals.name, len(self.cells) - len(results))

    def _known_cells(self) -> list[Cell]:
        """The cells that results so far decide; budgets in minutes are settled once, in a file."""
        note, budget = read_note(self.folder.steps), self.study.budget
        same = budget is not None and note.get("minutes") == budget.minutes
        steps: dict[str, int] = note.get("steps", {}) if same else {}
        found = self._proposals(steps) if is_open(self.study) else points(self.study, {})
        return resolve(self.study, found, steps)

    def _settle(self) -> None:
        """Keep what a budget in minutes became, so that the cells stay the same."""
        if self.study.budget is not None and self.study.budget.minutes is not None:
            settled = {cell.label: cell.config.train.steps for cell in self.cells}  # type: ignore[attr-defined]
            note = {"minutes": self.study.budget.minutes, "steps": settled}
            write_text_atomically(self.folder.steps, json.dumps(note, indent=2) + "\n")

    def _proposals(self, steps: dict[str, int]) -> list[Point]:
        """Points of a search by results: told what is there, until it waits for more."""
        results: dict[str, float] = {}
        while True:
            found = points(self.study, results)
            known = {}
            for point in found:
                rows = [self._result(cell) for cell in resolve(self.study, [point], steps)]
                ended = [row for row in rows if row is not None]
                if point.label not in results and len(ended) == len(rows):
                    known[point.label] = score(ended, self.study.metric)
            if not known:
                return found
            results |= known

    def _result(self, cell: Cell) -> Result | None:
        return result_of(self.study, self.scale, self.folder, cell)

    def _wanted(self, cell: Cell) -> bool:
        return cell.key not in self.tried and state_of(self.folder, cell) in (
            "missing",
            "interrupted",
            "failed",
        )

    def _prepare(self) -> None:
        """Make what cells share, each set once."""
        if self.study.start:
            self._prepare_start()
        if self.study.experiment != "train":
            return
        from scratchlm.lab.shared import is_prepared, shared_key

        wanted = {shared_key(cell.config): cell for cell in self.cells if self._wanted(cell)}  # type: ignore[arg-type]
        tasks = [
            Task(key, "prepare", self.folder.shared(key), cell.config, None, self.study.experiment)
            for key, cell in wanted.items()
            if not is_prepared(self.folder.shared(key)) and key not in self.tried
        ]
        self.tried |= {task.key for task in tasks}
        self._run_tasks(tasks)
        errors = {task.key: read_note(self.folder.note(task.key, "failure")) for task in tasks}
        failed = {key: note for key, note in errors.items() if note}
        if failed and len(failed) == len(wanted):
            raise ValueError(next(iter(failed.values()))["error"])  # no cell could run
        for cell in self.cells:
            key = shared_key(cell.config)  # type: ignore[arg-type]
            if key in failed and self._wanted(cell):
                self.tried.add(cell.key)
                write_text_atomically(self.folder.note(cell.key, "failure"), json.dumps(failed[key]) + "\n")

    def _prepare_start(self) -> None:
        """Make what all cells go on from.

        Raises:
            ValueError: It cannot be made, so no cell could run.
        """
        base = start_folder(self.study)
        assert base is not None, self.study.name
        summary = read_note(self.folder.path / base / "summary.json")
        done = bool(summary) and not summary.get("stopped_early")
        if done or not any(self._wanted(cell) for cell in self.cells):
            return
        key, chain = base.parent.name, Chain(links=self.study.start)
        self._run_tasks(
            [Task(key, "start", self.folder.path / base.parent, chain, None, self.study.experiment)]
        )
        failure = read_note(self.folder.note(key, "failure"))
        if failure:
            raise ValueError(f"{self.study.name}: what its cells go on from: {failure['error']}")

    def _located(self, cell: Cell) -> Config:
        """A cell's settings with the start's folder as it lies on this machine."""
        if not self.study.start:
            return cell.config
        base = (self.folder.path / cell.config.base).resolve()  # type: ignore[attr-defined]
        return cell.config.model_copy(update={"base": base})

    def _work_off(self, queue: Sequence[Cell]) -> None:
        tasks = []
        for cell in queue:
            self.tried.add(cell.key)
            shared = None
            if self.study.experiment == "train":
                from scratchlm.lab.shared import shared_key

                shared = self.folder.shared(shared_key(cell.config))  # type: ignore[arg-type]
            run = self.folder.cell(cell)
            how = self.study.experiment, cell.measures
            tasks.append(Task(cell.key, "cell", run, self._located(cell), shared, *how))
        self._run_tasks(tasks)

    def _run_tasks(self, tasks: list[Task]) -> None:
        """Run tasks, at most `jobs` at once, until all have ended or somebody wants to stop."""
        waiting = list(tasks)
        while (waiting or self.running) and not self.signals.requested():
            while waiting and len(self.running) < self.jobs:
                task = waiting.pop(0)
                self.running.append(start(task, self.folder, threads=self._threads(), plugins=self.plugins))
            for job in [job for job in self.running if job.ended()]:
                self.running.remove(job)
                self._take(job)
            self._tell()
            time.sleep(POLL_SECONDS)

    def _take(self, job: Job) -> None:
        """What an ended process leaves: a row, or the end of the study.

        Raises:
            OSError: The disk is full.
        """
        failure = job.finish()
        if failure.get("kind") == "disk full":
            self.folder.note(job.task.key, "failure").unlink(missing_ok=True)  # the cell is not to blame
            number = failure.get("errno") or errno.ENOSPC
            raise OSError(number, os.strerror(number), str(self.folder.path))
        if job.task.do == "cell":
            self._write_rows()

    def _threads(self) -> int:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        share = max(1, num_cores() // self.jobs)
        return min(share, int(asked)) if asked.isdigit() and int(asked) else share

    def _write_rows(self) -> list[Result]:
        results = [result for cell in self.cells if (result := self._result(cell)) is not None]
        write_rows(self.folder.rows, results)
        return results

    def _tell(self) -> None:
        running = {job.task.key for job in self.running}
        views = [
            CellView(
                cell,
                "running" if cell.key in running else state_of(self.folder, cell),
                read_note(self.folder.note(cell.key, "progress")),
            )
            for cell in self.cells
        ]
        self.watch(Snapshot(views, sum(job.task.do != "cell" for job in self.running)))

    @contextlib.contextmanager
    def _ending_processes(self) -> Iterator[None]:
        """However this ends, no process outlives it."""
        try:
            yield
        finally:
            drain(self.running)
            self.running = []


def run_study(
    study: Study,
    folder: Path,
    scale: ScaleName = "cpu",
    *,
    jobs: int | None = None,
    plugins: Sequence[Path] = (),
    watch: OnChange = lambda snapshot: None,
) -> Outcome:
    """Run the cells that have no row yet.

    Args:
        study: In one size (spec.read_study).
        folder: Where the runs lie; made when missing.
        scale: The size's name, for the rows.
        jobs: Cells at once; by default one per core, and one at a time on a GPU.
        plugins: Python files that register parts.
        watch: Called with a Snapshot several times a second.

    Raises:
        ValueError: The study is wrong, or the folder holds another one or is in use.
        OSError: The disk is full or not writable.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: at least one cell must run at a time.")
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder, doing="running a study"):
        made = StudyRun(study, folder, scale, jobs or default_jobs(), plugins, watch)
        _claim(made.folder, study, scale)
        return made.run()


def default_jobs() -> int:
    """One cell per core; on a GPU one at a time."""
    from scratchlm.runtime import choose_device

    return num_cores() if choose_device("auto").type == "cpu" else 1


def score(results: Sequence[Result], metric: str) -> float:
    """What a search by results is told: the mean over seeds; infinity if one diverged, NaN if one failed."""
    if any(result.state == "failed" for result in results):
        return math.nan
    values = [result.metric(metric) for result in results]
    if any(result.diverged for result in results) or any(value is None for value in values):
        return math.inf
    return sum(value for value in values if value is not None) / len(values)


def open_study(folder: Path) -> tuple[Study, ScaleName]:
    """The study of a folder, and its size's name.

    Raises:
        ValueError: The folder holds no study.
    """
    saved = read_note(StudyFolder(folder).study)
    if not saved:
        raise ValueError(f"{folder}: no study (study.json is missing); give the folder that study run wrote.")
    return load(Study, base=saved["study"]), saved["scale"]


def _claim(folder: StudyFolder, study: Study, scale: ScaleName) -> None:
    saved = read_note(folder.study)
    if not saved and any(entry.name != ".run.lock" for entry in folder.path.iterdir()):
        raise ValueError(f"{folder.path}: is not empty and holds no study; choose another with --folder.")
    other = (saved.get("study") or {}).get("name", study.name), saved.get("scale", scale)
    if other != (study.name, scale):
        raise ValueError(
            f"{folder.path}: holds the study {other[0]} ({other[1]}), not {study.name} ({scale}); "
            "choose another with --folder."
        )
    text = json.dumps({"scale": scale, "study": study.model_dump(mode="json")}, indent=2)
    write_text_atomically(folder.study, text + "\n")
