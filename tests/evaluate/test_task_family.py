"""Claims about tasks: what a row asks, what an answer is worth, which questions are drawn."""

import itertools
import json

import pytest
import torch

from scratchlm.evaluate.intervals import perplexity, share
from scratchlm.evaluate.questions import Asked, ask, find_files, read_questions
from scratchlm.evaluate.run_task import run_task
from scratchlm.evaluate.scoring import Score
from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, WrittenTask
from scratchlm.model import ModelConfig
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.chat import CHAT_TOKENS

CPU = torch.device("cpu")


def byte_tokenizer(specials=()):
    names = [END_OF_TEXT, *specials]
    vocab = {i: bytes([i]) for i in range(256)} | {256 + i: name.encode() for i, name in enumerate(names)}
    return BPETokenizer(vocab, [], names)


class Knowing(torch.nn.Module):
    """A model of bytes that knows how some texts go on; behind anything else all bytes are the same to it."""

    def __init__(self, *texts, context_length=4096):
        super().__init__()
        self.config = ModelConfig(vocab_size=261, context_length=context_length)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.texts, self.seen = [text.encode() for text in texts], []

    def make_cache(self):
        raise AssertionError("not needed for likelihoods")

    def hidden(self, token_ids):
        rows = torch.zeros(*token_ids.shape, 261)
        for row, ids in enumerate(token_ids.tolist()):
            self.seen.append(bytes(i for i in ids if 0 < i < 256).decode())
            for place in range(len(ids)):
                # the last few bytes decide, as they do for a model
                behind = bytes(i for i in ids[max(0, place - 7) : place + 1] if i < 256)
                for text in self.texts:
                    at = text.find(behind)
                    if behind and 0 <= at < len(text) - len(behind):
                        rows[row, place, text[at + len(behind)]] = 5.0
        return rows

    def head(self, hidden):
        return hidden


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(count, gold=0):
    return [
        {"query": f"number {i} is", "choices": [f"no {i}", f"yes {i}"], "gold": gold} for i in range(count)
    ]


def asked_of(*questions):
    return Asked(list(questions), list(range(len(questions))), {"": ""}, 0, len(questions))


ROWS = {
    "hellaswag": {"ctx": "Roof: A man sits. ", "endings": ["He sings.", "It rains."], "label": 1},
    "mmlu": {"subject": "sums", "split": "val", "question": " 1+1? ", "choices": ["2", "3"], "answer": "A"},
    "arc_easy": {"query": "Question: Why?", "choices": ["so", "not"], "gold": 0},
    "commonsense_qa": {"query": "Question: Why?\nA. x\nB. y\nAnswer:", "choices": ["A", "B"], "gold": 1},
    "copa": {"query": "It rained, so", "choices": ["I got wet.", "I sang."], "gold": 0},
    "winogrande": {"context_options": ["Al saw Bo; Al", "Al saw Bo; Bo"], "continuation": "hid", "gold": 1},
    "blimp": {"uid": "agreement", "good": "Dogs bark.", "bad": "Dogs barks."},
    "lambada": {"context": "I do not care about", "continuation": "signs"},
    "simple_arithmetic": {"context": "2 - 5 =", "continuation": " -3"},
    "gsm8k": {"question": "2 and 3?", "answer": "2 + 3 = 5\n#### 5"},
    "svamp": {"Body": "Al has 2.0 apples", "Question": "How many?", "Answer": 2.0},
    "multiarith": {"input": "2 and 3?", "target": 5},
    "answers": {"question": "2 and 3?", "answer": 5},
}  # fmt: skip

