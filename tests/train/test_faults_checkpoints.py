"""What may be wrong with a run's checkpoints when it shall go on: cut off, damaged, too new, not writable."""

import json
import random
import shutil
import sys

import pytest
from real_runs import assert_same_run, checkpoint

from scratchlm.checkpoint import FORMAT, CheckpointError, latest, load_checkpoint

STOP = "SIGTERM@26"
"""In the third micro-batch of the seventh step: checkpoints of steps 4, 5 (the best) and 6 lie there."""

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


@pytest.fixture(scope="module")
def stopped(never_stopped):
    """The place of the run "stopped-late"; tests must not change it."""
    assert never_stopped.train("stopped-late", harm=STOP).code == 143
    return never_stopped


@pytest.fixture
def run(stopped, place):
    """A copy of that run, to do with what one likes."""
    shutil.copytree(stopped / "stopped-late", place / "run")
    shutil.copytree(stopped.observed("stopped-late").parent, place.observed("run").parent)
    return place / "run"


def newest_of(run):
    path = run / "checkpoints" / "step-0000006"
    assert sorted(file.name for file in path.iterdir()) == FILES
    return path


def with_a_flipped_bit(content, place):
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_a_files_end_at_any_sixteenth_or_a_flipped_bit_in_it_leads_to_the_step_before(run, caplog):
    newest, draw = newest_of(run), random.Random(0)
    for file in newest.iterdir():
        whole = file.read_bytes()
        harmed = [whole[: len(whole) * sixteenth // 16] for sixteenth in range(16)]
        harmed += [with_a_flipped_bit(whole, draw.randrange(len(whole))) for _ in range(16)]
        for content in harmed:
            file.write_bytes(content)
            caplog.clear()
            assert latest(newest.parent).name == "step-0000005"
            assert file.name in caplog.text
            with pytest.raises(CheckpointError, match=file.name):
                load_checkpoint(newest)
        file.write_bytes(whole)
    assert latest(newest.parent) == newest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "manifest.json" else pytest.mark.slow) for name in FILES]
)
def test_a_run_with_a_torn_checkpoint_goes_on_from_the_one_before_and_ends_the_same(
    run, place, never_stopped, name
):
    file = newest_of(run) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 9 // 16])
    resumed = place.train("run", "--resume")
    assert resumed.code == 0, resumed
    assert str(file.parent) in resumed.err + resumed.out
    assert name in resumed.err + resumed.out
    assert_same_run(place, "run", never_stopped, starts=(0, 5))


def test_a_checkpoint_of_a_later_version_stops_a_resume_which_would_remove_it(run, place, never_stopped):
    newest = newest_of(run)
    manifest = json.dumps({"format": FORMAT + 1, "unknown": {}})
    (newest / "manifest.json").write_text(manifest, encoding="utf-8")
    before = (run / "metrics.jsonl").read_bytes()
    error = place.train("run", "--resume").error
    assert f"{newest}: a later version of scratchlm wrote it; update scratchlm" in error
    assert (newest / "manifest.json").read_text(encoding="utf-8") == manifest
    assert (run / "metrics.jsonl").read_bytes() == before
    newest.rename(place / "elsewhere")
    place.done("run", "--resume")
    assert_same_run(place, "run", never_stopped, starts=(0, 5, 5))


@pytest.mark.skipif(sys.platform != "linux", reason="root gives up its rights by a call of Linux")
@pytest.mark.parametrize("which", ["run", "checkpoints"])
def test_a_folder_that_may_not_be_written_is_named_and_what_is_there_stays(run, place, never_stopped, which):
    folder = run if which == "run" else run / "checkpoints"
    before = checkpoint(run)
    folder.chmod(0o555)
    error = place.train("run", "--resume", plain_user=True).error
    folder.chmod(0o755)
    assert str(folder) in error
    assert "ermission denied" in error
    after = checkpoint(run)
    assert (after.step, after.state) == (before.step, before.state)
    place.done("run", "--resume")
    assert_same_run(place, "run", never_stopped, starts=(0, 6, 6))
