"""The plan: how a run is computed, and figures that follow from what was tried."""

import logging

import pytest
import torch

from scratchlm.train import pace, plan, recipes
from scratchlm.train.pace import decide_compile
from scratchlm.train.plan import choose_micro_rows, execution, make_plan, probe_pays
from scratchlm.train.probe import CompilationError, Probe
from scratchlm.train.trainer import Execution

CPU = torch.device("cpu")
TINY = [
    "optimizer=adamw",
    "model.d_model=16",
    "model.num_heads=2",
    "model.num_layers=1",
    "model.context_length=16",
    "train.batch_tokens=256",
    "train.steps=100",
    "train.device=cpu",
    "tokenizer.vocab_size=64",
]


def tiny(*words):
    return recipes.read("demo", [*TINY, *words])


@pytest.fixture
def took(monkeypatch):
    """Decide what a micro-batch takes, eager and compiled (None: fails); remember what was tried."""
    tried = []

    def prepare(eager, compiled, *, compiling=20.0):
        def probe_steps(config, settings, how):
            tried.append(how.compile)
            if how.compile and compiled is None:
                raise CompilationError("torch.compile fails on this machine: no compiler")
            micro = compiled if how.compile else eager
            return Probe(micro, micro / 10, compiling * how.compile, micro / 1000, 7 * 10**8, 5)

        monkeypatch.setattr(pace, "probe_steps", probe_steps)
        monkeypatch.setattr(pace, "has_compiler", lambda: "/usr/bin/g++")
        return tried

    return prepare


def test_a_short_run_is_not_compiled_and_compiling_is_not_even_tried(took):
    tried = took(0.1, 0.05)
    made = make_plan(tiny(), probe=True)
    assert tried == [False]
    assert not made.compile
    assert "too short (11 s)" in made.compile_reason
    assert made.seconds == pytest.approx(100 * 0.11)


def test_a_long_run_is_compiled_when_that_ends_earlier(took):
    tried = took(2.0, 0.5)
    made = make_plan(tiny(), probe=True)
    assert tried == [False, True]
    assert made.compile
    assert made.step_seconds == pytest.approx(0.55)
    assert made.seconds == pytest.approx(20 + 100 * 0.55)
    assert "2200 ms eager and 550 ms compiled" in made.compile_reason


def test_a_compiled_step_that_gains_nothing_is_not_taken(took):
    took(2.0, 1.9)
    made = make_plan(tiny(), probe=True)
    assert not made.compile
    assert "no gain in 100 steps" in made.compile_reason
    assert made.seconds == pytest.approx(100 * 2.2)


def test_what_is_configured_is_what_is_tried(took):
    tried = took(2.0, 0.5)
    assert make_plan(tiny("train.compile=true"), probe=True).compile
    assert not make_plan(tiny("train.compile=false"), probe=True).compile
    assert tried == [True, False]


def test_a_machine_that_cannot_compile_runs_eager_and_says_why(took, caplog):
    took(2.0, None)
    with caplog.at_level(logging.WARNING):
        made = make_plan(tiny(), probe=True)
    assert not made.compile
    assert "torch.compile fails on this machine" in made.compile_reason
    assert "the steps stay eager" in caplog.text


def test_a_compiler_that_was_asked_for_and_fails_is_an_error(took):
    took(2.0, None)
    with pytest.raises(ValueError, match=r"torch.compile fails on this machine: no compiler"):
        make_plan(tiny("train.compile=true"), probe=True)


def test_accumulation_repeats_the_micro_batch_but_not_the_update(took):
    took(0.1, 0.05)
    made = make_plan(tiny("train.micro_batch_tokens=64"), probe=True)
    assert (made.accumulation, made.micro_batch_tokens) == (4, 64)
    assert made.step_seconds == pytest.approx(4 * 0.1 + 0.01)
    assert made.tokens_per_second == pytest.approx(256 / 0.41)


def test_processes_share_the_rows_of_a_step(took):
    took(0.1, 0.05)
    made = make_plan(tiny("train.micro_batch_tokens=64"), probe=True, world_size=2)
    assert made.accumulation == 2
    assert made.batch_rows == 16
    assert made.tokens_per_second == pytest.approx(256 / 0.21)


def test_validations_count_where_the_size_of_the_split_is_known(took):
    took(0.1, 0.05)
    config = tiny("train.eval_every=40", "train.eval_tokens=512")
    assert make_plan(config, probe=True).validation_seconds is None
    made = make_plan(config, probe=True, train_tokens=51200, valid_tokens=2560)
    # after steps 40, 80 and 100 a part of the split, at the end all of it, too
    assert made.validation_seconds == pytest.approx((3 * 512 + 2560) * 1e-4)
    assert made.epochs == pytest.approx(0.5)


def test_a_model_that_does_not_fit_is_not_tried(took, monkeypatch):
    tried = took(0.1, 0.05)
    monkeypatch.setattr(plan, "free_memory", lambda _: 1000)
    made = make_plan(tiny(), probe=True)
    assert tried == []
    assert made.probed is None
    assert made.memory_bytes == sum(part.num_bytes for part in made.memory)


def test_memory_is_what_was_seen_and_what_was_not_tried(took, monkeypatch):
    took(0.1, 0.05)
    monkeypatch.setattr(plan.memory, "PROCESS_BYTES", 0)
    made = make_plan(tiny("train.ema_decay=0.9"), probe=True)
    average = 4 * made.parameters
    assert made.memory_bytes == 7 * 10**8 + average  # the last step's copy comes when nothing is computed
    made = make_plan(tiny("train.ema_decay=0.9", "train.save_every=10"), probe=True)
    assert made.memory_bytes == 7 * 10**8 + average + 4 * average


