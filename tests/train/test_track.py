"""Claims about trackers: rows are shown once, steps only grow, nothing is sent, a failure stops nothing."""

import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from wandb_files import wandb_rows

from scratchlm.train import track
from scratchlm.train.track import numbers_of, open_trackers, require_trackers

CONFIG = {"name": "tiny", "optimizer": {"name": "adamw", "lr": 0.001}}
EXTRA = r"tracking with {} needs the 'track' extra: pip install 'scratchlm\[track\]'"


def train_row(step):
    return {"kind": "train", "step": step, "tokens": 64 * step, "loss": 5.0 / step, "lr": 1e-3}


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed ('track' extra)")


class StrangeError(Exception):
    """An error of a library's own, as httpx2 and wandb have them."""


class Recorder:
    """A tracker that remembers, and fails from its second call on if it is told to."""

    def __init__(self, fails=False):
        self.rows, self.closed, self.fails = [], 0, fails

    def log(self, step, values):
        if self.fails and self.rows:
            raise StrangeError("Connection lost")
        self.rows.append((step, values))

    def close(self):
        self.closed += 1


@pytest.fixture
def recorders(monkeypatch):
    """Put recorders in the place of two trackers; the second fails at its second row."""
    made = {"tensorboard": Recorder(), "wandb": Recorder(fails=True)}
    opened = []

    def opening(name):
        def make(folder, run_id, config):
            opened.append((name, run_id, config))
            return made[name]

        return make

    monkeypatch.setattr(track, "TRACKERS", {name: opening(name) for name in made})
    return made, opened


def test_numbers_of_a_row_are_named_by_kind_and_path():
    row = {
        "kind": "statistics",
        "step": 5,
        "layers": {"0": {"weight": 1.0, "gradient": 2}, "1": {"weight": 3.0}},
    }
    assert numbers_of(row) == {
        "statistics/layers/0/weight": 1.0,
        "statistics/layers/0/gradient": 2.0,
        "statistics/layers/1/weight": 3.0,
    }
    assert numbers_of({"kind": "rollback", "step": 9, "why": "spike", "done": True}) == {
        "rollback/count": 1.0
    }


def test_a_resumed_run_shows_no_step_twice_and_steps_only_grow(recorders, tmp_path):
    made, opened = recorders
    for steps in ((10, 20, 30), (20, 30, 40, 50)):  # the checkpoint was at step 10
        trackers = open_trackers(["tensorboard"], tmp_path / "run", CONFIG)
        for step in steps:
            trackers.log(train_row(step))
            if step % 20 == 0:
                trackers.log({"kind": "valid", "step": step, "loss": 4.0 / step})
        trackers.close()
    train = [step for step, values in made["tensorboard"].rows if "train/loss" in values]
    valid = [step for step, values in made["tensorboard"].rows if "valid/loss" in values]
    assert (train, valid) == ([10, 20, 30, 40, 50], [20, 40])
    assert opened[0][1:] == opened[1][1:] == (opened[0][1], CONFIG)
    assert made["tensorboard"].closed == 2


def test_a_run_in_another_folder_has_another_id(recorders, tmp_path):
    _, opened = recorders
    for name in ("a", "b"):
        open_trackers(["tensorboard"], tmp_path / name, CONFIG)
    assert opened[0][1] != opened[1][1]


def test_a_tracker_that_fails_is_reported_once_and_the_others_go_on(recorders, tmp_path, caplog):
    made, _ = recorders
    trackers = open_trackers(["tensorboard", "wandb"], tmp_path, CONFIG)
    for step in range(1, 6):
        trackers.log(train_row(step))
    trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracking with wandb failed (StrangeError: Connection lost) and ends here; training goes on, "
        "metrics.jsonl has every row."
    ]
    assert len(made["wandb"].rows) == 1
    assert len(made["tensorboard"].rows) == 5
    assert (made["wandb"].closed, made["tensorboard"].closed) == (0, 1)


def test_a_tracker_that_cannot_begin_does_not_stop_the_run(monkeypatch, tmp_path, caplog):
    def broken(folder, run_id, config):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(track, "TRACKERS", {"tensorboard": broken})
    trackers = open_trackers(["tensorboard"], tmp_path, CONFIG)
    trackers.log(train_row(1))
    assert "tracking with tensorboard failed (OSError" in caplog.text


def test_a_state_that_cannot_be_written_is_told_once(recorders, tmp_path, caplog):
    made, _ = recorders
    trackers = open_trackers(["tensorboard"], tmp_path / "run", CONFIG)
    (tmp_path / "run" / track.STATE_FILE).unlink()
    (tmp_path / "run" / track.STATE_FILE).mkdir()
    for step in (1, 2):
        trackers.log(train_row(step))
    assert caplog.text.count("tracking.json cannot be written") == 1
    assert len(made["tensorboard"].rows) == 2


