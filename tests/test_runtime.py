"""The machine: choices with reasons, and writes that are whole or not there."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scratchlm import runtime


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half(path):
    with runtime.replace_atomically(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise OSError("disk full")


def make_half(folder):
    with runtime.folder_atomically(folder) as temporary:
        (temporary / "a").write_text("1", encoding="utf-8")
        raise KeyboardInterrupt


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    runtime.write_text_atomically(path, "one\n")
    runtime.write_text_atomically(path, "zwei \u00e4\n")
    assert path.read_text(encoding="utf-8") == "zwei \u00e4\n"
    assert names(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    runtime.write_text_atomically(path, "old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_lies_beside_its_goal(tmp_path):
    path = tmp_path / "a.txt"
    with runtime.replace_atomically(path) as temporary:
        assert temporary.parent == tmp_path
        assert not path.exists()
        temporary.write_text("x", encoding="utf-8")
    assert path.exists()


def test_a_folder_appears_as_a_whole(tmp_path):
    folder = tmp_path / "step-1"
    with runtime.folder_atomically(folder) as temporary:
        (temporary / "a").write_text("1", encoding="utf-8")
        assert not folder.exists()
    assert names(folder) == ["a"]
    assert names(tmp_path) == ["step-1"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_half(tmp_path / "step-1")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        runtime.write_text_atomically(tmp_path / "a.txt", "x")


def test_a_file_that_cannot_be_written_is_named_and_not_its_temporary(tmp_path):
    for path in (tmp_path, Path("/proc/scratchlm.json")):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the name is what is asked for
            runtime.write_text_atomically(path, "x")
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_a_device_that_works():
    device = runtime.choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ValueError, match=rf"device={name}: not on this machine .*; use auto or cpu\."):
        runtime.choose_device(name)


def test_precision_comes_with_a_reason(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {"avx2"})
    assert runtime.choose_precision("auto", cpu).name == "float32"
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {"avx512_bf16"})
    chosen = runtime.choose_precision("auto", cpu)
    assert chosen.name == "bfloat16"
    assert "natively" in chosen.reason
    assert runtime.choose_precision("float32", cpu) == ("float32", "as configured")


def test_autocast_multiplies_in_the_precision_asked_for():
    cpu, a = torch.device("cpu"), torch.ones(4, 4)
    with runtime.autocast(cpu, "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with runtime.autocast(cpu, "float32"):
        assert (a @ a).dtype == torch.float32


CHURN = """
import resource
import torch
from scratchlm import runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        tensors = [torch.ones(megabytes * 2**18) for megabytes in (1, 3, 7, 40, 80)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()

usual = faults()
with runtime.keeping_freed_memory():
    with runtime.keeping_freed_memory():
        pass
    first, _, kept, held_inside = faults(), faults(), faults(), held()
    runtime.release_freed_memory()
    released, _ = held(), faults()
afterwards = held()
print(usual, first, kept, held_inside - released, held_inside - afterwards, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_and_given_back_at_the_end():
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    usual, first, kept, released, given_back, after = map(int, done.stdout.split())
    assert min(usual, first) > 5 * kept, "the same tensors once more take hardly a new page"
    assert min(released, given_back) > 0.9 * 131 * 2**20
    assert after > 5 * kept, "the C library is as it was"


def test_without_glibc_memory_is_left_to_the_system(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with runtime.keeping_freed_memory():
        assert torch.ones(3).sum() == 3


def test_the_same_seed_gives_the_same_numbers():
    import random

    import numpy as np

    def draw():
        runtime.set_seed(7)
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    assert draw() == draw()


def test_every_generator_goes_on_from_its_saved_state():
    import json
    import random

    import numpy as np

    def draw():
        drawn = [
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.standard_normal()),
        ]
        return [*drawn, *torch.rand(3).tolist()]

    runtime.set_seed(7)
    draw()  # Gaussian numbers come in pairs: the second is part of the state
    tensors, plain = runtime.random_state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    text = json.dumps(plain)
    expected = draw()
    runtime.set_seed(8)
    assert draw() != expected
    runtime.restore_random_state(tensors, json.loads(text))
    assert draw() == expected


def test_the_environment_says_what_a_run_was_made_with():
    import json

    found = runtime.environment()
    versions = {"scratchlm", "python", "torch", "numpy", "platform"}
    machine = {"processor", "cores", "threads", "memory_bytes", "gpu"}
    assert set(found) == versions | machine | {"commit"}
    assert found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found
    assert runtime.num_cores() >= 1


def test_what_threads_cost_beside_other_programs_is_the_least_of_some_tries(monkeypatch):
    took = iter([1.0, 30.0, 2.0, 5.0, 1.0, 20.0])
    threads = []
    monkeypatch.setattr(
        runtime, "_product_seconds", lambda seconds: threads.append(torch.get_num_threads()) or next(took)
    )
    torch.set_num_threads(2)
    assert runtime.slowed_by_threads() == 2.5
    assert threads == [1, 2] * 3
    assert torch.get_num_threads() == 2


def test_one_thread_waits_for_nobody(monkeypatch):
    monkeypatch.delattr(runtime, "_product_seconds")
    assert runtime.slowed_by_threads() == 1.0


def test_a_product_takes_time():
    assert 0 < runtime._product_seconds(0.001) < 10


@pytest.mark.compile
@pytest.mark.skipif(runtime.has_compiler() is None, reason="no C++ compiler on this machine")
def test_compiling_does_not_try_out_the_instructions_of_the_processor(tmp_path):
    code = """
import torch
from torch._inductor.cpu_vec_isa import VecISA
from scratchlm import runtime
built = []
VecISA.check_build = lambda self, code: built.append(code) or True
double = torch.compile(lambda x: torch.relu(2 * x), **runtime.COMPILING)
print(double(torch.full((64,), 1.5)).sum().item(), built.count(VecISA._avx_code))
"""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["192.0", "0"]
