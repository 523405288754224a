"""DPO: its loss is the plain one whatever is computed together; a run learns, resumes, is like any other."""

import copy
import json
from itertools import chain

import pytest
import torch
from preference_files import pairs, settings, some_pairs, train, write
from small_bases import make_base, tokenizer_of

from scratchlm.model.config import ModelConfig
from scratchlm.model.transformer import TransformerLM
from scratchlm.posttrain import STAGES
from scratchlm.posttrain import run as posttrain
from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.config import DpoConfig
from scratchlm.posttrain.dpo import DpoObjective
from scratchlm.posttrain.pairs import write_pairs
from scratchlm.posttrain.preference_losses import DPO, Pairs
from scratchlm.posttrain.reference import answer_log_probs
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import RunFolder, load_run
from scratchlm.train.trainer import Execution

CPU = torch.device("cpu")
PLAIN = Execution(CPU, "float32", False, 8)


@pytest.fixture(scope="module")
def small():
    """Pairs, a model and a reference."""
    found, _ = write_pairs(some_pairs(8), ChatTemplate(tokenizer_of(chat=True)), max_tokens=160)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        shape = {"context_length": 160, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48}
        models.append(TransformerLM(ModelConfig(vocab_size=int(found.answers.ids.max()) + 1, **shape)))
    return found, *models


def objective_of(model, **chosen):
    data = {"name": "story_pairs"}
    tree = {"name": "x", "base": "x", "data": data, "train": {"steps": 1}, **chosen}
    return DpoObjective(model, PLAIN, DpoConfig.model_validate(tree))


def batch_of(found, reference, numbers, arrangement="packed"):
    rows = found.rows(numbers, room=160, arrangement=arrangement, padding_id=0)
    with torch.no_grad():
        known = answer_log_probs(reference, rows, device=CPU, precision="float32")
    return rows._replace(reference=known)


def plain_loss(model, reference, found, numbers, name, sft_weight):
    """One answer after the other, with nothing of the package but the model, as the papers write it."""
    total, logsigmoid = 0.0, torch.nn.functional.logsigmoid
    for number in numbers:
        ratios, means = [], []
        for written in found.written([number]):
            ids = torch.from_numpy(written.ids).long()[None]
            marks = torch.from_numpy(written.mask[1:])
            now, before = (
                part(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0][marks]
                for part in (model, reference)
            )
            ratios.append(now.sum() - before.sum().detach())
            means.append(now.mean())
        if name == "dpo":
            loss = -logsigmoid(0.1 * (ratios[0] - ratios[1]))
        elif name == "ipo":
            loss = (ratios[0] - ratios[1] - 1 / (2 * 0.1)) ** 2
        elif name == "kto":
            points = [ratio.detach().clamp(min=0) for ratio in ratios]
            loss = (
                2
                - torch.sigmoid(0.1 * (ratios[0] - points[1]))
                - torch.sigmoid(0.1 * (points[0] - ratios[1]))
            )
        else:
            loss = -logsigmoid(2.0 * (means[0] - means[1]) - 1.0)
        total = total + loss - sft_weight * means[0]
    return total / len(numbers)


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
@pytest.mark.parametrize(
    ("name", "sft_weight"), [("dpo", 0.0), ("dpo", 0.5), ("ipo", 0.0), ("kto", 0.0), ("simpo", 0.5)]
)
def test_loss_and_gradient_are_those_of_a_plain_reference(small, arrangement, name, sft_weight):
    found, model, reference = small
    objective = objective_of(copy.deepcopy(model), loss={"name": name}, sft_weight=sft_weight)
    twin = copy.deepcopy(model)
    loss = objective(*batch_of(found, reference, [0, 3, 5], arrangement))
    loss.backward()
    expected = plain_loss(twin, reference, found, [0, 3, 5], name, sft_weight)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for p, q in zip(objective.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * float(1 + q.grad.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "simpo"])
