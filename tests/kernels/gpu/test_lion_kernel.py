"""The Lion kernel, interpreted: against the formula in float64. Where tensors lie is tested with AdamW's."""

from itertools import chain

import pytest
import torch
from torch.nn import Parameter

pytestmark = pytest.mark.interpret
triton = pytest.importorskip("triton")

from scratchlm.kernels import choose, lion_plain  # noqa: E402
from scratchlm.kernels.gpu import lion  # noqa: E402

SETTINGS = {"betas": (0.9, 0.99), "decay": 0.01, "cautious": False, "step_size": 1e-2}
SHAPES = [(3, 700), (1,), (5, 7, 3), (), (0, 4)]


def make_lists(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for _ in range(3)]


def error(lists, truth):
    pairs = zip(chain(*lists), chain(*truth), strict=True)
    return max(float((t.double() - exact).abs().max()) for t, exact in pairs if t.numel())


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_as_near_to_the_truth_as_tensor_operations(dtype, cautious):
    settings = SETTINGS | {"cautious": cautious}
    ours, plain, truth = (
        make_lists(dtype),
        make_lists(dtype),
        [[t.double() for t in x] for x in make_lists(dtype)],
    )
    lion.move(*ours, **settings)
    lion_plain.move_reference(*plain, **settings)
    lion_plain.move_reference(*truth, **settings)
    assert error(ours, truth) <= 2 * error(plain, truth)
    assert error(ours, make_lists(dtype)) > 1e-2  # it moved


def test_what_the_kernel_cannot_move_is_moved_by_tensor_operations():
    lists = [[torch.randn(4, 6).T, torch.randn(3).double()] for _ in range(3)]
    truth = [[t.double() for t in tensors] for tensors in lists]
    lion.move(*lists, **SETTINGS)
    lion_plain.move_reference(*truth, **SETTINGS)
    assert error(lists, truth) < 1e-6


def test_it_compiles_into_one_graph_that_no_new_step_size_compiles_again():
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend, dynamic=False)
    def step(lists, decay, step_size):
        lion.move(*lists, betas=(0.9, 0.99), cautious=False, decay=decay, step_size=step_size)

    lists, truth = make_lists(), [[t.double() for t in tensors] for tensors in make_lists()]
    for step_size in (1e-2, 1e-3):
        lion_plain.move_reference(*truth, **SETTINGS | {"step_size": step_size})
        step(lists, *(torch.tensor(x, dtype=torch.float64) for x in (0.01, step_size)))
    assert len(compiled) == 1
    assert error(lists, truth) < 1e-6


def test_the_operation_is_what_torch_expects_of_one():
    lists = [[torch.randn(5), torch.randn(2, 3)] for _ in range(3)]
    numbers = torch.tensor([0.9, 0.99, 0.01, 1e-2], dtype=torch.float64)
    torch.library.opcheck(torch.ops.scratchlm.lion.default, (*lists, numbers, True))


def test_the_optimizer_takes_it_and_equals_its_twin():
    from scratchlm.optim.lion import Lion, LionReference

    assert choose("lion", device="cpu").function is lion.move
    results = []
    for part in (Lion, LionReference):
        generator = torch.Generator().manual_seed(1)
        params = [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = part(params, lr=1e-2, cautious_decay=True)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        results.append([p.detach() for p in params])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
