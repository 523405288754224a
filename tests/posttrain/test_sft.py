"""Supervised fine-tuning as a whole run: it learns, any command reads it, it resumes bit for bit."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
from small_bases import make_base, sayings, settings, write_lines

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate.likelihood import evaluate_split
from scratchlm.loss import IGNORE, token_losses
from scratchlm.posttrain import STAGES
from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.config import SftConfig
from scratchlm.posttrain.run import read, run
from scratchlm.posttrain.sft import SftObjective, lengths_of
from scratchlm.tokenizer.chat import CHAT_TOKENS
from scratchlm.train.events import Sampled, StepEnded
from scratchlm.train.folder import RunFolder, load_run
from scratchlm.train.metrics import JsonLines
from scratchlm.train.trainer import Execution


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("data") / "sayings.jsonl", sayings())


def sft(base_run, data, *words, **more):
    given = {
        "data": {"name": "alpaca", "paths": [str(data)]},
        "conversations_per_step": 8,
        "valid_share": 0.2,
    }
    return settings(SftConfig, base_run, *words, **given, **more)


@pytest.fixture(scope="session")
def finished(base_run, data, tmp_path_factory):
    """A finished run with dropout's cousin, noise on the embeddings, and what it told."""
    folder, told = tmp_path_factory.mktemp("sft") / "run", []
    torch.set_num_threads(1)
    run("sft", sft(base_run, data, "neftune_alpha=0.5"), folder, on_event=told.append)
    return folder, told


def weights(folder, group="model"):
    return load_checkpoint(latest(folder / "checkpoints")).tensors[group]


def rows_of(folder, *, without=("seconds", "tokens_per_second", "mfu")):
    rows = JsonLines(RunFolder(folder).metrics).rows()
    return [{k: v for k, v in row.items() if k not in without} for row in rows if row["kind"] != "resume"]


def test_it_learns_what_the_assistant_says(finished):
    rows = [row for row in rows_of(finished[0]) if row["kind"] == "valid"]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert all("base_loss" in row and "token_accuracy" in row for row in rows)


def test_its_folder_is_a_run_folder_with_a_larger_vocabulary(finished, base_run):
    before, after = load_run(base_run), load_run(finished[0])
    assert after.tokenizer.vocab_size == before.tokenizer.vocab_size + len(CHAT_TOKENS)
    assert all(name in after.tokenizer.special_tokens for name in CHAT_TOKENS)
    text = "the cat said 12"
    assert after.tokenizer.encode_ordinary(text) == before.tokenizer.encode_ordinary(text)
    assert after.model.token_embeddings.weight.shape[0] == after.tokenizer.vocab_size
    assert after.step == 4


def test_the_base_text_is_there_and_its_loss_is_the_one_that_was_recorded(finished):
    loaded = load_run(finished[0])
    text = TokenDataset.open(
        loaded.folder.shards("valid"), tokenizer_fingerprint=loaded.tokenizer.fingerprint, verify=True
    )
    found = evaluate_split(loaded.model, text, context_length=64, device=torch.device("cpu"), max_tokens=256)
    summary = json.loads(loaded.folder.summary.read_text(encoding="utf-8"))
    assert summary["posttrain"]["after"]["base_loss"] == pytest.approx(found.loss, abs=1e-5)
    assert summary["posttrain"]["before"]["base_loss"] != summary["posttrain"]["after"]["base_loss"]


def test_tokens_are_those_that_went_through_the_model(finished, base_run, data):
    from scratchlm.posttrain.sft import Sft

    folder, told = finished
    steps = [event for event in told if isinstance(event, StepEnded)]
    config = sft(base_run, data)
    stage = Sft(config, open_base(config, RunFolder(folder)), RunFolder(folder))
    stage.prepare(lambda event: None)
    loader = stage.loader()
    taken = [loader.conversations.take(loader.number(step, item)) for step in range(4) for item in range(8)]
    assert steps[-1].tokens == sum(len(written.ids) - 1 for written in taken)


def test_answers_are_shown_before_and_after(finished):
    _, told = finished
    samples = [event for event in told if isinstance(event, Sampled)]
    assert {event.step for event in samples} == {0, 4}
    assert all(event.text == "".join(text for text, _ in event.pieces) for event in samples)
    assert all("Say" in event.prompt for event in samples)


