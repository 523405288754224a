"""The launches of attention's kernels, as on a GPU, but compiled only: no GPU is needed.

A stand-in for Triton's driver says it is an H200; each launch then specializes and compiles its kernel for
the arguments that it really gets (pointers, descriptors, None, strides), and stops before it runs.
"""

import pytest
import torch

pytestmark = pytest.mark.compile

triton = pytest.importorskip("triton")


class Hopper:
    """As much of a driver as a launch asks for before it runs."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that were compiled, with whether the copy engine moves their blocks."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    seen = []
    run = JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **named):
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **named)
        seen.append((kernel.__name__, "cp.async.bulk.tensor" in compiled.asm["ptx"]))
        return compiled

    monkeypatch.setattr(driver, "_active", Hopper(), raising=False)
    monkeypatch.setattr(JITFunction, "run", compile_only)
    return seen


def launch(queries=70, width=64, offset=0, way="two_pass", **masks):
    """Slices of a packed projection, forward and backward."""
    from scratchlm.kernels.gpu.attention_backward import Saved, backward
    from scratchlm.kernels.gpu.attention_forward import forward
    from scratchlm.kernels.gpu.attention_memory import Masks

    memory = torch.zeros(2 * queries * 4 * width + offset, dtype=torch.bfloat16)[offset:]
    packed_BTNK = memory.view(2, queries, 4, width)
    q, k, v = packed_BTNK.transpose(1, 2).split([2, 1, 1], dim=1)
    out, lse = forward(q, k, v, Masks(**masks))
    return backward(Saved(q, k, v, out, lse), out, Masks(**masks), way=way)


def test_a_training_step_moves_its_blocks_by_the_copy_engine(launches):
    launch()
    assert launches == [("forward_kernel", True), ("queries_kernel", True), ("keys_kernel", True)]


def test_misaligned_memory_is_read_by_pointers(launches):
    launch(offset=1)
    assert [name for name, by_engine in launches if by_engine] == []


def test_every_mask_can_be_launched(launches):
    documents = torch.zeros(2, 70, dtype=torch.int64)
    launch(window=1, softcap=2.0, slopes=torch.ones(2), documents=documents)
    names = [name for name, _ in launches]
    assert names == [
        "document_ranges_kernel", "forward_kernel", "document_ranges_kernel", "queries_kernel", "keys_kernel",
    ]  # fmt: skip


def test_one_pass_can_be_launched(launches):
    launch(way="one_pass", causal=False)
    assert [name for name, _ in launches] == ["forward_kernel", "delta_kernel", "keys_kernel"]


def test_lengths_do_not_compile_anew(launches):
    """Texts of any length share one kernel: a length is no constant, whatever it is divisible by."""
    from scratchlm.kernels.gpu.attention_forward import forward_kernel

    forward_kernel.device_caches.clear()
    for queries in (1, 64, 70):
        launch(queries=queries)
    (cache, *_) = forward_kernel.device_caches[0]
    assert len(cache) == 1
