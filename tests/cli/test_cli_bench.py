"""`bench` and `profile` on the command line: tables, files that grow, mistakes in one line."""

import inspect
import json
import re
from pathlib import Path

import pytest

SMALL = ["d_model=32", "d_ff=64", "num_layers=1", "num_heads=2", "context_length=16", "vocab_size=64"]
QUICK = ["--warmup", "1", "--steps", "2", "--device", "cpu"]


def test_a_step_is_measured_and_shown(cli):
    found = cli("bench", "step", *SMALL, *QUICK, "--batch", "2")
    assert found.code == 0
    assert "2 x 16, float32, eager, all kept" in found.out
    assert [line.split("  ")[0] for line in found.out.splitlines()[2:]] == [
        "forward",
        "forward + backward",
        "full step",
    ]
    assert "torch" in found.err


def test_every_combination_is_a_row_of_the_file(cli, tmp_path):
    words = [
        "--precision",
        "float32,bfloat16",
        "--checkpointing",
        "no,yes",
        "--pass",
        "both",
        "--batch",
        "1,2",
    ]
    assert cli("bench", "step", *SMALL, *QUICK, *words, "-o", "rows.jsonl", "-o", "rows.md").code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    assert {(row["precision"], row["checkpointing"], row["batch"]) for row in rows} == {
        (precision, again, batch)
        for precision in ("float32", "bfloat16")
        for again in (True, False)
        for batch in (1, 2)
    }
    assert all(row["status"] == "measured" and row["median_ms"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert all({"device", "torch", "commit", "threads", "date"} <= set(row) for row in rows)
    assert (tmp_path / "rows.md").read_text(encoding="utf-8").count("\n| ") == 10


def test_attention_is_measured_by_name_and_written_as_latex(cli):
    words = ["--ways", "reference,sdpa-math,triton", "--tokens", "32,16", "--d-head", "8", "--heads", "1"]
    found = cli("bench", "attention", *words, *QUICK, "--pass", "forward", "--format", "latex")
    assert found.code == 0
    assert r"\begin{tabular}{rrrr}" in found.out
    assert "tokens & reference & sdpa-math & triton" in found.out
    assert found.out.index("  16 &") < found.out.index("  32 &")  # shorter ones foretell the longer
    assert "not here" in found.out


def test_every_way_is_named_in_the_help_and_in_the_docs():
    from scratchlm.bench.attention import ways
    from scratchlm.cli import bench

    (option,) = inspect.signature(bench.attention).parameters["ways"].annotation.__metadata__
    assert set(ways()) <= set(re.split(r"[,;] ", option.help))
    page = Path(__file__).parents[2] / "docs" / "how-to" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    assert [way for way in ways() if f"`{way}`" not in text] == []


def test_a_way_that_is_not_here_says_why(cli):
    found = cli(
        "bench", "attention", "--ways", "reference,sdpa-cudnn", "--tokens", "16", "--d-head", "8", *QUICK
    )
    assert found.code == 0
    assert "not here" in found.out
    assert "No viable backend" in found.err


def test_what_was_measured_before_a_stop_is_shown_and_kept(cli, monkeypatch, tmp_path):
    from scratchlm.bench import step

    real = step.run_case

    def stopping(case, *arguments, **settings):
        if case.scope == "step":
            raise KeyboardInterrupt
        return real(case, *arguments, **settings)

    monkeypatch.setattr(step, "run_case", stopping)
    found = cli("bench", "step", *SMALL, *QUICK, "--pass", "forward,step,both", "-o", "rows.jsonl")
    assert found.code == 130
    assert "forward" in found.out
    assert len((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "--model", "tinny"], r"unknown model size 'tinny'. Did you mean 'tiny'?"),
        (["step", "layers=2"], "unknown key 'layers'"),
        (["step", "tiny"], "'tiny': an override is key=value"),
        (["step", "train.steps=2"], "train.steps=2: only settings of the model can be changed here"),
        (["step", "--pass", "backwards"], "--pass: unknown value 'backwards'"),
        (["step", "--batch", "0"], "--batch=0: 0 is too small; the least is 1"),
        (["step", "--batch", "many"], "--batch=many: give whole numbers"),
        (["step", "--compile", "maybe"], "--compile=maybe: say no, yes, or no,yes"),
        (["step", "--optimizer", "adam"], "unknown optimizer 'adam'"),
        (["step", "--precision", ","], "--precision is empty"),
        (["step", "-o", "rows.csv"], "rows.csv: unknown ending"),
        (["step", "--format", "html"], "--format: unknown value 'html'"),
        (["attention", "--ways", "flash3"], "--ways: unknown value 'flash3'"),
        (["attention", "--tokens", "1.5"], "--tokens=1.5: give whole numbers"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(cli, words, message):
    assert message in cli("bench", *words, "--device", "cpu").error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["comm", "--call", "all_reduced"],
            "unknown value 'all_reduced'. Did you mean 'all_reduce'?",
        ),
        (["comm", "--size", "0"], "--size=0: give numbers above 0, separated by commas"),
        (["comm", "--size", "1,big"], "--size=1,big: give numbers above 0"),
        (["comm", "--processes", "1"], "--processes=1: 1 is too small; the least is 2"),
        (["comm", "--backend", "mpi"], "--backend: unknown value 'mpi'"),
        (["ddp", "--ways", "flatt"], "--ways: unknown value 'flatt'. Did you mean 'flat'?"),
        (["ddp", "--model", "tiny,small"], "--model=tiny,small: one at a time is measured"),
        (["ddp", "--sweep", "-1"], "--sweep=-1: give numbers above 0"),
        (["ddp", "--backend", "nccl", "-N", "99"], "nccl: 99 processes need as many GPUs"),
        (["shards", "--ways", "zero3"], "--ways: unknown value 'zero3'"),
        (["shards", "--precision", "float16"], "--precision: unknown value 'float16'"),
        (["shards", "d_model=33"], "d_model"),
    ],
)
def test_a_mistake_is_one_line_before_any_process_is_started(cli, monkeypatch, words, message):
    from scratchlm.bench import comm, parallel

    for module in (comm, parallel):
        monkeypatch.setattr(module, "read_group", None)
    assert message in cli("bench", *words).error


