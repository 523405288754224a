"""Files of every form: what is read, what is refused and where, and which side an example is on."""

import json
import re

import pytest
from small_bases import write_lines

from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain.datasets import Example, is_held_out


def read(family, name, path, *, split="train", share=0.0, **settings):
    source = family.build(name, paths=[str(path)], **settings)
    return list(source.read(split, share=share, seed=0)), source


@pytest.mark.parametrize(
    ("name", "entry", "question", "answer"),
    [
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, "Hi", "Ho"),
        ("prompt_response", {"prompt": "Hi", "response": "Ho", "more": 1}, "Hi", "Ho"),
        (
            "dolly",
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann"},
            "Who?\n\nAnn came.",
            "Ann",
        ),
        (
            "dolly",
            {"prompt": "Below is ...\n\n### Instruction:\nwhat is it?\n\n### Response:\n", "response": "Tea"},
            "what is it?",
            "Tea",
        ),
        (
            "gsm8k",
            {"question": "How many?", "answer": "4/2 = <<4/2=2>>2\n#### 2"},
            "How many?",
            "4/2 = 2\n#### 2",
        ),
    ],
)
def test_an_entry_becomes_a_question_and_its_answer(tmp_path, name, entry, question, answer):
    (example,), _ = read(INSTRUCTIONS, name, write_lines(tmp_path / "a.jsonl", [entry]))
    assert [message["content"] for message in example.messages] == [question, answer]
    assert [message["role"] for message in example.messages] == ["user", "assistant"]


def test_whole_conversations_keep_their_turns(tmp_path):
    turns = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (example,), _ = read(
        INSTRUCTIONS, "messages", write_lines(tmp_path / "a.jsonl", [{"messages": messages}])
    )
    assert list(example.messages) == messages


