"""`scratchlm sft` from the command line: a run like any other, and one clear error for each mistake."""

import json
from pathlib import Path

import pytest

from scratchlm.evaluate import win_rate

SHORT = """
[train]
steps = 2
eval_every = 2
sample_every = 2
save_every = 2
device = "cpu"
[sampling]
max_new_tokens = 4
"""

RECIPE = """
name = "talk"
base = "BASE"
[data]
name = "alpaca"
paths = ["said.jsonl"]
"""


@pytest.fixture
def recipe(finished_run, cli):
    """A recipe and its data in the test's folder."""
    entries = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(30)]
    Path("said.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    Path("talk.toml").write_text(RECIPE.replace("BASE", str(finished_run)) + SHORT, encoding="utf-8")
    return "talk.toml"


def test_a_base_becomes_an_assistant_that_every_command_takes(cli, recipe):
    made = cli("sft", recipe, "conversations_per_step=4", "valid_share=0.2", "--folder", "talk")
    assert made.code == 0, made.err
    assert "all " in made.out
    assert "parameters are trained" in made.out
    assert "base loss" in made.out
    assert "> Say" in made.out
    assert "scratchlm chat talk" in made.out
    assert Path("talk/report.html").is_file()
    for words in (
        ("generate", "talk", "Once", "-n", "1", "--max-new-tokens", "3"),
        ("evaluate", "talk", "--max-tokens", "200"),
        ("export", "hf", "talk", "elsewhere"),
        ("checkpoint", "list", "talk"),
        ("evaluate", "talk", "--against", "base", "--limit", "2", "--save", "said.json"),
        ("report", "talk"),
    ):
        found = cli(*words)
        assert found.code == 0, (words, found.err)
    (row,) = json.loads(Path("talk/win_rate.json").read_text(encoding="utf-8"))
    assert (row["against"], row["judges"], row["questions"]) == ("base", ["both"], 2)
    said = json.loads(Path("said.json").read_text(encoding="utf-8"))["answers"]
    assert [one["question"][:4] for one in said] == ["Say ", "Say "]
    assert "Against another model" in Path("talk/report.html").read_text(encoding="utf-8")
    done = cli("sft", recipe, "valid_share=0.2", "--folder", "talk", "--restartable")
    assert (done.code, done.err) == (0, "")


@pytest.fixture
def talking(cli, recipe):
    """A run of two saved steps."""
    words = ("sft", recipe, "train.save_every=1", "train.eval_every=100", "valid_share=0.5")
    made = cli(*words, "--folder", "talk")
    assert made.code == 0, made.err
    return "talk"


def test_whose_answers_are_better_says_which_checkpoints_and_which_questions(cli, talking, monkeypatch):
    lines = "\n".join(f"Question {number}" for number in range(120))
    Path("asked.txt").write_text(lines, encoding="utf-8")
    words = ["evaluate", talking, "--against", talking, "--questions", "asked.txt"]
    bars = []

    class Bar:
        def __init__(self, title):
            bars.append([])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, done, total):
            bars[-1].append((done, total))

    monkeypatch.setattr("scratchlm.cli.progress.Bar", Bar)
    shown = cli(*words, "--checkpoint", 1, "--against-checkpoint", 2)
    assert shown.code == 0, shown.err
    assert "talk at step 1 against talk at step 2: 120 questions, both judge" in shown.out
    (told,) = bars
    assert told == sorted(told)
    assert {total for _, total in told} == {6 * 120}
    assert told[-1][0] > 5 * 120
    asked = {}
    for seed in (None, 0, 7):
        chosen = [] if seed is None else ["--seed", seed]
        found = cli(*words, "--limit", 5, *chosen, "--save", "said.json")
        assert found.code == 0, found.err
        assert "5 of 120 questions" in found.out
        said = json.loads(Path("said.json").read_text(encoding="utf-8"))
        assert (said["step"], said["against_step"], said["all_questions"]) == (2, 2, 120)
        asked[seed] = [one["question"] for one in said["answers"]]
    assert asked[None] == asked[0] != asked[7]


def test_each_model_that_answers_or_judges_reads_as_much_as_is_asked_for(cli, talking, monkeypatch):
    lengths, plain = [], win_rate.answer_all

    def answer_all(player, *given, **how):
        lengths.append(player.model.config.context_length)
        return plain(player, *given, **how)

    monkeypatch.setattr(win_rate, "answer_all", answer_all)
    for other in ("base", talking):
        found = cli("evaluate", talking, "--against", other, "--limit", 2, "--context-length", 80)
        assert found.code == 0, found.err
    assert lengths == [80] * 4
    words = ("evaluate", talking, "--against", "base")
    assert "leave --against-checkpoint out" in cli(*words, "--against-checkpoint", 1).error
    assert "talk reads 64 tokens; give more, or none" in cli(*words, "--context-length", 63).error


SUMS = """
name = "sums"
base = "BASE"
prompts_per_step = 2
group_size = 4
valid_problems = 4
[data]
name = "arithmetic"
digits = 1
form = "number"
[[rewards]]
name = "program"
file = "own.py"
[rollout]
max_new_tokens = 6
"""

OWN = """
def reward(prompt, response, answer):
    if len(response) % 3 == 0:
        raise ValueError("three")
    return len(response)
"""


