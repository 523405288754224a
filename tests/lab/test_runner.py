"""Claims about which processes a study starts; the processes themselves are replaced by calls."""

import errno
import json

import pytest

from scratchlm.lab import runner
from scratchlm.lab.cells import StudyFolder
from scratchlm.lab.experiments import EXPERIMENTS
from scratchlm.lab.runner import run_study
from scratchlm.lab.spec import Study


class Job:
    """A process that does its task at once and is seen to have ended at the third look."""

    def __init__(self, task, failure):
        self.task, self.failure, self.looks = task, failure, 0

    def ended(self):
        self.looks += 1
        return self.looks > 2

    def finish(self):
        return self.failure


@pytest.fixture
def started(monkeypatch):
    """Start calls instead of processes; returns the list of what was started, and what shall go wrong."""
    calls, running, wrong = [], [], {}

    def start(task, folder, *, threads, plugins):
        calls.append((task.key.rpartition("-")[0], threads))
        running.append(task.key)
        failure = wrong.get(task.key.rpartition("-")[0], {})
        path = folder.note(task.key, "failure")
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if failure:
            path.write_text(json.dumps(failure), encoding="utf-8")
        else:
            EXPERIMENTS.build(task.experiment).run(task.config, task.folder, lambda event: None)
        return Job(task, failure)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "drain", lambda jobs: None)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(runner, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return calls, wrong


def study_of(seeds=(1, 2), **search):
    search = search or {"grid": {"lr": [1.0, 10.0]}}
    return Study(name="toy", question="?", experiment="quadratic", seeds=seeds, **search)


def test_only_what_is_missing_is_run(tmp_path, started):
    calls, _ = started
    first = run_study(study_of(), tmp_path, jobs=2)
    assert calls == [("1-s1", 4), ("1-s2", 4), ("10-s1", 4), ("10-s2", 4)]
    assert [(row.label, row.seed) for row in first.results] == [("1", 1), ("1", 2), ("10", 1), ("10", 2)]
    calls.clear()
    again = run_study(study_of(), tmp_path, jobs=2)
    assert calls == []
    assert again.results == first.results
    run_study(study_of(seeds=(1, 2, 3)), tmp_path, jobs=8)
    assert calls == [("1-s3", 1), ("10-s3", 1)]


def test_never_more_run_at_once_than_asked_for(tmp_path, started):
    most = []
    run_study(
        study_of(seeds=(1, 2, 3, 4)),
        tmp_path,
        jobs=3,
        watch=lambda snapshot: most.append(sum(view.state == "running" for view in snapshot.cells)),
    )
    assert max(most) == 3


def test_what_failed_is_a_row_and_is_tried_again_by_the_next_call(tmp_path, started):
    calls, wrong = started
    wrong["1-s1"] = {"kind": "failed", "error": "no luck"}
    rows = run_study(study_of(), tmp_path).results
    assert [(row.state, row.error) for row in rows] == [("failed", "no luck")] + [("finished", "")] * 3
    wrong.clear()
    calls.clear()
    rows = run_study(study_of(), tmp_path).results
    assert [name for name, _ in calls] == ["1-s1"]
    assert {row.state for row in rows} == {"finished"}


def test_a_full_disk_stops_the_study_and_is_no_cells_fault(tmp_path, started):
    calls, wrong = started
    wrong["1-s2"] = {"kind": "disk full", "error": "x", "errno": errno.ENOSPC}
    with pytest.raises(OSError, match="No space left on device") as caught:
        run_study(study_of(), tmp_path, jobs=1)
    assert caught.value.filename == str(tmp_path)
    assert len(calls) == 2
    wrong.clear()
    assert {row.state for row in run_study(study_of(), tmp_path).results} == {"finished"}


def test_a_folder_belongs_to_one_study_in_one_size(tmp_path, started):
    run_study(study_of(), tmp_path)
    other = study_of().model_copy(update={"name": "other"})
    with pytest.raises(ValueError, match=r"holds the study toy \(cpu\), not other \(cpu\)"):
        run_study(other, tmp_path)
    with pytest.raises(ValueError, match=r"holds the study toy \(cpu\), not toy \(gpu\)"):
        run_study(study_of(), tmp_path, "gpu")


def test_a_search_by_results_goes_on_where_it_was(tmp_path, started):
    pytest.importorskip("optuna")
    calls, _ = started
    space = {"lr": {"low": 0.1, "high": 300.0, "log": True}}
    search = {"trials": 12, "at_once": 3, "seed": 1, "space": space}
    found = run_study(study_of(seeds=(1,), optuna=search), tmp_path)
    assert len(found.results) == 12
    assert min(row.final_loss for row in found.results) < 1.0
    calls.clear()
    longer = run_study(study_of(seeds=(1,), optuna={**search, "trials": 15}), tmp_path)
    assert len(calls) == 3
    assert longer.results[:12] == found.results


def test_rows_lie_there_while_the_study_goes_on(tmp_path, started):
    seen = []

    def watch(snapshot):
        path = StudyFolder(tmp_path).rows
        seen.append(len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0)

    run_study(study_of(), tmp_path, jobs=1, watch=watch)
    assert sorted(set(seen)) == [0, 2, 3, 4, 5]