@pytest.mark.parametrize(("stop_at", "lost"), [(1, False), (2, True), (3, False)])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(
    finished, base_run, data, tmp_path, stop_at, lost
):
    config = sft(base_run, data, "neftune_alpha=0.5")

    def stop(event):
        if isinstance(event, StepEnded) and event.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run("sft", config, tmp_path / "run", on_event=stop)["steps"] == stop_at
    if lost:  # as after a crash before the first checkpoint
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    torch.manual_seed(12345)
    resumed = run("sft", config, tmp_path / "run", resume=True)
    whole, expected = weights(tmp_path / "run"), weights(finished[0])
    assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())
    assert {row["step"]: row for row in rows_of(tmp_path / "run")} == {
        row["step"]: row for row in rows_of(finished[0])
    }
    summary = json.loads(RunFolder(finished[0]).summary.read_text(encoding="utf-8"))
    assert resumed["posttrain"] == summary["posttrain"]
    assert resumed["tokens"] == summary["tokens"]


def test_a_run_goes_on_though_its_base_is_gone(data, tmp_path):
    base = make_base(tmp_path / "base", text=False)
    config = sft(base, data, "train.steps=2")
    run("sft", config, tmp_path / "run")
    shutil.rmtree(base)
    longer = read("sft", str(tmp_path / "run"), ["train.steps=3", "schedule=constant"])
    summary = run("sft", longer, tmp_path / "run", resume=True, allow_changes=True)
    assert summary["steps"] == 3
    assert "base_loss" not in summary["posttrain"]["after"]
    with pytest.raises(ValueError, match="no run folder"):
        run("sft", config, tmp_path / "other")