def test_a_list_in_one_json_file_is_read_entry_by_entry(tmp_path):
    entries = [{"instruction": f"Say {i}", "output": f"{i}"} for i in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    examples, _ = read(INSTRUCTIONS, "alpaca", path)
    assert [example.where for example in examples] == [f"{path}:{line}" for line in (2, 6, 10)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_mark_before_the_first_entry_is_not_part_of_it(tmp_path, name):
    entry = json.dumps({"instruction": "Say 1", "output": "1"})
    path = tmp_path / name
    path.write_text(f"[{entry}]" if name == "a.json" else f"{entry}\n", encoding="utf-8-sig")
    assert len(read(INSTRUCTIONS, "alpaca", path)[0]) == 1


def test_the_pair_of_a_prompt_and_the_pair_of_two_conversations(tmp_path):
    entry = {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"}
    (pair,), _ = read(PREFERENCES, "prompt_pairs", write_lines(tmp_path / "a.jsonl", [entry]))
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("Add.\n\n1 2", "3", "4")
    both = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: What?\n\nAssistant:"
    entry = {"chosen": f"{both} Well.", "rejected": f"{both} Bad: Human: me"}
    (pair,), _ = read(PREFERENCES, "hh", write_lines(tmp_path / "b.jsonl", [entry]))
    assert [message["content"] for message in pair.prompt] == ["Hi", "Ho", "What?"]
    assert (pair.chosen, pair.rejected) == ("Well.", "Bad: Human: me")


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def changed(number, **values):
    return {"messages": [m | values if i == number else m for i, m in enumerate(GOOD["messages"])]}


@pytest.mark.parametrize(
    ("family", "name", "entry", "reason"),
    [
        (INSTRUCTIONS, "alpaca", '{"instruction": "a", ', "no JSON"),
        (INSTRUCTIONS, "alpaca", "[1]", "is no object"),
        (INSTRUCTIONS, "alpaca", {"instruction": "a", "answer": "b"}, "has no 'output' or 'response', only"),
        (INSTRUCTIONS, "alpaca", {"instruction": "a", "output": "  "}, "'output' is empty"),
        (INSTRUCTIONS, "alpaca", {"instruction": "a", "output": 7}, "'output' is no text"),
        (
            INSTRUCTIONS,
            "messages",
            changed(0, role="tool"),
            r"messages\[0\].role: must be one of system, user, assistant, not 'tool'",
        ),
        (INSTRUCTIONS, "messages", changed(1, content=""), r"messages\[1\].content is empty"),
        (INSTRUCTIONS, "messages", {"messages": GOOD["messages"][:1]}, "the last message is the user's"),
        (INSTRUCTIONS, "messages", {"messages": []}, "must be a list of at least one"),
        (PREFERENCES, "prompt_pairs", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        (
            PREFERENCES,
            "hh",
            {"chosen": "Hello", "rejected": "Human: a\n\nAssistant: b"},
            "is no conversation",
        ),
        (
            PREFERENCES,
            "hh",
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "differ before the last answer",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_or_left_out_and_counted(
    tmp_path, caplog, family, name, entry, reason
):
    good = {
        "alpaca": {"instruction": "a", "output": "b"},
        "messages": GOOD,
        "prompt_pairs": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "hh": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    }[name]
    path = write_lines(tmp_path / "a.jsonl", [good, "", entry, good])
    with pytest.raises(ValueError, match=rf"a.jsonl:3: .*{reason}.*; mend it, or .*data.on_bad=skip"):
        read(family, name, path)
    examples, source = read(family, name, path, on_bad="skip")
    assert (len(examples), source.num_skipped) == (2, 1)
    (told,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"a.jsonl:3: .*{reason}.*(?<!\.); left out\.$", told)


def test_a_list_that_breaks_off_is_told_with_its_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"instruction": "a", "output": "b"},\n {"instruction": "c"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.json:3: no JSON"):
        read(INSTRUCTIONS, "alpaca", path)


def test_files_that_are_not_there_or_no_text_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.paths: .*nothing.jsonl: no such file"):
        read(INSTRUCTIONS, "alpaca", tmp_path / "nothing.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a.jsonl: is not UTF-8"):
        read(INSTRUCTIONS, "alpaca", tmp_path / "a.jsonl")


def test_sides_are_disjoint_complete_and_do_not_depend_on_the_order(tmp_path):
    entries = [{"instruction": f"Say {i}", "output": f"{i}"} for i in range(400)]
    forward, backward = (
        write_lines(tmp_path / "a.jsonl", entries),
        write_lines(tmp_path / "b.jsonl", entries[::-1]),
    )
    sides = {}
    for path in (forward, backward):
        for split in ("train", "valid"):
            examples, _ = read(INSTRUCTIONS, "alpaca", path, split=split, share=0.2)
            sides[path, split] = {example.messages[0]["content"] for example in examples}
    assert sides[forward, "train"] == sides[backward, "train"]
    assert sides[forward, "valid"] == sides[backward, "valid"]
    assert not sides[forward, "train"] & sides[forward, "valid"]
    assert len(sides[forward, "train"]) + len(sides[forward, "valid"]) == 400
    assert 50 < len(sides[forward, "valid"]) < 110


def test_another_seed_holds_out_others_and_the_place_does_not_matter():
    examples = [Example(({"role": "user", "content": str(i)},), f"a:{i}") for i in range(100)]
    first = [is_held_out(example, 0.5, 0) for example in examples]
    assert first == [is_held_out(example._replace(where="b"), 0.5, 0) for example in examples]
    assert first != [is_held_out(example, 0.5, 1) for example in examples]


def test_a_split_of_its_own_is_read_from_its_own_files(tmp_path):
    train = write_lines(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b"}])
    valid = write_lines(tmp_path / "b.jsonl", [{"instruction": "c", "output": "d"}])
    for split, word in (("train", "a"), ("valid", "c")):
        examples, _ = read(INSTRUCTIONS, "alpaca", train, split=split, share=0.5, valid_paths=[str(valid)])
        assert [example.messages[0]["content"] for example in examples] == [word]


def test_the_shared_files_are_read_whole(shared_data):
    expected = {
        ("alpaca", "sft/rasbt_instruction_1000.json"): 1000,
        ("dolly", "sft/dolly_hhrlhf_1000.jsonl"): 1000,
        ("gsm8k", "math/gsm8k_train.jsonl"): 7473,
    }
    for (name, path), number in expected.items():
        examples, source = read(INSTRUCTIONS, name, shared_data / path, on_bad="skip")
        assert len(examples) + source.num_skipped == number
        assert source.num_skipped <= number * 0.01
    for name, path in (
        ("prompt_pairs", "dpo/rasbt_preference_1000.json"),
        ("hh", "dpo/hh_harmless_base_test_first1812.jsonl"),
    ):
        pairs, source = read(PREFERENCES, name, shared_data / path, on_bad="skip")
        assert len(pairs) > 0.97 * (len(pairs) + source.num_skipped)