def test_what_processes_found_is_shown_and_written(cli, monkeypatch, tmp_path):
    """The processes themselves are tested in tests/bench."""
    from scratchlm.bench import parallel

    def found(name, group, *, world_size, backend):
        assert (world_size, backend, group.rounds, group.steps) == (3, "gloo", 4, 1)
        yield {"next": "warming up"}
        for case in group.cases:
            figures = {"case": case.model_dump(mode="json"), "rounds": 4, "step_ms": 2.0, "ratio": 1.0}
            if name == "ddp":
                more = {"gradient_bytes": 100, "buckets": 1, "computing_ms": 1.5, "waiting_ms": 0.5}
            else:
                held = {"parameters": 4, "gradients": 4, "states": 8}
                more = {"num_parameters": 1, "held": held, "foretold": held}
            yield figures | more

    monkeypatch.setattr(parallel, "read_group", found)
    how = ["-N", "3", "--rounds", "4", "--steps", "1", "--backend", "gloo", *SMALL]
    shown = cli("bench", "ddp", *how, "--ways", "flat,torch", "--sweep", "no", "-o", "rows.jsonl")
    assert shown.code == 0
    assert "2.00 ms" in shown.out
    assert "0.500 ms" in shown.out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["way"] for row in rows] == ["alone", "flat", "torch"]
    assert all(row["world_size"] == 3 and row["torch"] and row["waiting_ms"] == 0.5 for row in rows)
    shown = cli("bench", "shards", *how, "--ways", "fsdp", "--format", "markdown")
    assert re.search(r"\| fsdp \| +4 B / 4 B \| +4 B / 4 B \| +8 B / 8 B \| +16 B / 16 B \|", shown.out)


def test_a_profile_prints_tables_and_writes_its_files(cli, tmp_path):
    found = cli("profile", *SMALL, "--steps", "2", "--top", "5", "--device", "cpu", "-o", "out")
    assert found.code == 0
    assert "operations, per step" in found.out
    assert "others" in found.out
    assert "layers.*.attn" in found.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "trace.json",
        "operations.md",
        "memory.html",
    }
    assert "median of 2 without the profiler" in found.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranges-only"], "nsys and NVTX ranges need a GPU"),
        (["--pass", "forward,both"], "--pass=forward,both: one at a time is profiled"),
        (["--model", "tiny,small"], "--model=tiny,small: one at a time is profiled"),
    ],
)
def test_a_profile_of_several_things_or_without_a_gpu_is_refused(cli, words, message):
    assert message in cli("profile", *SMALL, *words, "--device", "cpu").error


def test_a_profile_that_does_not_fit_is_refused_before(cli, monkeypatch):
    from scratchlm.train import plan

    monkeypatch.setattr(plan, "free_memory", lambda device: 10**9)
    error = cli("profile", "--model", "10b", "--device", "cpu").error
    assert "10b needs about" in error
    assert "1 GB are free; take a smaller --model or --batch" in error
