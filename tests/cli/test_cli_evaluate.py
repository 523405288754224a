"""Claims about `scratchlm evaluate --tasks`: figures with intervals, JSON, and what is refused."""

import json

import pytest


@pytest.fixture
def files(tmp_path):
    """Two tasks' files in one folder."""
    rows = [{"query": f"number {i} is", "choices": ["red", "green"], "gold": i % 2} for i in range(12)]
    problems = [{"question": f"{i} and {i}?", "answer": f"#### {2 * i}"} for i in range(8)]
    for name, content in (("copa", rows), ("gsm8k_test", problems[:3]), ("gsm8k_train", problems[3:])):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_tasks_are_a_table_and_json_with_each_answer(cli, finished_run, files):
    words = ["evaluate", finished_run, "--tasks", "copa,gsm8k", "--data", files, "--limit", 4]
    shown = cli(*words)
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    copa, gsm8k = (next(line for line in lines if line[:1] == [name]) for name in ("copa", "gsm8k"))
    assert copa[1] == "acc"
    assert copa[-4:] == ["4", "of", "12", "0"]
    assert gsm8k[-2:] == ["3", "5"]
    assert "warning: gsm8k: 3 of 3 questions do not fit into the 64 tokens" in shown.err
    found = cli(*words, "--json", "--save", "answers.json")
    assert found.code == 0, found.err
    printed = json.loads(found.out)
    saved = json.loads((files / "answers.json").read_text(encoding="utf-8"))
    assert [result["task"] for result in printed["results"]] == ["copa", "gsm8k"]
    assert [len(result.pop("answers")) for result in saved["results"]] == [4, 3]
    assert saved == printed
    value = printed["results"][0]["metrics"]["acc"]
    assert f"{100 * value['value']:.1f}" == copa[2]
    assert value["low"] <= value["value"] <= value["high"]


def test_a_conversation_and_a_named_file(cli, finished_run, files):
    words = ["evaluate", finished_run, "--tasks", "choices=copa.jsonl", "--chat", "--shots", 1, "--json"]
    found = cli(*words)
    assert found.code == 0, found.err
    result = json.loads(found.out)["results"][0]
    assert (result["num_questions"], result["shots"]) == (11, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "cpoa", "--data", "."], "unknown task 'cpoa'. Did you mean 'copa'?"),
        (["--tasks", "copa"], "copa: where is its file? --data FOLDER, or --tasks copa=FILE."),
        (["--tasks", "copa=gone.jsonl"], "gone.jsonl: no such file (task copa)"),
        (["--tasks", "copa,piqa", "--data", "."], "holds no piqa.jsonl"),
        (["--tasks", "copa=gsm8k_test.jsonl"], "gsm8k_test.jsonl:1: a row of copa needs 'choices'"),
        (["--tasks", "copa", "--data", ".", "--shots", 12], "holds no question to ask besides 12 to show"),
        (["--tasks", "blimp", "--data", ".", "--chat"], "blimp: compares texts and asks nothing"),
        (["--tasks", ","], "--tasks: names none; there are answers, arc_challenge"),
        (["--tasks", "copa", "stories"], "a text goes together with neither --tasks nor --against"),
        (
            ["--tasks", "copa", "--max-tokens", 5],
            "goes together with neither --tasks nor --against",
        ),
        (["--limit", 5], "--limit goes together with --tasks NAME or --against RUN"),
        (["--seed", 1], "--seed goes together with --tasks NAME or --against RUN"),
        (["--split", "train", "--tasks", "copa"], "--split goes together with neither"),
        (["--against-checkpoint", "best"], "--against-checkpoint goes together with --against RUN"),
        (["--against", "base", "--context-length", 16], "--context-length=16: "),
        (["--judge", "x", "--tasks", "copa"], "--judge goes together with --against RUN"),
        (["--tasks", "copa", "--against", "base"], "--tasks and --against are two measurements"),
        (["--against", "base"], "was post-trained, so nobody knows questions; name a file"),
    ],
)
def test_mistakes_are_one_line(cli, finished_run, files, words, message):
    assert message in cli("evaluate", finished_run, *words).error
