"""The proof on a GPU, rehearsed on a CPU: every path runs, a failure costs one row, nothing is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is a folder of scripts, not a part of the package

from benchmarks.gpu import goals, stand_ins, worker  # noqa: E402
from benchmarks.gpu.cases import Bench, Case, MissedError  # noqa: E402
from benchmarks.gpu.measure import compare, milliseconds  # noqa: E402

TORCH_AND_TRITON_ALONE = """
import sys
from importlib.machinery import PathFinder

MISSING = set(
    "pydantic pydantic_core jaxtyping einops beartype regex zstandard numba psutil rich typer safetensors "
    "pyarrow jinja2 matplotlib scipy".split()
)

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from benchmarks.gpu.worker import main
sys.exit(main(sys.argv[1:]))
"""


def command(*words, folder):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(folder), *words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=900,
    )


def rows_of(folder):
    return [row for row in worker.read_rows(folder / "rows.jsonl") if "case" in row]


def bench(device="cpu"):
    return Bench(torch.device(device), tiny=True)


@pytest.mark.slow
def test_the_whole_rehearsal_finds_every_kernel_right(tmp_path):
    done = command("--dry-run", "--seconds", "800", folder=tmp_path)
    rows = rows_of(tmp_path)
    wrong = [
        (row["case"], row.get("why"))
        for row in rows
        if row["status"] in ("failed", "error", "crashed", "cut")
    ]
    assert not wrong, f"{wrong}\n{done.stdout[-3000:]}"
    assert done.returncode == 0, done.stderr
    assert {row["part"] for row in rows} == set(worker.PARTS) - {"training-warm"}
    missing = [row["case"] for row in rows if row["status"] == "not there" and "there is no" in row["why"]]
    assert not missing
    # a CPU's figures are not shown beside goals
    assert "not measured" in done.stdout
    assert "missed" not in done.stdout


def test_without_a_gpu_it_says_so_checks_a_few_kernels_and_succeeds(tmp_path):
    done = command(folder=tmp_path)
    assert "There is no GPU here: nothing is measured." in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(row["status"] == "ok" for row in rows_of(tmp_path))
    assert not list(tmp_path.glob("gpu_*.jsonl"))  # nothing was measured, nothing is kept


def test_a_part_that_does_not_exist_is_refused(tmp_path):
    done = command("--parts", "speeed", folder=tmp_path)
    assert done.returncode == 2
    assert "no speeed; there are machine, correctness-attention" in done.stderr


def test_torch_and_triton_are_enough(tmp_path):
    """Models, losses and optimizers run on the stand-ins of the packages that a machine may lack."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
    }
    rows = tmp_path / "rows.jsonl"
    words = ["training", "correctness", "--share", "0/16", "--tiny", "--rows", str(rows)]
    done = subprocess.run(
        [sys.executable, "-c", TORCH_AND_TRITON_ALONE, *words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = rows_of(tmp_path)
    assert {row["part"] for row in found} == {"training", "correctness"}, done.stdout
    assert [row for row in found if row["status"] not in ("ok", "not there")] == [], done.stderr
    # the trainer's settings cannot be imported there, but its loss is: head and loss in one kernel
    (ours,) = (row for row in found if row["part"] == "training")
    assert ours["candidate"] == "scratchlm"
    assert ours["objective"] == "chunked_cross_entropy=triton"


def test_the_loss_of_parts_is_that_of_the_trainer():
    """Value and gradients; here both take plain kernels, the trainer all logits at once."""
    from benchmarks.gpu import training

    from scratchlm.model import ModelSettings
    from scratchlm.model.transformer import TransformerLM

    torch.manual_seed(0)
    model = TransformerLM(ModelSettings(**training.TINY_MODEL, tied=True).with_vocabulary(64))
    inputs, targets = torch.randint(0, 64, (2, 2, 16))
    trainers, name = training.trainers_loss(bench(), model, 32, compiled=True)
    parts, other = training.loss_of_parts(bench(), model)
    assert (name, other) == ("train/objective.py", "chunked_cross_entropy=plain")
    found = []
    for compute in (trainers, parts):
        loss = compute(inputs, targets)
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_the_plain_model_runs_with_the_backend_that_its_name_says():
    from benchmarks.gpu import training
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    inside = []

    def compute(inputs, targets):
        inside.append(_cur_sdpa_kernel_backends())
        return inputs

    one = torch.ones(1)
    training._pinned(bench(), "torch, flash", compute)(one, one)
    assert inside == [[SDPBackend.FLASH_ATTENTION]]
    assert training._pinned(bench(), "scratchlm", compute) is compute
    with pytest.raises(LookupError, match="cuDNN's attention needs a GPU"):
        training._pinned(bench(), "torch, cudnn", compute)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("part", worker.PARTS)
def test_every_case_of_a_part_has_its_own_name(part, tiny):
    """A worker that starts again leaves out the cases whose names it finds."""
    names = [case.name for case in worker.cases_of(part, Bench(torch.device("cpu"), tiny))]
    assert names
    assert len(names) == len(set(names))


def test_every_kernel_of_ours_is_checked(monkeypatch):
    """A new operation needs a case: its kernel is asked for by name."""
    from benchmarks.gpu import correctness, correctness_attention, correctness_optimizers

    from scratchlm.kernels import KERNELS

    asked = set()

    def note(op, name, bench):
        asked.add((op, name))
        raise LookupError(op)

    for module in (correctness, correctness_attention, correctness_optimizers):
        monkeypatch.setattr(module, "kernel", note)
    for part in ("correctness-attention", "correctness"):
        for case in worker.cases_of(part, bench()):
            if not case.name.startswith(("decode", "FlashAttention2")):
                worker.run_case(case)
    ours = {(op, name) for op, names in KERNELS.items() for name in names if name.startswith("triton")}
    assert ours <= asked


def test_a_check_that_was_not_made_is_broken():
    from benchmarks.gpu import __main__ as proof

    def row(part, status):
        return {"part": part, "case": f"{part} {status}", "status": status}

    rows = [
        row(part, status) for part in ("correctness-large", "sweep") for status in ("ok", "cut", "not there")
    ]
    assert [one["case"] for one in goals.broken(rows)] == [
        "correctness-large cut",
        "correctness-large not there",
    ]
    # a worker that was stopped has not even begun what came next
    checks = [("correctness", "one"), ("correctness", "two")]
    rows = [{"started": "correctness: one"}, {"part": "correctness", "case": "one", "status": "ok"}]
    (missing,) = proof.rows_of_missing(checks, rows)
    assert (missing["case"], missing["status"]) == ("two", "missing")
    assert goals.broken([missing]) == [missing]


def test_the_stages_make_every_check_once():
    from benchmarks.gpu import __main__ as proof

    parts = [part for part in worker.PARTS if part.startswith("correctness")]
    checks = proof.checks_of(proof.STAGES, set(worker.PARTS), tiny=False)
    names = [
        (part, case.name)
        for part in parts
        for case in worker.cases_of(part, Bench(torch.device("cpu"), False))
    ]
    assert sorted(checks) == sorted(names)
    assert proof.checks_of(proof.STAGES, {"speed"}, tiny=False) == []


def test_measured_tiles_are_left_out_when_little_time_is_left():
    from benchmarks.gpu.correctness_attention import _tuned

    row = _tuned(Bench(torch.device("cpu"), tiny=True, until=0.0))
    assert (row["status"], row["why"]) == ("cut", "less than 30 s were left to compile its tiles")


def test_a_worker_that_dies_costs_one_row(tmp_path, monkeypatch):
    """The command starts a new worker behind the case; the rows before it stay."""
    from benchmarks.gpu import __main__ as proof

    script = (
        "import os, sys, types; from benchmarks.gpu import worker; worker.find_source()\n"
        "from benchmarks.gpu.cases import Case\n"
        "cases = [Case('one', dict), Case('two', lambda: os._exit(139)), Case('three', dict)]\n"
        "worker.cases_of = lambda part, bench: cases\n"
        "sys.exit(worker.main(sys.argv[4:]))"
    )
    real = proof.run_worker
    monkeypatch.setattr(
        proof,
        "run_worker",
        lambda words, *rest: real([words[0], "-c", script, *words], *rest),
    )
    proof.supervise(proof.Lane(("machine",)), tmp_path, until=2e10, tiny=True)
    assert [(row["case"], row["status"]) for row in rows_of(tmp_path)] == [
        ("one", "ok"),
        ("two", "crashed"),
        ("three", "ok"),
    ]


def test_a_case_that_raises_costs_one_row():
    def fails():
        raise RuntimeError("an illegal memory access\nsecond line")

    row = worker.run_case(Case("broken", fails))
    assert (row["status"], row["why"]) == ("error", "RuntimeError: an illegal memory access")

    def misses():
        raise MissedError("too far off", {"errors": {}})

    assert worker.run_case(Case("wrong", misses))["status"] == "failed"


def test_cases_that_begin_too_late_are_cut(tmp_path):
    words = ["machine", "--rows", str(tmp_path / "rows.jsonl"), "--tiny", "--until", "1"]
    assert worker.main(words) == 0
    assert {row["status"] for row in rows_of(tmp_path)} == {"cut"}


def test_an_error_is_compared_with_that_of_plain_torch():
    exact = torch.randn(1000, dtype=torch.float64)
    plain = exact.half()
    assert compare([exact.half()], [plain], [exact], ["output"])["share_of_limit"] <= 0.5
    with pytest.raises(MissedError, match="output"):
        compare([(exact * 1.01).half()], [plain], [exact], ["output"])
    with pytest.raises(MissedError, match="nan"):
        compare([torch.full((1000,), float("nan"), dtype=torch.half)], [plain], [exact], ["output"])
    one_wrong = exact.half()
    one_wrong[17] += 0.1  # the whole tensor's error hardly moves
    with pytest.raises(MissedError, match="worst"):
        compare([one_wrong], [plain], [exact], ["output"])


def test_a_time_has_its_spread():
    row = milliseconds(bench(), lambda: torch.ones(10).sum())
    assert 0 < row["lowest_ms"] <= row["ms"]


def test_constants_are_replaced_where_they_are_used_and_put_back():
    from benchmarks.gpu.sweep_constants import TRIED, replaced

    from scratchlm.kernels.gpu import adamw, tables

    before = tables.PIECE
    with replaced(("tables", "adamw"), {"PIECE": 64}) as was:
        assert (tables.PIECE, adamw.PIECE) == (64, 64)
        assert was == {"PIECE": before}
    assert (before, before) == (tables.PIECE, adamw.PIECE)
    for tried in TRIED.values():  # a constant that is renamed must be renamed there, too
        for changed in tried.changes:
            with replaced(tried.modules, changed):
                pass


def test_stand_ins_reshape_as_einops():
    import einops

    x = torch.arange(120.0).reshape(2, 3, 20)
    for pattern, sizes in (
        ("B T (H K) -> B H T K", {"H": 4}),
        ("B T (N K) -> B N T K", {"N": 5}),
        ("B G K -> B K G", {}),
        ("... (pairs two) -> ... (two pairs)", {"two": 2}),
    ):
        assert torch.equal(stand_ins.rearrange(x, pattern, **sizes), einops.rearrange(x, pattern, **sizes)), (
            pattern
        )


def test_packages_that_are_there_are_not_replaced():
    assert stand_ins.install() == []


def test_a_results_file_says_what_it_was_made_with(tmp_path):
    from benchmarks.gpu.__main__ import environment

    setting = json.loads(json.dumps(environment(tiny=True, commit="abc")))
    assert setting["commit"] == "abc"
    assert len(setting["source_sha256"]) == 16
    assert {"date", "python", "torch", "triton", "device"} <= set(setting)
