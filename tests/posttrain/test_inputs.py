"""Files and teachers that were edited between start and --resume: refused, or allowed and written down."""

import json
import shutil

import pytest
from preference_files import pairs
from small_bases import make_base, sayings, settings, write_lines
from small_policies import grpo_settings

from scratchlm.posttrain.config import DistillConfig, DpoConfig, SftConfig
from scratchlm.posttrain.inputs import FILE, check_inputs, inputs_of, write_inputs
from scratchlm.posttrain.run import run

REWARD = "def reward(prompt, response, answer):\n    return len(response) % {}\n"


def problems(number):
    return [{"question": f"{i} and 1?", "answer": f"#### {i + 1}"} for i in range(number)]


def configs(base, folder):
    """Settings of each stage -> the file that they name, by key."""
    said, held = (write_lines(folder / name, sayings(9)) for name in ("said.jsonl", "held.jsonl"))
    better = write_lines(folder / "better.jsonl", pairs(9))
    asked = write_lines(folder / "asked.jsonl", problems(9))
    program = folder / "own.py"
    program.write_text(REWARD.format(5), encoding="utf-8")
    alpaca = {"name": "alpaca", "paths": [str(said)], "valid_paths": [str(held)]}
    rewards = [{"name": "correct"}, {"name": "program", "file": str(program)}]
    from_data = {"name": "from_data", "data": {"name": "gsm8k", "paths": [str(asked)]}}
    preferences = {"name": "prompt_pairs", "paths": [str(better)]}
    return [
        (settings(SftConfig, base, data=alpaca), {"data.paths.0": said, "data.valid_paths.0": held}),
        (settings(DpoConfig, base, data=preferences), {"data.paths.0": better}),
        (grpo_settings(base, data=from_data), {"data.data.paths.0": asked}),
        (grpo_settings(base, rewards=rewards), {"rewards.1.file": program}),
    ]


def test_each_file_that_the_settings_name_is_known_and_an_edit_is_told(base_run, tmp_path):
    for config, files in configs(base_run, tmp_path):
        began = inputs_of(config)
        assert {key: one.name for key, one in began.items()} == {key: str(one) for key, one in files.items()}
        write_inputs(tmp_path, began)
        assert check_inputs(tmp_path, inputs_of(config), allow_learning=False) == {}
        for key, file in files.items():
            text = file.read_text(encoding="utf-8")
            file.write_text(text + "\n", encoding="utf-8")
            now = inputs_of(config)
            with pytest.raises(ValueError, match=rf"{key}: {file} is not what it was when the run began"):
                check_inputs(tmp_path, now, allow_learning=False)
            if key.startswith("data"):
                with pytest.raises(ValueError, match="put it back, or start a new folder"):
                    check_inputs(tmp_path, now, allow_learning=True)
            else:
                changes = check_inputs(tmp_path, now, allow_learning=True)
                assert list(changes) == [f"{key}.sha256"]
                assert changes[f"{key}.sha256"][0] == began[key].sha256[:12]
            file.write_text(text, encoding="utf-8")


def test_what_is_missing_or_was_never_kept_is_not_judged_and_a_damaged_record_is_told(base_run, tmp_path):
    config, files = configs(base_run, tmp_path)[1]
    assert check_inputs(tmp_path, inputs_of(config), allow_learning=False) == {}  # of an older version
    write_inputs(tmp_path, inputs_of(config))
    files["data.paths.0"].unlink()
    assert inputs_of(config) == check_inputs(tmp_path, {}, allow_learning=False) == {}
    assert inputs_of(grpo_settings(base_run, rewards=[{"name": "regex", "pattern": "a" * 5000}])) == {}
    (tmp_path / FILE).write_text('{"data": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{FILE}: is damaged"):
        check_inputs(tmp_path, {}, allow_learning=False)


def test_a_run_does_not_go_on_with_other_instructions_though_only_held_out_ones_changed(base_run, tmp_path):
    config, files = configs(base_run, tmp_path)[0]
    more = config.model_copy(update={"train": config.train.model_copy(update={"steps": 5})})
    run("sft", config, tmp_path / "run")
    kept = files["data.valid_paths.0"].read_text(encoding="utf-8")
    files["data.valid_paths.0"].write_text(kept.replace("It is", "It was", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data.valid_paths.0: .*held.jsonl is not what it was"):
        run("sft", more, tmp_path / "run", resume=True, allow_changes=True)
    files["data.valid_paths.0"].write_text(kept, encoding="utf-8")
    assert run("sft", more, tmp_path / "run", resume=True)["steps"] == 5


def test_a_mended_reward_has_to_be_allowed_and_is_written_down(base_run, tmp_path):
    config, files = configs(base_run, tmp_path)[3]
    longer = [
        config.model_copy(update={"train": config.train.model_copy(update={"steps": n})}) for n in (5, 6)
    ]
    run("grpo", config, tmp_path / "run")
    files["rewards.1.file"].write_text(REWARD.format(7), encoding="utf-8")
    with pytest.raises(ValueError, match="the run would learn otherwise; put it back, say --allow-changes"):
        run("grpo", longer[0], tmp_path / "run", resume=True)
    run("grpo", longer[0], tmp_path / "run", resume=True, allow_changes=True)
    run("grpo", longer[1], tmp_path / "run", resume=True)  # it is the run's own now
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    changes = [set(row["changes"]) for row in rows if row["kind"] == "resume"]
    assert changes == [{"rewards.1.file.sha256", "train.steps"}, {"train.steps"}]


def test_a_teacher_that_was_trained_on_has_to_be_allowed(tmp_path):
    base = make_base(tmp_path / "base", chat=True, text=False)
    other = make_base(tmp_path / "other", "seed=9", chat=True, text=False)
    shutil.copytree(base, tmp_path / "teacher")
    file = write_lines(tmp_path / "said.jsonl", sayings(9))
    given = {"data": {"name": "alpaca", "paths": [str(file)]}, "teacher": str(tmp_path / "teacher")}
    config = settings(DistillConfig, base, **given)
    write_inputs(tmp_path, inputs_of(config))
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(other, tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"teacher: .*teacher is not what it was.*say --allow-changes"):
        check_inputs(tmp_path, inputs_of(config), allow_learning=False)
    assert list(check_inputs(tmp_path, inputs_of(config), allow_learning=True)) == ["teacher.sha256"]
    assert "teacher" not in inputs_of(settings(DistillConfig, base, "learn_from=samples", **given))
