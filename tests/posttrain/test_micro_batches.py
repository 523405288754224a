"""Whatever is computed at once, a step has the gradient of all its items, and prompts have none."""

import preference_files
import pytest
import torch
from small_bases import make_base, sayings, settings, write_lines
from small_policies import grpo_settings

from scratchlm.distributed.engine import OneProcess, Work
from scratchlm.distributed.process import Processes
from scratchlm.loss import IGNORE
from scratchlm.posttrain import STAGES
from scratchlm.posttrain.base import open_base
from scratchlm.posttrain.config import DistillConfig, SftConfig
from scratchlm.train.folder import RunFolder
from scratchlm.train.guard import Guard, GuardConfig
from scratchlm.train.trainer import Execution, Trainer

STEP = 8
"""Items of a step: conversations, pairs or answers."""
CASES = {
    "sft": ("sft", ()),
    "sft-padded": ("sft", ("rows=padded", "train.label_smoothing=0.1", "train.z_loss=1e-3")),
    "sft-lora": ("sft", ("adapter=lora",)),
    "distill": ("distill", ("temperature=2", "data_weight=0.3")),
    "dpo": ("dpo", ("sft_weight=0.5",)),
    "ipo": ("dpo", ("loss=ipo",)),
    "kto": ("dpo", ("loss=kto",)),
    "simpo": ("dpo", ("loss=simpo", "rows=padded")),
    "grpo": ("grpo", ("kl=0.2", "passes=2")),
    "constant": ("grpo", ("length=constant", "normalizer=none")),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A run with the tokens of a conversation, and a teacher of the same tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    return [make_base(folder / name, f"seed={n}", chat=True, text=False) for n, name in enumerate("ab")]


def config_of(stage, words, bases, folder):
    base, teacher = bases
    if stage == "dpo":
        return preference_files.settings(folder, base, f"pairs_per_step={STEP}", *words)
    if stage == "grpo":
        return grpo_settings(base, *words)
    data = {"name": "alpaca", "paths": [str(write_lines(folder / "data.jsonl", sayings(24)))]}
    given = {"data": data, "conversations_per_step": STEP}
    if stage == "sft":
        return settings(SftConfig, base, *words, **given)
    return settings(DistillConfig, base, *words, **given, teacher=str(teacher))


def ready(stage, words, bases, folder):
    """A stage with a model whose weights are no longer the base's."""
    config = config_of(stage, words, bases, folder)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    made = STAGES.get(stage)(config, open_base(config, run), run)
    made.prepare(lambda event: None)
    made.objective = made.make_objective(
        made.build_model(made.run_config(), made.base.tokenizer), execution(STEP)
    )
    if stage == "grpo":
        made.answers_of(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.objective.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator) * p.requires_grad)
    return made


def execution(micro_rows):
    return Execution(torch.device("cpu"), "float32", False, micro_rows)


def trained(made, micro_rows, step):
    """Loss and gradient of a step as a run's trainer leaves them."""
    engine, model = OneProcess(), made.objective.model
    engine.wrap(Work(model, made.objective), Processes())
    trainer = Trainer(
        engine,
        torch.optim.SGD(model.parameters(), lr=0.0),
        lambda step: 1.0,
        made.loader(),
        rows_per_step=made.config.items_per_step,
        grad_clip=0.0,
        execution=execution(micro_rows),
        guard=Guard(GuardConfig()),
    )
    loss = trainer.step(step).loss
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("case", CASES)
def test_the_trainer_s_gradient_does_not_depend_on_how_much_is_computed_at_once(bases, tmp_path, case):
    made = ready(*CASES[case], bases, tmp_path)
    loss, wanted = trained(made, STEP, 1)
    assert wanted.abs().max() > 1e-4
    for micro_rows in (4, 1):
        parts, found = trained(made, micro_rows, 1)
        assert parts == pytest.approx(loss, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def said(written):
    """Ids before each target that is learned, and that target."""
    marks = torch.from_numpy(written.mask[1:])
    ids = torch.from_numpy(written.ids).long()
    return ids[None, :-1], ids[1:][marks], marks


@pytest.mark.parametrize("temperature", [None, 1.0, 2.0])
def test_what_conversations_teach_is_cross_entropy_or_divergence_one_after_the_other(
    bases, tmp_path, temperature
):
    stage, words = ("sft", ()) if temperature is None else ("distill", (f"temperature={temperature}",))
    made = ready(stage, words, bases, tmp_path)
    loss, found = trained(made, 2, 1)
    model, loader = made.objective.model, made.loader()
    model.zero_grad()
    losses = []
    for item in range(STEP):
        inputs, targets, marks = said(loader.conversations.take(loader.number(1, item)))
        logits = model(inputs)[0, marks]
        if temperature is None:
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
            continue
        with torch.no_grad():
            teacher = made.teacher.model(inputs)[0, marks]
        p, q = ((part / temperature).softmax(dim=-1) for part in (teacher, logits))
        losses.append(temperature**2 * (p * (p / q).log()).sum(dim=-1))
    wanted = torch.cat(losses).mean()
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def assistants(inputs, names):
    """Where the next token is the assistant's, by the tokens of the conversation alone."""
    speaks = torch.zeros_like(inputs, dtype=torch.bool)
    for row, ids in enumerate(inputs.tolist()):
        on = False
        for place, token in enumerate(ids):
            on = token == names["<|assistant|>"] or (on and token != names["<|end|>"])
            speaks[row, place] = on
    return speaks


@pytest.mark.parametrize("case", CASES)
def test_no_place_has_a_gradient_but_those_before_the_assistant_s_tokens(bases, tmp_path, case):
    made, seen = ready(*CASES[case], bases, tmp_path), []
    made.objective.model.ln_final.register_forward_hook(lambda part, given, out: seen.append(out))
    batch = made.loader().rows(0, 0, STEP)
    loss = made.objective(*batch)
    (gradient,) = torch.autograd.grad(loss, seen[:1])  # distillation: the teacher's comes behind it
    taught = (gradient != 0).any(dim=-1)
    speaks = assistants(batch.inputs, made.base.tokenizer.special_tokens)
    assert not (taught & ~speaks).any()
    learned = batch.mask if case in ("grpo", "constant") else batch.targets != IGNORE
    assert torch.equal(taught, learned)
    assert 0 < int(learned.sum()) < 0.8 * learned.numel()