def test_settings_that_change_what_a_run_is_are_refused_when_it_goes_on(finished, base_run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    with pytest.raises(ValueError, match=r"seed: 0 -> 1.*weights and moments belong to the old settings"):
        run("sft", sft(base_run, data, "neftune_alpha=0.5", "seed=1"), folder, resume=True)
    with pytest.raises(
        ValueError, match=r"neftune_alpha: 0.5 -> 0.0: from here on the run would learn otherw"
    ):
        run("sft", sft(base_run, data), folder, resume=True)
    with pytest.raises(ValueError, match="holds a run already"):
        run("sft", sft(base_run, data), folder)
    with pytest.raises(ValueError, match="was not made by scratchlm dpo"):
        read("dpo", str(folder))


def test_a_post_trained_run_is_a_base_like_any_other(finished, data, tmp_path):
    config = sft(finished[0], data, "train.steps=1", "adapter=lora", "adapter.rank=2")
    summary = run("sft", config, tmp_path / "run")
    assert load_run(tmp_path / "run").tokenizer.fingerprint == load_run(finished[0]).tokenizer.fingerprint
    first = json.loads(RunFolder(finished[0]).summary.read_text(encoding="utf-8"))
    assert summary["posttrain"]["before"]["loss"] == pytest.approx(
        first["posttrain"]["after"]["loss"], abs=1e-5
    )
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()


def test_a_part_of_the_held_out_is_drawn_from_all_of_it(base_run, data, tmp_path, monkeypatch):
    kinds = [
        {"instruction": f"{kind} {i}", "output": "It is."} for kind in ("Say", "Sing") for i in range(20)
    ]
    file = write_lines(tmp_path / "kinds.jsonl", kinds)
    paths = {"name": "alpaca", "paths": [str(data)], "valid_paths": [str(file)]}
    config = settings(SftConfig, base_run, "train.eval_tokens=100", data=paths, conversations_per_step=8)
    stage = STAGES.get("sft")(config, open_base(config, RunFolder(tmp_path / "run")), RunFolder(tmp_path))
    stage.prepare(lambda event: None)
    read, plain = [], stage.valid_conversations.take
    monkeypatch.setattr(
        stage.valid_conversations, "take", lambda number: read.append(number) or plain(number)
    )
    orders = []
    for most in (100, 100, None):
        read.clear()
        list(stage._held_out_rows(most))
        orders.append(list(read))
    some, again, everything = orders
    assert some == again == everything[: len(some)]
    assert sorted(everything) == list(range(40))
    assert len(some) < 20
    assert 2 <= sum(number < 20 for number in some) <= len(some) - 2
    asked = [messages[-1]["content"] for messages in stage.questions()]
    assert asked == [kinds[number]["instruction"] for number in everything[:3]]


def objective_on(base_run, tmp_path, config):
    base = open_base(config, RunFolder(tmp_path))
    how = Execution(torch.device("cpu"), "float32", False, 8)
    torch.manual_seed(0)
    return SftObjective(base.model(), how, config, micro_tokens=512), base


def test_the_loss_is_the_mean_over_the_assistants_tokens_and_micro_batches_add_up(base_run, data, tmp_path):
    from scratchlm.posttrain.sft import Sft

    config = sft(base_run, data)
    objective, base = objective_on(base_run, tmp_path, config)
    stage = Sft(config, base, RunFolder(tmp_path))
    stage.prepare(lambda event: None)
    loader, model = stage.loader(), objective.model
    whole = loader.rows(0, 0, 8)
    loss = objective(*whole)
    losses = token_losses(model(whole.inputs, documents=whole.documents), whole.targets)
    torch.testing.assert_close(loss, losses.sum() / (whole.targets != IGNORE).sum())
    (expected,) = torch.autograd.grad(loss, [model.layers[0].attn.q_proj.weight])
    counts, total = [], torch.zeros_like(expected)
    for first in (0, 2, 4, 6):
        part = loader.rows(0, first, 2)
        counts.append(int((part.targets != IGNORE).sum()))
        (gradient,) = torch.autograd.grad(objective(*part) * counts[-1], [model.layers[0].attn.q_proj.weight])
        total += gradient
    torch.testing.assert_close(total / sum(counts), expected, rtol=1e-4, atol=1e-6)


def test_noise_is_as_large_as_the_paper_says_and_only_while_training(base_run, data, tmp_path):
    config = sft(base_run, data, "neftune_alpha=5")
    objective, _ = objective_on(base_run, tmp_path, config)
    documents = torch.tensor([[0] * 10 + [1] * 20])
    inputs, targets = torch.randint(0, 200, (1, 30)), torch.randint(0, 200, (1, 30))
    seen = []
    objective.model.token_embeddings.register_forward_hook(
        lambda module, given, out: seen.append(out.detach())
    )
    objective.train()
    objective(inputs, targets, documents)
    noise = (seen[0] - objective.model.token_embeddings.weight[inputs]).abs()[0]
    for part, length in ((noise[:10], 10), (noise[10:], 20)):
        bound = 5 / (length * 32) ** 0.5
        assert 0.9 * bound < part.max() <= bound * 1.0001
    objective.eval()
    first, second = objective(inputs, targets, documents), objective(inputs, targets, documents)
    assert torch.equal(first, second)


def test_the_length_of_each_conversation_is_found():
    assert lengths_of(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[2, 2, 3, 3, 3]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batch_tokens=64"], "train.batch_tokens=64: Input should be less than or equal to 0"),
        (["train.document_mask=false"], "a conversation must not see those before it"),
        (["data.name=nothing"], "unknown instructions 'nothing'"),
        (["adapter=lora", "adapter.rank=0"], "rank must be at least 1"),
        (["train.compile=true"], "train.compile"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_is_allowed(base_run, data, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run("sft", sft(base_run, data, *words), tmp_path / "run")


def test_a_tokenizer_that_takes_no_new_tokens_is_told_about_plain_words(data, tmp_path):
    from scratchlm.posttrain.base import with_chat_tokens
    from scratchlm.tokenizer.chars import CharTokenizer

    with pytest.raises(ValueError, match=r"CharTokenizer takes no further special tokens.*say chat=plain"):
        with_chat_tokens(CharTokenizer("abc"))


def test_plain_words_need_no_new_tokens(base_run, data, tmp_path):
    summary = run("sft", sft(base_run, data, "chat=plain", "train.steps=1", "rows=padded"), tmp_path / "run")
    assert summary["posttrain"]["valid_items"] > 0
    assert load_run(tmp_path / "run").tokenizer.vocab_size == load_run(base_run).tokenizer.vocab_size


def test_rows_are_padded_where_positions_are_not_relative(base_run, data, tmp_path):
    from scratchlm.posttrain.sft import Sft

    config = sft(base_run, data)
    base = open_base(config, RunFolder(tmp_path))
    found = {}
    for position in ("rope", "learned"):
        settings = base.settings.model_copy(
            update={"position": base.settings.position.model_copy(update={"name": position})}
        )
        stage = Sft(config, dataclasses.replace(base, settings=settings), RunFolder(tmp_path))
        found[position] = stage.arrangement
    assert found == {"rope": "packed", "learned": "padded"}