def test_rewards_show_reward_divergence_entropy_length_and_answers(cli, finished_run):
    Path("own.py").write_text(OWN, encoding="utf-8")
    Path("sums.toml").write_text(SUMS.replace("BASE", str(finished_run)) + SHORT, encoding="utf-8")
    made = cli("grpo", "sums.toml", "--folder", "sums")
    assert made.code == 0, made.err
    lines = made.out.splitlines()
    (first,) = [line for line in lines if line.startswith("step 1/2: ")]
    for name in ("reward", "KL", "entropy", "tokens an answer", "failed rewards"):
        assert f"{name} " in first, first
    assert "loss -0.000" not in made.out
    (valid,) = [line for line in lines if line.startswith("step 2: validation ")]
    assert " not solved, accuracy 0, tokens an answer" in valid
    assert "base loss" in valid
    assert sum(line.startswith("> ") for line in lines) == 6  # three questions, before and after
    assert "ValueError: three" in made.err
    assert "such answers are counted as reward_failures" in made.err
    page = Path("sums/report.html").read_text(encoding="utf-8")
    assert "Reinforcement learning: what changed" in page
    assert "held-out problems that are solved" in page
    for wrong, message in {
        "loss=gsppo": "unknown policy loss 'gsppo'. Did you mean 'gspo'?",
        "group_size=1": "one answer is the mean of its group; take at least 2",
        'rewards=[{name="program",file="gone.py"}]': "gone.py: no such Python file",
        'rewards=[{name="regex",pattern="("}]': "is no regular expression",
        "data.name=arithmetics": "Did you mean 'arithmetic'?",
        "rollout.max_new_tokens=0": "greater than or equal to 1",
        "context_length=12": "leaves room for an answer in",
    }.items():
        assert message in cli("grpo", "sums.toml", wrong, "--folder", "never").error
        assert not Path("never").exists(), wrong


def test_preferences_show_margin_accuracy_divergence_and_answers(cli, recipe):
    text = Path(recipe).read_text(encoding="utf-8").replace("alpaca", "prompt_pairs")
    Path("pairs.toml").write_text(text.replace("said.jsonl", "pairs.jsonl"), encoding="utf-8")
    pairs = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": f"No, {i}"} for i in range(20)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    words = ("dpo", "pairs.toml", "valid_share=0.2", "pairs_per_step=4", "--folder")
    made = cli(*words, "pairs")
    assert made.code == 0, made.err
    lines = made.out.splitlines()
    (first,) = [line for line in lines if line.startswith("step 1/2: ")]
    assert all(f"{name} " in first for name in ("accuracy", "margin", "reward chosen"))
    (valid,) = [line for line in lines if line.startswith("step 2: validation loss ")]
    assert all(f"{name} " in valid for name in ("accuracy", "margin", "KL", "base loss"))
    assert "computed pairs" in made.out
    assert "> Say" in made.out
    assert "Did you mean 'simpo'?" in cli(*words, "never", "loss=simp").error
    same = [pair | {"rejected": pair["chosen"]} for pair in pairs]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, same)), encoding="utf-8")
    assert "pairs.jsonl:1: " in cli(*words, "never").error
    left = cli(*words, "never", "data.on_bad=skip")
    assert "no pair is left to learn from" in left.error
    assert not Path("never").exists()


def test_mistakes_are_one_line_each_and_leave_no_folder(cli, recipe):
    assert "unknown recipe 'demo-sfd'. Did you mean 'demo-sft'?" in cli("sft", "demo-sfd").error
    assert "base=nowhere: no run folder" in cli("sft", recipe, "base=nowhere").error
    assert "unknown key 'basis'. Did you mean 'base'?" in cli("sft", recipe, "basis=x").error
    assert "nproc: post-training runs in one process" in cli("sft", recipe, "nproc=2").error
    assert "distributed: post-training runs in" in cli("sft", recipe, "distributed=ddp", "nproc=1").error
    assert "no such file" in cli("sft", recipe, 'data.paths=["missing.jsonl"]').error
    assert "no conversation is left to learn from" in cli("sft", recipe, "context_length=8").error
    Path("said.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction":', encoding="utf-8")
    assert "said.jsonl:2: no JSON" in cli("sft", recipe).error
    assert "there is no run to resume" in cli("sft", recipe, "--resume").error
    assert "nowhere: has no adapter" in cli("merge", "nowhere=0.5").error
    assert "the weight behind = is a number" in cli("merge", "nowhere=much").error
    assert not Path("runs").exists()


def test_a_finished_run_goes_on_where_it_gets_more_steps(cli, recipe):
    words = ("sft", recipe, "--folder", "run")
    assert cli(*words, "train.steps=2").code == 0
    assert "run: this run is finished" in cli("sft", "run", "--resume").error
    found = cli("sft", "run", "train.steps=3", "--resume")
    assert found.code == 0, found.err
    assert "Continuing at step 2 of 3." in found.out
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["steps"] == 3


def test_a_run_of_another_command_is_no_recipe(cli, recipe, finished_run):
    assert "is a run to go on from, and no recipe" in cli("sft", str(finished_run)).error
    assert "demo-dpo: is a recipe for scratchlm dpo, not for sft" in cli("sft", "demo-dpo").error
