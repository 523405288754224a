"""Saving in the background: nothing of a later step gets in, and no error gets lost."""

import threading

import pytest
import torch

from scratchlm.checkpoint import Saver, latest, load_checkpoint, saver, verify

BACKGROUND = pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until the gate is set."""
    opened = threading.Event()
    write = saver.write_checkpoint

    def waits(*arguments):
        assert opened.wait(30)
        return write(*arguments)

    monkeypatch.setattr(saver, "write_checkpoint", waits)
    return opened


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_later_step_never_leaks_in(tmp_path, gate):
    weight = torch.zeros(1000)
    state = {"rows": [1]}
    identity = {"tokenizer": "a"}
    with Saver(tmp_path, newest=2) as opened:
        opened.save(1, {"model": {"w": weight, "tied": weight}}, state, identity)
        assert names_in(tmp_path) == [], "the write has not begun"
        weight += 1
        state["rows"].append(2)
        identity["tokenizer"] = "b"
        gate.set()
    found = load_checkpoint(latest(tmp_path))
    assert torch.equal(found.tensors["model"]["w"], torch.zeros(1000))
    assert torch.equal(found.tensors["model"]["tied"], torch.zeros(1000))
    assert found.state == {"rows": [1]}
    assert found.identity == {"tokenizer": "a"}


def test_a_second_save_waits_for_the_first(tmp_path, gate):
    with Saver(tmp_path, newest=5) as opened:
        opened.save(1, {}, {})
        threading.Timer(0.2, gate.set).start()
        opened.save(2, {}, {})
        assert "step-0000001" in names_in(tmp_path)
    assert names_in(tmp_path) == ["step-0000001", "step-0000002"]


@BACKGROUND
def test_old_checkpoints_go_and_protected_ones_stay(tmp_path, background):
    with Saver(tmp_path, newest=2, every=4, background=background) as opened:
        for step in range(1, 11):
            opened.save(step, {}, {}, protect=(5,))
    assert [int(name.removeprefix("step-")) for name in names_in(tmp_path)] == [4, 5, 8, 9, 10]


@BACKGROUND
def test_saving_after_a_rollback_discards_the_abandoned_course(tmp_path, background):
    with Saver(tmp_path, newest=3, background=background) as opened:
        for step in (10, 20, 30):
            opened.save(step, {}, {"course": 1})
        opened.save(15, {}, {"course": 2})
    assert latest(tmp_path).name == "step-0000015"
    assert names_in(tmp_path) == ["step-0000010", "step-0000015"]


@BACKGROUND
def test_the_watcher_hears_of_each_checkpoint_when_it_is_safe(tmp_path, background):
    heard = []
    with Saver(
        tmp_path,
        newest=9,
        background=background,
        on_saved=lambda step, path: heard.append((step, verify(path).step, path)),
    ) as opened:
        opened.save(1, {}, {})
        opened.save(2, {}, {})
    assert heard == [(step, step, tmp_path / f"step-{step:07d}") for step in (1, 2)]


def test_opening_removes_what_killed_saves_left(tmp_path):
    (tmp_path / ".step-0000002.abc.tmp").mkdir()
    Saver(tmp_path, newest=1)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("ask", ["save", "wait", "close"])
def test_an_error_in_the_background_is_raised_when_asked_next_and_once(tmp_path, ask):
    folder = tmp_path / "file" / "checkpoints"
    (tmp_path / "file").touch()
    opened = Saver(folder, newest=1)
    opened.save(7, {}, {})
    step = 8 if ask == "save" else 7  # the next save tries, and does not say that the one before failed
    with pytest.raises(NotADirectoryError, match=rf"step {step} was not saved: Not a .*step-000000{step}"):
        opened.save(8, {}, {}) if ask == "save" else getattr(opened, ask)()
    opened.wait()
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    opened.save(9, {}, {})
    opened.close()
    assert names_in(folder) == ["step-0000009"]


def test_a_disk_that_was_full_for_a_moment_costs_one_checkpoint_and_not_the_run(tmp_path, caplog):
    folder = tmp_path / "run" / "checkpoints"
    with Saver(folder, newest=2) as opened:
        opened.save(7, {}, {})  # the folder above is missing
        opened._thread.join()
        (tmp_path / "run").mkdir()
        opened.save(8, {}, {})
        assert names_in(folder) == ["step-0000008"], "written when save returns"
        opened.save(9, {}, {})
    assert names_in(folder) == ["step-0000008", "step-0000009"]
    (record,) = caplog.records
    assert "the checkpoint of step 7 was not saved" in record.getMessage()
    assert record.getMessage().endswith("the checkpoint of step 8 was written.")


def test_an_error_at_the_end_is_raised_by_the_with(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="step 7"):
        with Saver(tmp_path / "file" / "checkpoints", newest=1) as opened:
            opened.save(7, {}, {})


def test_an_error_of_the_disk_does_not_hide_the_error_that_ended_the_run(tmp_path, caplog):
    (tmp_path / "file").touch()

    def run():
        with Saver(tmp_path / "file" / "checkpoints", newest=1) as opened:
            opened.save(7, {}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "step-0000007: the checkpoint of step 7 was not saved" in caplog.text


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), RuntimeError("torch")])
def test_any_error_of_the_thread_arrives(tmp_path, monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(saver, "write_checkpoint", fails)
    opened = Saver(tmp_path, newest=1)
    opened.save(1, {}, {})
    with pytest.raises(type(error)):
        opened.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_without_a_result_is_no_success(tmp_path):
    class SurpriseError(Exception):
        pass

    def surprises(step, path):
        raise SurpriseError

    opened = Saver(tmp_path, newest=1, on_saved=surprises)
    opened.save(1, {}, {})
    with pytest.raises(RuntimeError, match="save-step-0000001: the thread ended with an error"):
        opened.close()


@BACKGROUND
def test_what_json_has_no_form_for_is_refused_at_once(tmp_path, background):
    opened = Saver(tmp_path, newest=1, background=background)
    with pytest.raises(TypeError, match="not JSON serializable"):
        opened.save(1, {}, {"object": object()})
    opened.close()
    assert names_in(tmp_path) == []


@BACKGROUND
def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(tmp_path, monkeypatch, caplog, background):
    def refuses(folder, newest, also, every):
        raise PermissionError(13, "Permission denied", str(folder / "step-0000001"))

    monkeypatch.setattr(saver, "keep_only", refuses)
    with Saver(tmp_path, newest=1, background=background) as opened:
        opened.save(1, {}, {})
        opened.save(2, {}, {})
    assert names_in(tmp_path) == ["step-0000001", "step-0000002"]
    assert "step-0000001: an old checkpoint could not be removed (Permission denied)" in caplog.text
