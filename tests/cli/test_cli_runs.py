"""Whole runs from the command line at tiny size: demo, run, train, and what is done with a finished one."""

import json
import shutil

import pytest
from tiny_settings import TINY, TINY_STORIES

from scratchlm.cli.run_folders import choose_folder, state_of

DEMO = [*TINY, *TINY_STORIES]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def done(finished_run, tmp_path):
    """A copy of a finished run, under the name "small"."""
    shutil.copytree(finished_run, tmp_path / "small")
    return "small"


def test_demo_ends_with_the_report_and_three_commands(cli, tmp_path):
    found = cli("demo", *DEMO)
    assert found.code == 0, found.err
    assert found.err == ""
    assert "\x1b" not in found.out
    assert "validation loss" in found.out
    assert "above the floor of" in found.out
    assert "after step 1 it writes:" in found.out
    tail = found.out[found.out.index("The report: demo/report.html") :].splitlines()
    assert sum(line.startswith("  scratchlm ") for line in tail) == 3
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "| demo |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_finished_demo_is_kept_and_an_interrupted_one_asks_for_resume(cli, tmp_path):
    for name, summary in (("demo", {"stopped_early": False}), ("demo-2", {"stopped_early": True})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / name / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "demo-2: holds an interrupted run; go on with `scratchlm demo --resume`" in cli("demo").error
    (tmp_path / "demo-2" / "summary.json").write_text('{"stopped_early": false}', encoding="utf-8")
    assert str(choose_folder(tmp_path / "demo", resume=False, command="")).endswith("demo-3")


def test_state_of_a_folder(tmp_path):
    folder = tmp_path / "a"
    assert state_of(folder) == "free"
    folder.mkdir()
    assert state_of(folder) == "free"
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert state_of(folder) == "other"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert state_of(folder) == "interrupted"
    (folder / "summary.json").write_text('{"steps": 3}', encoding="utf-8")
    assert state_of(folder) == "finished"


def test_resume_continues_an_interrupted_run(cli, tmp_path, done):
    from scratchlm.train.folder import RunFolder

    folder = RunFolder(tmp_path / done)
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    folder.summary.write_text(json.dumps({**summary, "stopped_early": True}), encoding="utf-8")
    shutil.rmtree(folder.checkpoints / "step-0000004")
    found = cli("train", "demo", *DEMO, "--folder", done, "--resume")
    assert found.code == 0, found.err
    assert "Continuing at step 2 of 4." in found.out
    after = json.loads(folder.summary.read_text(encoding="utf-8"))
    assert after["best_valid_loss"] == pytest.approx(summary["best_valid_loss"], abs=0)
    assert not after["stopped_early"]


def test_a_finished_run_goes_on_where_it_gets_more_steps(cli, tmp_path, done):
    shutil.copytree(tmp_path / done, tmp_path / "longer")
    found = cli("train", "demo", *DEMO, "--folder", "longer", "--resume")
    assert found.code == 2
    assert "longer: this run is finished; leave --resume out to start a new one, or give" in found.error
    assert "it more than its 4 steps with train.steps=" in found.error
    again = cli("train", "demo", *DEMO, "--folder", "longer", "--restartable")
    assert again.code == 0
    assert "Continuing" not in again.out
    for steps, flag in ((5, "--resume"), (6, "--restartable")):
        found = cli("train", "demo", *DEMO, f"train.steps={steps}", "--folder", "longer", flag)
        assert found.code == 0, found.err
        assert f"Continuing at step {steps - 1} of {steps}." in found.out
        summary = json.loads((tmp_path / "longer" / "summary.json").read_text(encoding="utf-8"))
        assert summary["steps"] == steps


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_exits_with_its_signal_and_says_how_to_go_on(cli, monkeypatch, name, code):
    import scratchlm.train.run as training

    def stop(config, path, **settings):
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text("{}", encoding="utf-8")
        return {"stopped_early": True, "stopped_by": name, "steps": 3}

    monkeypatch.setattr(training, "run", stop)
    found = cli("train", "demo", "train.steps=9", "--folder", "x y")
    assert found.code == code
    assert found.err.splitlines() == [
        "stopped after step 3; go on with: scratchlm train demo train.steps=9 --folder 'x y' --resume"
    ]


def test_run_trains_on_somebodys_own_text(cli, stories, tmp_path):
    found = cli("run", stories, *TINY)
    assert found.code == 0, found.err
    assert "The report: runs/stories/report.html" in found.out
    config = json.loads((tmp_path / "runs" / "stories" / "config.json").read_text(encoding="utf-8"))
    assert config["corpus"]["paths"] == [str(stories)]
    assert config["train"]["steps"] == 4


def test_train_takes_a_recipe_file_and_a_plugin(cli, stories, tmp_path):
    from scratchlm.optim import OPTIMIZERS

    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from scratchlm.optim import OPTIMIZERS\n\n"
        "@OPTIMIZERS.register('mine_trains')\n"
        "class Mine(torch.optim.Optimizer):\n"
        '    """Signs."""\n\n'
        "    def __init__(self, params, *, lr: float = 1e-2):\n"
        "        super().__init__(params, {'lr': lr})\n\n"
        "    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                p.data.sub_(group['lr'] * p.grad.sign())\n",
        encoding="utf-8",
    )
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[corpus]\nname = "stories"\n[tokenizer]\nname = "bpe"\n[model]\n[optimizer]\n'
        'name = "mine_trains"\nlr = 0.01\n[train]\nsteps = 2\nbatch_tokens = 256\n',
        encoding="utf-8",
    )
    try:
        found = cli("train", "mine.toml", *DEMO, "--plugin", "mine.py")
        assert found.code == 0, found.err
        summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text(encoding="utf-8"))
        assert summary["optimizer"] == "mine_trains"
    finally:
        OPTIMIZERS._parts.pop("mine_trains", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "dmeo"], "unknown recipe 'dmeo'. Did you mean 'demo'?"),
        (["train", "gone.toml"], "gone.toml: no such file"),
        (
            ["train", "demo", "model.d_modle=8"],
            "model.d_modle: unknown key 'd_modle'. Did you mean 'd_model'?",
        ),
        (
            ["train", "demo", "model.num_heads=7"],
            "d_model=192 is not divisible by num_heads=7; choose num_heads from",
        ),
        (["train", "demo", "optimizer.name=adan"], "unknown optimizer 'adan'. Did you mean 'adamw'?"),
        (["train", "demo", "optimizer.lr=fast"], "optimizer.lr='fast': Input should be a valid number"),
        (["train", "demo", "steps"], "'steps': an override is key=value"),
        (["train", "demo", "train.batch_tokens=1000"], "train.batch_tokens=1000 is no multiple of"),
        (["train", "demo", "train.device=cuda:77"], "device=cuda:77: not on this machine"),
        (["train", "demo", *DEMO, "tokenizer.vocab_size=100"], "vocab_size=100 is too small"),
        (
            ["train", "demo", *DEMO, "model.context_length=100000", "train.batch_tokens=100000"],
            "context_length",
        ),
        (["train", "demo", *DEMO, "--folder", "/proc/none"], "/proc/none: no such file or directory"),
        (["train", "demo", "--resume"], "runs/demo: there is no run to resume; leave --resume out."),
        (["demo", "--resume"], "demo: there is no run to resume"),
        (["run", "gone.txt"], "gone.txt: no such file or folder; give files or folders of text."),
        (["run", "train.steps=3"], "no text named; give files or folders"),
        (["plan", "dmeo"], "Did you mean 'demo'?"),
        (["generate", "gone"], "gone: no run folder"),
        (["evaluate", "gone"], "gone: no run folder"),
        (["report", "gone"], "gone: no such run folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(cli, tmp_path, words, message):
    assert message in cli(*words).error
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("one.txt", b"x", "too few"),
        ("zeros.txt", b"text" + b"\0" * 3000, "NUL"),
        ("latin1.txt", b"Gr\xfc\xdfe, " * 300, "UTF-8"),
        ("picture.png", bytes(range(256)) * 20, "picture.png"),
        ("damaged.gz", b"\x1f\x8b no", "damaged.gz"),
        ("lines.jsonl", b'{"txt": "a"}\n', "lines.jsonl"),
    ],
)
def test_bad_text_is_one_line_and_leaves_nothing(cli, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in cli("run", name, *TINY).error
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_says_how_to_go_on(cli, monkeypatch, error):
    import scratchlm.train.run as training

    def fill(config, path, **settings):
        raise error

    monkeypatch.setattr(training, "run", fill)
    found = cli("train", "demo", "--folder", "x").error
    assert (
        "o space left on device; free some space; a run goes on from its last checkpoint with --resume"
        in found
    )


def test_a_folder_of_somebody_else_is_left_alone(cli, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "diary.txt").write_text("mine", encoding="utf-8")
    assert "is there already and is no run folder; choose another with --folder" in cli("demo", *DEMO).error
    assert names(tmp_path / "demo") == ["diary.txt"]


def test_plan_shows_what_a_run_needs(cli):
    found = cli("plan", "demo", *DEMO)
    for word in ("parameters", "memory", "disk", "device", "time", "4 steps"):
        assert word in found.out


def test_generate_is_the_same_for_the_same_seed(cli, done):
    words = ["generate", done, "Once upon", "--max-new-tokens", 12]
    first = cli(*words, "--seed", 3)
    assert first.code == 0, first.err
    assert first.out.startswith("Once upon")
    assert cli(*words, "--seed", 3) == first
    assert cli(*words, "--seed", 4).out != first.out
    assert cli(*words, "-n", 2).out.count("Once upon") == 2
    assert cli(*words, "--temperature", 0).out == cli(*words, "--temperature", 0, "--seed", 9).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", 3], "top_p=3.0"),
        (["--min-p", -1], "min_p=-1.0"),
        (["--device", "toaster"], "device=toaster"),
    ],
)
def test_a_wrong_sampling_setting_is_one_line(cli, done, words, message):
    assert message in cli("generate", done, *words).error