def test_micro_batches_add_up_to_the_whole_batch(small, loss):
    found, model, reference = small
    gradients, losses = [], []
    for parts in ([range(8)], [range(0, 4), range(4, 8)], [range(n, n + 1) for n in range(8)]):
        objective = objective_of(copy.deepcopy(model), loss={"name": loss})
        total = 0.0
        for part in parts:
            share = objective(*batch_of(found, reference, list(part))) * (len(part) / 8)
            share.backward()
            total += share.detach()
        losses.append(total)
        gradients.append([p.grad for p in objective.model.parameters()])
    for total, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(total, losses[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-4, rtol=1e-3)


def test_figures_are_means_over_the_pairs_of_a_step(small):
    found, model, reference = small
    objective = objective_of(model)
    objective.reset()
    batches = [batch_of(found, reference, [1, 2, 6]), batch_of(found, reference, [4])]
    with torch.no_grad():
        parts = [objective.pairs(batch) for batch in batches]
        for batch in batches:
            objective(*batch)
    whole = Pairs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    rewards, figures = DPO(beta=0.1).rewards(whole), objective.figures()
    assert figures["margin"] == pytest.approx(float(rewards.margins.mean()), rel=1e-4, abs=1e-5)
    assert figures["accuracy"] == pytest.approx(float(rewards.accuracy))
    assert figures["reward_rejected"] == pytest.approx(float(rewards.rejected.mean()), rel=1e-4, abs=1e-5)
    ids = [len(written.ids) - 1 for number in (1, 2, 6, 4) for written in found.written([number])]
    assert objective.num_tokens == sum(ids)
    objective.reset()
    assert objective.figures() == {}


@pytest.fixture(scope="module")
def polite(tmp_path_factory, base_run):
    """A run of eight steps, in one go."""
    folder = tmp_path_factory.mktemp("polite")
    config = settings(folder, base_run)
    return folder / "run", config, *train(folder / "run", config)


def test_a_run_learns_what_is_preferred_and_says_what_changed(polite):
    _, _, summary, rows, _ = polite
    before, after = summary["posttrain"]["before"], summary["posttrain"]["after"]
    assert before["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert abs(before["margin"]) < 1e-4
    assert before["kl"] == pytest.approx(0.0, abs=1e-6)
    assert after["accuracy"] == 1.0
    assert after["margin"] > 0.05
    assert after["kl"] > 1e-4
    assert after["likelier"] >= before["likelier"]
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert all({"accuracy", "margin", "reward_chosen", "chosen_loss"} <= row.keys() for row in steps)
    assert steps[-1]["margin"] > steps[0]["margin"]
    valid = [row["step"] for row in rows if row["kind"] == "valid"]
    assert valid == [0, 4, 8]


def test_the_reference_is_computed_before_the_first_step_and_kept(polite):
    path, _, _, _, events = polite
    phases = {event.name: event.summary for event in events if type(event).__name__ == "PhaseEnded"}
    assert phases["reference"] == {"computed pairs": 50}
    kept = json.loads((path / "reference.json").read_text(encoding="utf-8"))
    assert [len(kept[name]) for name in ("train", "valid")] == [40, 10]
    assert None not in kept["train"]


def test_a_part_of_the_held_out_is_drawn_from_all_of_it(base_run, tmp_path):
    config = settings(tmp_path, base_run)
    stage = STAGES.get("dpo")(config, open_base(config, RunFolder(tmp_path / "run")), RunFolder(tmp_path))
    stage.prepare(lambda event: None)
    assert len(stage.valid_pairs) == 10
    stage.make_objective(stage.base.model(), PLAIN)
    everything, some = ([*chain(*stage._some(most))] for most in (None, 10))
    assert sorted(everything) == list(range(10))
    assert some == everything[:8]
    assert some != list(range(8))
    prompts = stage.valid_pairs.prompts
    assert stage.questions() == [prompts[number] for number in everything[:3]]


def test_the_folder_is_a_run_like_any_other(polite):
    path, *_ = polite
    run = load_run(path, device="cpu")
    assert run.model(torch.tensor([[1, 2, 3]])).shape[-1] == run.tokenizer.vocab_size


def test_a_resumed_run_is_bit_for_bit_the_one_in_one_go(polite, tmp_path):
    path, config, summary, rows, _ = polite
    again = tmp_path / "again"
    half = config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})})
    train(again, half)
    resumed, more, events = train(again, config, resume=True)
    assert {event.name: event.summary for event in events if type(event).__name__ == "PhaseEnded"}[
        "reference"
    ] == {"computed pairs": 8}, "32 of 40 pairs were enough for half of it"

    def told(lines):
        kept = ("step", "loss", "grad_norm", "margin", "reward_chosen")
        return [{key: row[key] for key in kept} for row in lines if row["kind"] == "train"]

    assert told(more) == told(rows)
    assert resumed["posttrain"]["after"] == summary["posttrain"]["after"]
    ours, theirs = (load_run(place, device="cpu").model.state_dict() for place in (again, path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_simpo_asks_no_reference(base_run, tmp_path):
    config = settings(tmp_path, base_run, "loss=simpo", "train.steps=2", "train.eval_every=2")
    summary, _, events = train(tmp_path / "run", config)
    assert not (tmp_path / "run" / "reference.json").exists()
    assert "reference" not in [event.name for event in events if type(event).__name__ == "PhaseStarted"]
    assert summary["posttrain"]["after"]["kl"] > 0


def test_with_learned_positions_answers_are_not_packed(tmp_path):
    base = make_base(tmp_path / "base", "model.position.name=learned", text=False)
    config = settings(tmp_path, base, "train.steps=1", "train.eval_every=1")
    summary, rows, _ = train(tmp_path / "run", config)
    first = next(row for row in rows if row["kind"] == "train")
    assert summary["posttrain"]["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["margin"] == pytest.approx(0.0, abs=1e-4)


def test_an_adapter_learns_and_begins_where_the_reference_is(base_run, tmp_path):
    config = settings(tmp_path, base_run, "adapter.name=lora", "optimizer.lr=1e-2", "train.sample_every=4")
    summary, rows, _ = train(tmp_path / "run", config)
    found = summary["posttrain"]
    assert found["before"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["after"]["accuracy"] >= 0.9
    assert found["trainable_parameters"] < 20_000
    assert [row for row in rows if row["kind"] == "valid"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no pair is left to learn from"),
        ([{"prompt": "word " * 90, "chosen": "a", "rejected": "b"}], "no pair is left to learn from"),
        ([{"prompt": "a", "chosen": "b"}], r"train.jsonl:1: has no 'rejected'"),
        (["{"], r"train.jsonl:1: no JSON"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(base_run, tmp_path, rows, message):
    config = settings(tmp_path, base_run)
    file = tmp_path / "train.jsonl"
    if rows == ["{"]:
        file.write_text("{\n", encoding="utf-8")
    else:
        write(file, rows)
    with pytest.raises(ValueError, match=message):
        posttrain.run("dpo", config, tmp_path / "run")


def test_settings_outside_their_range_are_refused(base_run, tmp_path):
    assert len(list(pairs(3))) == 3
    for words, message in (
        (["loss.beta=0"], "dpo: beta=0.0: must be above 0"),
        (["loss=dpa"], "unknown preference loss 'dpa'. Did you mean 'dpo'"),
        (["sft_weight=-1"], "sft_weight"),
        (["train.label_smoothing=0.1"], "train.label_smoothing: not used for preferences"),
        (["loss.gamma=1"], "unknown setting of 'dpo' 'gamma'"),
    ):
        with pytest.raises(ValueError, match=message):
            posttrain.run("dpo", settings(tmp_path, base_run, *words), tmp_path / "run")
