"""The probe: real steps, timed and weighed, that leave nothing behind."""

import math

import pytest
import torch

from scratchlm.train import probe, recipes
from scratchlm.train.probe import CompilationError, Probe, peak_bytes, probe_steps
from scratchlm.train.trainer import Execution

CPU = torch.device("cpu")
TINY = ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "model.context_length=16"]


def tried(*words, compiled=False):
    config = recipes.read("demo", [*words, *TINY, "train.batch_tokens=64"])
    return probe_steps(config, config.model.with_vocabulary(64), Execution(CPU, "float32", compiled, 4))


def test_five_steps_are_timed():
    found = tried()
    assert found.steps == probe.STEPS == 5
    assert found.micro_seconds > 0
    assert found.update_seconds > 0
    assert found.validation_seconds > 0
    assert found.compile_seconds == 0.0


def test_a_step_is_its_micro_batches_and_one_update():
    assert Probe(0.2, 0.05, 9.0, 0.1, 1, 5).step_seconds(4) == pytest.approx(0.85)


def test_slow_steps_are_tried_less_often(monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    assert tried().steps == 2


def test_random_numbers_are_drawn_as_if_there_had_been_no_probe():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tried("model.dropout=0.1")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "words", [["optimizer=muon"], ["train.gradient_checkpointing=true"], ["model.name=bigram"]], ids=" ".join
)
def test_what_a_run_may_be_made_of_can_be_tried(words):
    assert math.isfinite(tried(*words).micro_seconds)


def test_the_memory_of_a_big_block_is_seen():
    probe._reset_peak(CPU)
    before = peak_bytes(CPU)
    block = torch.ones(60_000_000)
    assert peak_bytes(CPU) > before + 0.9 * 240e6
    del block


def test_a_compiler_that_fails_is_said_in_one_line(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(function, **_):
        def call(*arguments):
            raise BackendCompilerFailed(broken, RuntimeError("no compiler\nat all"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(CompilationError, match=r"torch.compile fails on this machine: .*broken"):
        tried(compiled=True)


def test_another_error_stays_what_it_is(monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(probe, "Objective", lambda *_, **__: broken)
    with pytest.raises(RuntimeError, match="something else"):
        tried()


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_steps_are_timed_apart_from_compiling():
    found = tried(compiled=True)
    assert found.compile_seconds > 10 * found.micro_seconds
