"""Distillation: the divergence by hand, a student that nears its teacher, answers that are asked once."""

import json
import math

import pytest
import torch
from small_bases import make_base, sayings, settings, write_lines

from scratchlm.posttrain.config import DistillConfig
from scratchlm.posttrain.distill import DistillObjective, divergence_of
from scratchlm.posttrain.run import run
from scratchlm.train.folder import load_run
from scratchlm.train.trainer import Execution


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory):
    """A run whose tokenizer has the tokens of a conversation: student and teacher in these tests."""
    return make_base(tmp_path_factory.mktemp("chat") / "base", chat=True, text=False)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """The same tokenizer, other weights."""
    return make_base(tmp_path_factory.mktemp("teacher") / "run", "seed=9", chat=True, text=False)


def distill(base, teacher, folder, *words, **more):
    data = write_lines(folder / "data.jsonl", sayings(24))
    given = {"data": {"name": "alpaca", "paths": [str(data)]}, "teacher": str(teacher), "base_tokens": 0}
    given |= {"conversations_per_step": 4, "valid_share": 0.2}
    return settings(DistillConfig, base, *words, **given, **more)


def test_the_divergence_by_hand():
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    found = divergence_of(student, teacher, 1.0)
    torch.testing.assert_close(found.detach(), torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]))
    found.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]))
    # large t: t^2 KL -> the variance of the difference of the logits under equal shares, half of it
    large = divergence_of(torch.zeros(1, 2), torch.tensor([[0.6, 0.0]]), 100.0)
    torch.testing.assert_close(large, torch.tensor([0.6**2 / 8]), rtol=1e-3, atol=0)


def test_a_model_diverges_from_itself_by_nothing_and_a_teacher_never_learns(chat_base, teacher, tmp_path):
    config = distill(chat_base, teacher, tmp_path)
    student, other = load_run(chat_base, device="cpu").model, load_run(teacher, device="cpu").model
    how = Execution(torch.device("cpu"), "float32", False, 4)
    batch = torch.randint(0, 200, (3, 2, 9))
    batch[2] = 0  # one conversation a row
    own = DistillObjective(student.train(), load_run(chat_base, device="cpu").model, how, config)
    assert float(own(*batch).detach()) == pytest.approx(0.0, abs=1e-6)
    objective = DistillObjective(student, other, how, config)
    objective(*batch).backward()
    assert objective.figures()["divergence"] > 0.01
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in other.parameters())
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"model"}


def test_a_student_learns_its_teachers_probabilities(chat_base, teacher, tmp_path):
    config = distill(
        chat_base, teacher, tmp_path, "train.steps=8", "optimizer.lr=0.01", "train.save_every=99"
    )
    run("distill", config, tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row["divergence"] for row in map(json.loads, rows) if row["kind"] == "train"]
    assert found[-1] < 0.5 * found[0]


def test_a_teacher_is_asked_once_and_its_answers_are_learnt(chat_base, teacher, tmp_path):
    words = ("learn_from=samples", "answers.max_new_tokens=4", "train.steps=2", "train.save_every=1")
    config = distill(chat_base, teacher, tmp_path, *words)
    run("distill", config, tmp_path / "run")
    lines = (tmp_path / "run" / "teacher.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["answer"] for line in lines}) > len(lines) / 2
    before = [json.loads(line)["where"] for line in lines]
    assert all(where.startswith(str(tmp_path / "data.jsonl")) for where in before)
    (tmp_path / "run" / "summary.json").unlink()
    # a resumed run reads them: a teacher that is gone is not missed
    gone = config.model_copy(update={"teacher": tmp_path / "gone"})
    (tmp_path / "run" / "posttrain.json").write_text(
        json.dumps({"stage": "distill"} | gone.model_dump(mode="json")), encoding="utf-8"
    )
    run("distill", gone, tmp_path / "run", resume=True)


def test_without_a_question_the_data_is_to_blame_and_not_the_teacher(chat_base, teacher, tmp_path):
    config = distill(chat_base, teacher, tmp_path, "learn_from=samples")
    write_lines(tmp_path / "data.jsonl", [])
    with pytest.raises(ValueError, match="data: no conversation is left to learn from"):
        run("distill", config, tmp_path / "run")


def test_a_teacher_with_another_tokenizer_teaches_by_samples_alone(chat_base, base_run, tmp_path):
    with pytest.raises(ValueError, match=r"has another tokenizer than the student.*learn_from=samples"):
        run("distill", distill(chat_base, base_run, tmp_path), tmp_path / "run")
    with pytest.raises(ValueError, match="neftune_alpha: not used with learn_from=logits"):
        distill(chat_base, base_run, tmp_path, "neftune_alpha=5.0")