def test_no_tracker_leaves_no_trace(tmp_path):
    trackers = open_trackers([], tmp_path, CONFIG)
    trackers.log(train_row(1))
    trackers.close()
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"train\.track=mlflow: unknown tracker; choose from tensorboard"):
        open_trackers(["mlflow"], tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_says_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=EXTRA.format(name)):
        open_trackers([name], tmp_path, CONFIG)


def test_a_missing_library_is_told_before_the_work_begins(monkeypatch):
    monkeypatch.setattr(track, "find_spec", lambda name: None if name == "wandb" else object())
    require_trackers(["tensorboard", "trackio"])
    with pytest.raises(ValueError, match=EXTRA.format("wandb")):
        require_trackers(["tensorboard", "wandb"])


@needs("tensorboard")
def test_tensorboard_files_hold_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((10, 20), (20, 30)):
        trackers = open_trackers(["tensorboard"], tmp_path, CONFIG)
        for step in steps:
            trackers.log(train_row(step))
        trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(5.0 / step)) for step in (10, 20, 30)]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode("utf-8")
    assert '"lr": 0.001' in text


class Listener(threading.Thread):
    """A server on loopback that counts who comes; it answers nothing."""

    def __init__(self):
        import socket

        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.visits = 0

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()


SCRIPT = """
import logging, sys
from pathlib import Path
from scratchlm.train.track import open_trackers
logging.basicConfig(format="%(levelname)s %(message)s")
name, folder, steps = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(",")
trackers = open_trackers([name], folder, {"name": "tiny", "optimizer": {"name": "adamw"}})
for step in map(int, steps):
    trackers.log({"kind": "train", "step": step, "loss": 5.0 / step})
    if "kill" in sys.argv and step == 20:
        import psutil
        for child in psutil.Process().children(recursive=True):
            child.kill()
trackers.close()
print("done")
"""


def in_a_process(name, folder, steps, *more, **variables):
    """Track some steps in a process of its own, where every way out leads to a listener; return it too."""
    listener = Listener()
    listener.start()
    places = ("WANDB_BASE_URL", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "HF_ENDPOINT")
    known = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_", "HF_"))
    }
    environment = {
        **known, **dict.fromkeys(places, listener.address), "HOME": str(folder.parent), "NETRC": os.devnull,
        "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(folder.parent / "trackio"), "NO_PROXY": "", **variables,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(folder), ",".join(map(str, steps)), *more],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    listener.socket.close()
    return done, listener


@needs("wandb")
def test_wandb_without_an_account_is_offline_complete_and_silent(tmp_path):
    folder = tmp_path / "run"
    for steps in ((10, 20), (20, 30)):
        done, listener = in_a_process("wandb", folder, steps)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "done\n"
        assert "WARNING wandb: no account is set up here" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert listener.visits == 0
    rows, ids = wandb_rows(folder)
    assert rows == [(step, pytest.approx(5.0 / step)) for step in (10, 20, 30)]
    assert ids == {json.loads((folder / "tracking.json").read_text(encoding="utf-8"))["id"]}


@needs("wandb")
def test_wandb_whose_service_is_killed_is_reported_and_the_run_ends_well(tmp_path):
    done, _ = in_a_process("wandb", tmp_path / "run", (10, 20, 30, 40), "kill", WANDB_MODE="offline")
    assert done.returncode == 0
    assert done.stdout == "done\n"
    assert done.stderr.count("WARNING tracking with wandb failed") == 1


@needs("trackio")
def test_trackio_holds_every_step_once_and_sends_nothing(tmp_path):
    import sqlite3

    for steps in ((10, 20), (20, 30)):
        done, listener = in_a_process("trackio", tmp_path / "run", steps)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        assert listener.visits == 0
    with sqlite3.connect(tmp_path / "trackio" / "scratchlm.db") as store:
        found = store.execute("SELECT step, run_name FROM metrics ORDER BY id").fetchall()
    assert [step for step, _ in found] == [10, 20, 30]
    assert len({name for _, name in found}) == 1


@needs("trackio")
def test_a_server_that_cannot_be_reached_does_not_stop_the_run(tmp_path):
    variables = {"HF_TOKEN": "hf_0123456789", "TRACKIO_SPACE_ID": "somebody/space"}
    done, listener = in_a_process("trackio", tmp_path / "run", (10, 20), **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr.count("WARNING tracking with trackio failed") == 1
    assert listener.visits > 0


def test_a_wish_to_stop_is_no_failure(recorders, tmp_path, monkeypatch):
    made, _ = recorders

    def interrupted(step, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(made["tensorboard"], "log", interrupted)
    trackers = open_trackers(["tensorboard"], tmp_path, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        trackers.log(train_row(1))


def test_the_account_of_the_user_decides_whether_wandb_is_online(monkeypatch, tmp_path, caplog):
    netrc = tmp_path / "netrc"
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    assert track._wandb_mode() == "offline"
    assert "no account is set up here" in caplog.text
    netrc.write_text("machine api.wandb.ai login user password 0123\n", encoding="utf-8")
    Path(netrc).chmod(0o600)
    assert track._wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track._wandb_mode() == "offline"
    netrc.unlink()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert track._wandb_mode() == "online"