def test_evaluate_agrees_with_the_summary_every_time(cli, done, tmp_path):
    first = cli("evaluate", done)
    assert first.code == 0, first.err
    summary = json.loads((tmp_path / done / "summary.json").read_text(encoding="utf-8"))
    assert f"{summary['valid_loss']:.4f}" in first.out
    assert f"{summary['floor_loss']:.4f}" in first.out
    assert cli("evaluate", done) == first


def test_evaluate_reads_on_beyond_the_training_context(cli, done):
    shorter, longer = (cli("evaluate", done, "--context-length", length) for length in (16, 256))
    assert (shorter.code, longer.code) == (0, 0), shorter.err + longer.err
    assert "tokens, 256 at once" in longer.out
    assert shorter.out.splitlines()[2:] != longer.out.splitlines()[2:]


def test_evaluate_measures_another_text(cli, done, stories):
    found = cli("evaluate", done, stories)
    assert found.code == 0, found.err
    assert "bits per byte" in found.out
    assert "floor" not in found.out


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_named(cli, done, tmp_path):
    weights = sorted((tmp_path / done / "checkpoints").rglob("*.safetensors"))
    for path in weights:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert "checkpoint" in cli("generate", done).error
    shutil.rmtree(tmp_path / done / "checkpoints")
    assert "holds no complete checkpoint" in cli("generate", done).error


def test_shards_and_tokenizer_that_do_not_belong_together_are_refused(cli, done, stories, tmp_path):
    assert cli("tokenizer", "train", stories, "--vocab-size", 280, "-o", "t.json").code == 0
    (tmp_path / "t.json").replace(tmp_path / done / "tokenizer.scratchlm.json")
    assert cli("evaluate", done).code == 2


def test_report_writes_the_page(cli, done, tmp_path):
    page = tmp_path / done / "report.html"
    page.unlink(missing_ok=True)
    assert cli("report", done).out.strip() == f"{done}/report.html"
    assert page.is_file()