@pytest.mark.parametrize(
    ("save_every", "copy", "seen", "peak"),
    [
        (10, 300, 1000, 1300),  # beside a step
        (100, 300, 1000, 1000),  # in the place of the activations
        (100, 700, 1000, 1300),
        (100, 700, 1500, 1500),  # the optimizer's own tables were larger, and have gone too
    ],
)
def test_a_copy_to_save_takes_what_is_free_after_the_last_step(save_every, copy, seen, peak):
    sizes = {"weights": 100, "gradients": 100, "optimizer": 100, "activations": 400, "process": 300}
    parts = [plan.MemoryPart(name, size, "") for name, size in {**sizes, "copy to save": copy}.items()]
    assert plan._probed_peak(tiny(f"train.save_every={save_every}"), tuple(parts), seen) == peak


def test_disk_holds_the_newest_the_best_and_those_kept_for_ever():
    one = make_plan(tiny("train.save_every=10")).disk_bytes / 3  # two newest and the best
    assert one == 12 * make_plan(tiny()).parameters
    assert make_plan(tiny("train.save_every=10", "train.keep_every=20")).disk_bytes == (1 + 5 + 1) * one
    assert make_plan(tiny("train.save_every=100")).disk_bytes == one
    assert make_plan(tiny("train.save_every=40", "train.eval_every=50")).disk_bytes == (2 + 1) * one
    assert make_plan(tiny("train.save_every=90")).disk_bytes == 2 * one
    assert make_plan(tiny("train.save_every=100"), train_tokens=500).disk_bytes == one + 1000


def test_an_estimate_needs_no_steps(took):
    tried = took(0.1, 0.05)
    made = make_plan(tiny())
    assert tried == []
    assert made.probed is None
    assert made.step_seconds == pytest.approx(
        made.flops_per_token * 256 / made.rate_flops_per_second / pace.EAGER_SHARE
    )


def test_an_unknown_device_has_no_mfu_and_a_measured_one_has(took, monkeypatch):
    from scratchlm.hardware import Peak

    took(0.1, 0.05)
    monkeypatch.setattr(plan, "peak_flops", lambda *_: None)
    assert make_plan(tiny(), probe=True).mfu is None
    monkeypatch.setattr(plan, "peak_flops", lambda *_: Peak(1e9, "measured"))
    made = make_plan(tiny(), probe=True)
    assert made.mfu == pytest.approx(made.flops_per_token * (256 / 0.11) / 1e9)


def test_a_real_probe_agrees_with_itself():
    made = make_plan(tiny("train.steps=10"), probe=True)
    assert made.probed.steps == 5
    assert made.step_seconds == made.probed.step_seconds(made.accumulation)
    assert not made.compile


def test_rows_at_once_divide_the_step_and_fit_into_memory(monkeypatch):
    config = tiny("train.batch_tokens=9600")  # 600 rows
    rows = choose_micro_rows(config, 64, CPU)
    assert 600 % rows == 0
    assert rows == 200  # 4096 tokens are 256 rows
    monkeypatch.setattr(plan, "free_memory", lambda _: 3_000_000)
    assert choose_micro_rows(config, 64, CPU) < 100
    assert choose_micro_rows(tiny("train.micro_batch_tokens=32"), 64, CPU) == 2


def test_what_the_trainer_needs_is_in_the_plan():
    made = make_plan(tiny("train.micro_batch_tokens=64", "train.precision=float32"))
    assert execution(made, 16) == Execution(CPU, "float32", False, 4)


def test_no_compiler_no_compilation(monkeypatch):
    monkeypatch.setattr(pace, "has_compiler", lambda: None)
    assert decide_compile(tiny(), CPU, 1e6) == (False, "no C++ compiler on this machine (g++ or clang++)")
    assert not decide_compile(tiny(), torch.device("mps"), 1e6)[0]


def test_a_process_that_only_plans_is_smaller_than_one_that_trains(took, monkeypatch):
    took(0.1, 0.05)
    monkeypatch.setattr(plan.memory, "PROCESS_BYTES", 10**11)
    assert make_plan(tiny(), probe=True).memory_bytes == pytest.approx(10**11, rel=0.02)
    assert make_plan(tiny()).memory_bytes > 10**11


def test_only_a_long_run_that_may_choose_is_worth_a_probe(took, monkeypatch):
    took(0.1, 0.05)
    monkeypatch.setattr(plan, "matmul_rate", lambda *_: 1e9)
    assert not probe_pays(make_plan(tiny()))
    assert probe_pays(make_plan(tiny("train.steps=1000000")))
    assert not probe_pays(make_plan(tiny("train.steps=1000000", "train.compile=false")))
    assert not probe_pays(make_plan(tiny("train.steps=1000000"), probe=True))


@pytest.mark.parametrize(("slower", "said"), [(0.6, 0), (2.0, 0), (14.2, 1)])
def test_a_machine_that_others_keep_busy_is_told(monkeypatch, caplog, slower, said):
    monkeypatch.setattr(pace.runtime, "slowed_by_threads", lambda: slower)
    pace.warn_if_crowded()
    assert len(caplog.records) == said
    assert not said or "are 14 times slower than one right now" in caplog.text
