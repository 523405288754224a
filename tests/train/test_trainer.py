"""One step: equal for any split into micro-batches, without a trace when it is left out or given up."""

import copy

import pytest
import torch

from scratchlm.data.loader import Batch
from scratchlm.distributed.engine import OneProcess, Work
from scratchlm.distributed.process import Processes
from scratchlm.loss import IGNORE, cross_entropy
from scratchlm.model import MODELS, ModelSettings
from scratchlm.optim import OPTIMIZERS
from scratchlm.train.guard import Guard, GuardConfig
from scratchlm.train.trainer import Execution, StepAbandonedError, Trainer

VOCABULARY, ROWS, TIME = 31, 8, 16


class Rows:
    """Rows of random ids, a pure function of (step, row); a third of the targets may be padding."""

    rows_per_step = ROWS
    foreseen = True

    def __init__(self, *, padded: bool = False, empty: tuple[int, ...] = ()) -> None:
        self.padded, self.empty = padded, empty
        self.read: list[tuple[int, int, int]] = []

    def rows(self, step: int, first: int, count: int) -> Batch:
        self.read.append((step, first, count))
        ids = torch.stack([self._row(step, row) for row in range(first, first + count)])
        targets = ids[:, 1:].clone()
        if self.padded:
            for offset in range(count):
                targets[offset, TIME - (first + offset) :] = IGNORE  # every row has another number of targets
                if first + offset in self.empty:
                    targets[offset] = IGNORE
        return Batch(ids[:, :-1], targets)

    def _row(self, step: int, row: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * step + row)
        return torch.randint(0, VOCABULARY, (TIME + 1,), generator=generator)


def make(
    *, micro_rows=ROWS, padded=False, empty=(), dropout=0.0, poison=None, abandon=None, **guard
) -> Trainer:
    torch.manual_seed(0)
    settings = ModelSettings(
        context_length=TIME, d_model=16, num_layers=2, num_heads=2, dropout=dropout
    ).with_vocabulary(VOCABULARY)
    model = MODELS.get("transformer")(settings)
    calls = {"number": 0}

    def objective(inputs, targets):
        loss = cross_entropy(model(inputs), targets)
        calls["number"] += 1
        return poison(loss, calls["number"]) if poison else loss

    engine = OneProcess()
    engine.wrap(Work(model, objective), Processes())
    return Trainer(
        engine,
        OPTIMIZERS.build("adamw", list(model.parameters()), lr=1e-2),
        lambda step: 1.0,
        Rows(padded=padded, empty=empty),
        rows_per_step=ROWS,
        grad_clip=1.0,
        execution=Execution(torch.device("cpu"), "float32", compile=False, micro_rows=micro_rows),
        guard=Guard(GuardConfig(**guard)),
        **({"abandon": abandon} if abandon else {}),
    )


def everything(trainer: Trainer) -> list[torch.Tensor]:
    """Copies of weights and moments."""
    states = [trainer.optimizer.state[p] for p in trainer.model.parameters()]
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return [tensor.detach().clone() for tensor in (*trainer.model.parameters(), *moments)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_micro_batches_add_up_to_the_whole_batch(micro_rows, padded):
    whole, split = make(padded=padded), make(micro_rows=micro_rows, padded=padded)
    for step in range(3):
        one, other = whole.step(step), split.step(step)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_padded_batch_has_the_mean_over_its_targets():
    trainer = make(padded=True, micro_rows=2)
    batch = trainer.batches.loader.rows(0, 0, ROWS)
    expected = cross_entropy(copy.deepcopy(trainer.model)(batch.inputs), batch.targets).detach()
    assert trainer.step(0).loss == pytest.approx(float(expected), rel=1e-5)


def test_a_micro_batch_without_targets_contributes_nothing():
    whole, split = (make(padded=True, empty=(2, 3, 7), micro_rows=rows) for rows in (ROWS, 2))
    for step in range(2):
        one, other = whole.step(step), split.step(step)
        assert other.judgement.action == "apply"
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_a_step_without_targets_is_left_out():
    trainer = make(padded=True, empty=tuple(range(ROWS)), micro_rows=2)
    before = everything(trainer)
    assert trainer.step(0).judgement == ("skip", "the loss is nan", None)
    assert equal(everything(trainer), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_left_out_touches_neither_weights_nor_moments(bad):
    trainer = make(poison=lambda loss, call: loss * bad if call == 3 else loss)
    trainer.step(0)
    trainer.step(1)
    before = everything(trainer)
    counts = [trainer.optimizer.state[p]["step"] for p in trainer.model.parameters()]
    result = trainer.step(2)
    assert result.judgement.action == "skip"
    assert equal(everything(trainer), before)
    assert [trainer.optimizer.state[p]["step"] for p in trainer.model.parameters()] == counts
    assert trainer.step(3).judgement.action == "apply"
    assert not equal(everything(trainer), before)


def test_a_step_that_was_given_up_leaves_no_trace():
    asked = {"number": 0}

    def abandon() -> bool:
        asked["number"] += 1
        return asked["number"] == 7  # before the third micro-batch of the second step

    plain, stopped = make(micro_rows=2, dropout=0.2), make(micro_rows=2, dropout=0.2, abandon=abandon)
    plain.step(0)
    stopped.step(0)
    with pytest.raises(StepAbandonedError):
        stopped.step(1)
    assert equal(everything(stopped), everything(plain))
    torch.manual_seed(12345)  # whatever happens in between
    for step in (1, 2):
        assert stopped.step(step).loss == plain.step(step).loss
    assert equal(everything(stopped), everything(plain))


def test_skipped_data_is_the_batch_of_a_later_step():
    plain, skipping = make(), make()
    skipping.data_offset = 5
    skipping.step(0)
    assert skipping.batches.loader.read[0] == (5, 0, ROWS)
    assert plain.step(0).loss != skipping.step(1).loss


def test_rows_that_cannot_be_shared_by_the_processes_are_refused():
    processes = Processes()
    processes.world_size = 3
    with pytest.raises(ValueError, match="cannot be shared evenly by 3 processes"):
        processes.rows(ROWS)