SOLVED = {
    "hellaswag": "Roof: A man sits. It rains.",
    "mmlu": "1+1?\nA. 2\nB. 3\nAnswer: A",
    "arc_easy": "Question: Why?\nAnswer: so",
    "commonsense_qa": "Question: Why?\nA. x\nB. y\nAnswer: B",
    "copa": "It rained, so I got wet.",
    "winogrande": "Al saw Bo; Bo hid",
    "blimp": "Dogs bark.",
    "lambada": "I do not care about signs",
    "simple_arithmetic": "2 - 5 = -3",
    "gsm8k": "Question: 2 and 3?\nAnswer: 2 + 3 = 5\n#### 5",
    "svamp": "Question: Al has 2.0 apples. How many?\nAnswer: 2",
    "multiarith": "Question: 2 and 3?\nAnswer: 5",
    "answers": "Question: 2 and 3?\nAnswer: 5",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_question_with_its_right_answer(name):
    question = TASKS.build(name).question(ROWS[name])
    assert question.solved == SOLVED[name]
    for before, answer in question.pairs:
        assert before == before.rstrip()
        assert answer.strip()


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_says_what_it_is(name):
    task = TASKS.build(name, shots=1)
    assert task.name == name
    assert task.shots == 1
    assert isinstance(task, ChoiceTask | WrittenTask)
    assert TASKS.get(name).__doc__


@pytest.mark.parametrize("name", TASKS.names())
def test_a_row_of_something_else_is_refused_with_its_place(name, tmp_path):
    task = TASKS.build(name)
    good = ROWS.get(name, ROWS["winogrande" if name == "winograd" else "arc_easy"])
    for key in set(good) - {"split"}:
        for bad in (None, [], {"a": 1}, True):
            path = write_rows(tmp_path / "rows.jsonl", [good, {**good, key: bad}])
            with pytest.raises(ValueError, match=r"rows.jsonl:2: .* \(a row of "):
                list(read_questions(task, path))
        path = write_rows(tmp_path / "rows.jsonl", [{k: v for k, v in good.items() if k != key}])
        with pytest.raises(ValueError, match=f"rows.jsonl:1: a row of {name} needs '{key}'; it has "):
            list(read_questions(task, path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json", "no JSON object: Expecting value"),
        (b"\xff\xfe", "no JSON object: 'utf-8' codec can't decode"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "no JSON object: is nested too deeply"),
        (b'{"query": "a", "choices": ["x", "y"], "gold": 2}', "gold: is 2, must be 0 to 1"),
        (b'{"query": "a", "choices": ["x", "y"], "gold": -1}', "gold: is -1, must be 0 to 1"),
        (b'{"query": "a", "choices": ["x"], "gold": 0}', "choices: must be a list of at least two texts"),
        (
            b'{"query": "a", "choices": ["x", " "], "gold": 0}',
            "choices: must be a list of at least two texts",
        ),
    ],
)
def test_damaged_file_is_refused_with_the_line(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n  \n" + line + b"\n")
    with pytest.raises(ValueError, match=f"rows.jsonl:3: {reason}"):
        list(read_questions(TASKS.build("choices"), path))


def test_files_are_found_by_their_names(tmp_path):
    for name in (
        "mmlu_dev_val",
        "math/gsm8k_train",
        "math/gsm8k_test_1",
        "winogrande",
        "winograd_wsc",
        "x_a",
        "x_b",
    ):
        write_rows(tmp_path / f"{name}.jsonl", [])
    assert find_files("mmlu", tmp_path) == (tmp_path / "mmlu_dev_val.jsonl", None)
    assert find_files("winograd", tmp_path).asked.name == "winograd_wsc.jsonl"
    both = (tmp_path / "math/gsm8k_test_1.jsonl", tmp_path / "math/gsm8k_train.jsonl")
    assert find_files("gsm8k", tmp_path) == both
    assert find_files("gsm8k", both[0]) == both
    assert find_files("other", both[0]) == (both[0], None)
    with pytest.raises(ValueError, match=r"x: x_a\.jsonl, x_b\.jsonl could be meant; say which: x=FILE"):
        find_files("x", tmp_path)
    with pytest.raises(ValueError, match=r"holds no piqa\.jsonl or piqa_\*\.jsonl; say which: piqa=FILE"):
        find_files("piqa", tmp_path)
    with pytest.raises(ValueError, match="gone: no such folder"):
        find_files("piqa", tmp_path / "gone")


def test_a_smaller_limit_asks_a_part_of_a_larger_one_from_the_whole_file(tmp_path):
    task = TASKS.build("choices")
    files = find_files("choices", write_rows(tmp_path / "choices.jsonl", listed(200)))
    few, many = (ask(task, files, limit=limit) for limit in (20, 60))
    assert set(few.numbers) < set(many.numbers)
    assert few.numbers == sorted(few.numbers)
    assert max(many.numbers) > 150
    assert few.num_all == 200
    assert [question.prompt for question in few.questions] == [f"number {i} is" for i in few.numbers]
    assert ask(task, files, limit=20).numbers == few.numbers
    assert ask(task, files, limit=20, seed=1).numbers != few.numbers
    assert ask(task, files, limit=500).numbers == list(range(200))


def test_shots_are_the_same_for_all_and_never_asked(tmp_path):
    task = TASKS.build("choices")
    files = find_files("choices", write_rows(tmp_path / "choices.jsonl", listed(10)))
    asked = ask(task, files, shots=3)
    shown = asked.prefixes[""].split("\n\n")
    assert len(shown) == 4
    assert shown.pop() == ""
    assert len(asked.questions) == asked.num_all == 7
    assert not set(shown) & {question.solved for question in asked.questions}
    with pytest.raises(ValueError, match="holds no question to ask besides 10 to show"):
        ask(task, files, shots=10)


def test_shots_come_from_the_train_file(tmp_path):
    write_rows(tmp_path / "choices_train.jsonl", listed(50, gold=1))
    write_rows(tmp_path / "choices_test.jsonl", listed(4))
    files = find_files("choices", tmp_path)
    asked = ask(TASKS.build("choices"), files, shots=2)
    assert asked.prefixes[""].count("yes") == 2
    assert len(asked.questions) == 4
    with pytest.raises(ValueError, match="choices: shots=51, but there are 50 solved questions to show"):
        ask(TASKS.build("choices"), files, shots=51)


def test_mmlu_shows_the_dev_rows_of_the_subject(tmp_path):
    rows = [
        {**ROWS["mmlu"], "subject": subject, "split": split, "question": f"{subject} {split} {i}?"}
        for subject in ("astronomy", "high_school_physics") for split in ("dev", "val") for i in range(5)
    ]  # fmt: skip
    files = find_files("mmlu", write_rows(tmp_path / "mmlu_dev_val.jsonl", rows))
    asked = ask(TASKS.build("mmlu"), files)
    assert len(asked.questions) == 10
    prefix = asked.prefixes["high_school_physics"]
    start = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    assert prefix.startswith(start + "high_school_physics dev 0?\nA. 2\nB. 3\nAnswer: A\n\nhigh_school")
    assert prefix.count("dev") == 5
    assert "astronomy" not in prefix
    assert "val" not in prefix
    assert ask(TASKS.build("mmlu"), files, shots=0).prefixes["high_school_physics"] == start


def test_answers_are_judged_by_likelihood_and_by_likelihood_per_character():
    task, question = TASKS.build("choices"), Question("so", (" ab", " abcdefgh"), gold=1)
    scores = [Score(-4.0, False, 1, 0), Score(-8.0, False, 2, 0)]
    assert task.judge(question, scores) == {"acc": 0.0, "acc_norm": 1.0}
    assert TASKS.build("lambada").judge(question, [Score(-4.0, True, 1, 0)]) == {
        "acc": 1.0,
        "perplexity": -4.0,
    }


def test_numbers_are_judged_as_numbers():
    task = TASKS.build("gsm8k")
    question = task.question({"question": "?", "answer": "1,000 + 0.5\n#### 1,000.5"})
    assert task.judge(question, "#### 1000.50") == {"exact": 1.0, "marked": 1.0}
    assert task.judge(question, "it is $1,000.5.") == {"exact": 1.0, "marked": 0.0}
    assert task.judge(question, "#### 1000.5 or 7") == {"exact": 0.0, "marked": 1.0}
    assert task.judge(question, "none") == {"exact": 0.0, "marked": 0.0}


def test_a_model_that_knows_the_answers_gets_them_all_and_chance_is_told():
    questions = [
        Question(f"{w} is", (f" {w}{w}", f" not {w}"), gold=i % 2, group=w) for i, w in enumerate("abcd")
    ]
    model = Knowing(*(question.solved for question in questions))
    asked = Asked(questions, [7, 8, 9, 11], dict.fromkeys("abcd", ""), 0, 20)
    told = []
    result = run_task(
        model, byte_tokenizer(), TASKS.build("choices"), asked, device=CPU, progress=lambda *n: told.append(n)
    )
    assert result.metrics["acc"] == share(4, 4)
    assert result.chance == 0.5
    assert (result.num_questions, result.num_all, result.num_cut) == (4, 20, 0)
    assert [answer.number for answer in result.answers] == [7, 8, 9, 11]
    assert [answer.said for answer in result.answers] == ["aa", "not b", "cc", "not d"]
    assert list(result.groups) == list("abcd")
    assert told[-1] == (8, 8)
    assert json.loads(json.dumps(result.as_json(answers=True)))["metrics"]["acc"]["value"] == 1.0
    assert "answers" not in result.as_json(answers=False)


def test_questions_that_do_not_fit_are_counted():
    model = Knowing("ab", context_length=10)
    questions = [Question("x" * length, (" a", " b")) for length in (4, 8, 9, 30)]
    result = run_task(model, byte_tokenizer(), TASKS.build("choices"), asked_of(*questions), device=CPU)
    assert result.num_cut == 2  # end of text, 8 letters and a blank are the ten that predict the last
    assert [answer.num_cut for answer in result.answers] == [0, 0, 1, 22]


def test_a_chat_puts_the_question_into_a_message():
    question = Question("2+2?", (" 4", " 5"))
    for specials, begins in ((CHAT_TOKENS, "2+2?4"), ((), "User: 2+2?\nAssistant: 4")):
        model = Knowing(begins)
        task = TASKS.build("choices")
        result = run_task(model, byte_tokenizer(specials), task, asked_of(question), device=CPU, chat=True)
        assert model.seen[0] == begins.removesuffix("4")
        assert result.metrics["acc"].value == 1.0
    with pytest.raises(
        ValueError, match="blimp: compares texts and asks nothing; it cannot be put into a chat"
    ):
        run_task(model, byte_tokenizer(), TASKS.build("blimp"), asked_of(question), device=CPU, chat=True)


def test_shares_have_wilsons_interval():
    assert share(50, 100) == pytest.approx((0.5, 0.40383, 0.59617), abs=1e-5)
    assert share(0, 10) == pytest.approx((0.0, 0.0, 0.27753), abs=1e-5)
    assert share(10, 10).high == 1.0
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="give 0 to count hits of at least one"):
            share(*bad)


def test_perplexity_has_the_interval_of_its_mean():
    found = perplexity([-1.0, -3.0])
    assert found.value == pytest.approx(7.389056)
    assert found.low * found.high == pytest.approx(found.value**2)
    assert perplexity([-1e5, -1e5]).high < float("inf")
    assert perplexity([-2.0]) == pytest.approx((7.389056,) * 3)


@pytest.mark.parametrize("name", sorted(set(TASKS.names()) - {"choices", "answers"}))
def test_the_real_files_are_read(shared_data, tmp_path, name):
    """The first 600 rows of each."""
    place = shared_data / ("math" if name in ("gsm8k", "multiarith", "svamp") else "eval")
    for path in filter(None, find_files(name, place)):
        with path.open(encoding="utf-8") as file:
            rows = "".join(itertools.islice(file, 600))
        (tmp_path / path.name).write_text(rows, encoding="utf-8")
    task = TASKS.build(name)
    asked = ask(task, find_files(name, tmp_path), limit=30)
    assert len(asked.questions) == 30
    assert all(prefix.endswith("\n\n") for prefix in asked.prefixes.values() if prefix)
    if isinstance(task, WrittenTask):
        for question in asked.questions:
            assert task.judge(question, question.answers[0])["exact"] == 1.0
