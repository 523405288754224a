"""The AdamW kernel, interpreted: against the formula in float64, and whatever tensors may look like."""

from itertools import chain

import pytest
import torch
from torch.nn import Parameter

pytestmark = pytest.mark.interpret
triton = pytest.importorskip("triton")

from scratchlm.kernels import adamw_plain, adamw_reference, choose  # noqa: E402
from scratchlm.kernels.gpu import adamw, tables  # noqa: E402

SETTINGS = {"betas": (0.9, 0.95), "decay": 0.01, "cautious": False, "step_size": 1e-2, "eps": 1e-8}
SHAPES = [(3, 700), (1,), (64,), (5, 7, 3), (), (2048,), (0, 4)]
"""More than one piece with a rest, a piece exactly, single numbers, nothing."""


def make_lists(shapes=SHAPES, formats=(torch.float32,) * 3, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def make(dtype, scale):
        return [(torch.randn(s, generator=generator) * scale).to(dtype) for s in shapes]

    param, grad, state = formats
    return [make(param, 1.0), make(grad, 0.1), make(state, 0.1), [v.square() for v in make(state, 0.1)]]


def in_double(lists):
    return [[t.double() for t in tensors] for tensors in lists]


def error(lists, truth):
    pairs = zip(chain(*lists), chain(*truth), strict=True)
    return max(float((t.double() - exact).abs().max()) for t, exact in pairs if t.numel())


def copies(lists):
    return [[t.clone() for t in tensors] for tensors in lists]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Several pieces in small tensors."""
    monkeypatch.setattr(tables, "PIECE", 1024)
    monkeypatch.setattr(adamw, "PIECE", 1024)
    tables._make_table.cache_clear()
    tables._make_pieces.cache_clear()
    yield
    tables._make_table.cache_clear()
    tables._make_pieces.cache_clear()


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("formats", ["32 32 32", "16 16 16", "16 16 32", "32 16 32"])
def test_it_is_as_near_to_the_truth_as_tensor_operations(formats, cautious):
    settings = SETTINGS | {"cautious": cautious}
    lists = make_lists(formats=[getattr(torch, f"float{bits}") for bits in formats.split()])
    truth, ours, plain = in_double(lists), copies(lists), copies(lists)
    adamw_reference.move(*truth, **settings)
    adamw.move(*ours, **settings)
    adamw_reference.move(*plain, **settings)
    assert error(ours, truth) <= 2 * error(plain, truth)
    assert error(ours, in_double(lists)) > 1e-3  # it moved
    assert all(torch.equal(a, b) for a, b in zip(ours[1], lists[1], strict=True))


def test_one_launch_serves_all_tensors_of_one_format(monkeypatch):
    lists = make_lists()
    launches = []
    launch = adamw._launch
    monkeypatch.setattr(adamw, "_launch", lambda *a: (launches.append(len(a[0][0])), launch(*a)))
    adamw.move(*lists, **SETTINGS)
    assert launches == [len(SHAPES)]


def test_views_of_flat_buffers_are_one_line_of_the_table():
    flat = [torch.randn(96) for _ in range(4)]
    lists = [[buffer[:32], buffer[32:80].view(6, 8), buffer[80:]] for buffer in flat]
    table = tables.make_table(*lists)
    assert table.addresses.tolist() == [[*(buffer.data_ptr() for buffer in flat), 96]]
    assert table.pieces.tolist() == [[0, 0]]
    lists[1][1] = torch.randn(6, 8)
    assert len(tables.make_table(*lists).addresses) == 3


def test_pieces_cover_every_coordinate_once():
    sizes = [2500, 1, 1024, 0, 1025]
    tensors = [torch.zeros(size + 8)[:size] for size in sizes]
    table = tables.make_table(tensors)
    assert table.pieces.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [4, 0], [4, 1]]
    assert table.addresses.tolist() == [[t.data_ptr(), t.numel()] for t in tensors]


def test_tensors_that_begin_anywhere_are_moved_and_their_neighbours_are_not():
    buffers = [torch.randn(103) for _ in range(3)] + [torch.rand(103)]
    before = copies([buffers])[0]
    views = [[buffer[1:102]] for buffer in buffers]
    assert not tables.make_table(*views).aligned
    truth = in_double([[buffer[1:102]] for buffer in before])
    adamw_reference.move(*truth, **SETTINGS)
    adamw.move(*views, **SETTINGS)
    for [view], [exact] in zip(views, truth, strict=True):
        torch.testing.assert_close(view, exact.float())
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer[[0, 102]], old[[0, 102]])


@pytest.mark.parametrize("what", ["transposed", "double", "strided gradient"])
def test_what_the_kernel_cannot_move_is_moved_by_tensor_operations(what):
    lists = make_lists([(6, 4), (8,)])
    if what == "double":
        lists = in_double(lists)
    elif what == "transposed":
        lists = [[a.T, b] for a, b in lists]
    else:
        lists[1][0] = torch.randn(6, 8)[:, ::2]
    truth = in_double(lists)
    adamw_reference.move(*truth, **SETTINGS)
    adamw.move(*lists, **SETTINGS)
    for ours, exact in zip(chain(*lists), chain(*truth), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_not_a_number_stays_one_and_touches_nothing_else():
    lists = [[torch.ones(4)] for _ in range(4)]
    lists[1][0][1] = float("nan")
    adamw.move(*lists, **SETTINGS)
    assert lists[0][0].isnan().tolist() == [False, True, False, False]


def test_nothing_to_move_is_no_mistake():
    adamw.move([], [], [], [], **SETTINGS)
    adamw.move(*([torch.zeros(0)] for _ in range(4)), **SETTINGS)


def test_shapes_that_differ_are_refused_before_anything_is_touched():
    lists = make_lists([(4,), (5,)])
    lists[2][1] = torch.zeros(4)
    before = copies(lists)
    with pytest.raises(ValueError, match=r"adamw: a parameter and .* shapes \(5,\), \(5,\), \(4,\), \(5,\)"):
        adamw.move(*lists, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(lists[0], before[0], strict=True))
    lists = make_lists([(4,)])
    lists[1][0] = torch.zeros(4, device="meta")
    with pytest.raises(ValueError, match=r"adamw: the tensors are on several devices \(cpu, meta\)"):
        adamw.move(*lists, **SETTINGS)


def test_a_backward_pass_through_values_that_were_moved_is_refused():
    p = Parameter(torch.ones(4))
    loss = (p * p).sum()
    with torch.no_grad():
        adamw.move([p], [torch.ones(4)], [torch.zeros(4)], [torch.zeros(4)], **SETTINGS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_operation_is_what_torch_expects_of_one():
    lists = make_lists([(5,), (2, 3)])
    numbers = torch.tensor([0.9, 0.95, 0.01, 1e-2, 1e-8], dtype=torch.float64)
    torch.library.opcheck(torch.ops.scratchlm.adamw.default, (*lists, numbers, True))


def test_it_compiles_into_one_graph_that_no_new_step_size_compiles_again():
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend, dynamic=False)
    def step(lists, numbers):
        names = ("decay", "step_size", "eps")
        adamw.move(*lists, betas=(0.9, 0.95), cautious=False, **dict(zip(names, numbers, strict=True)))

    lists = make_lists([(5,), (2, 3)])
    truth = in_double(lists)
    for step_size in (1e-2, 1e-3, 1e-4):
        adamw_reference.move(*truth, **SETTINGS | {"step_size": step_size})
        step(lists, [torch.tensor(x, dtype=torch.float64) for x in (0.01, step_size, 1e-8)])
    assert len(compiled) == 1
    for ours, exact in zip(chain(*lists), chain(*truth), strict=True):
        torch.testing.assert_close(ours, exact.float())


def test_the_optimizer_takes_it_and_equals_its_twin():
    from scratchlm.optim.adamw import AdamW, AdamWReference

    assert choose("adamw", device="cpu").function is adamw.move
    results = []
    for part in (AdamW, AdamWReference):
        generator = torch.Generator().manual_seed(1)
        params = [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = part(params, lr=1e-2, weight_decay=0.3, cautious_decay=True)
        for _ in range(4):
            for index, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (index - 3)
            optimizer.step()
        results.append([p.detach() for p in params])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_plain_is_still_what_a_machine_without_triton_takes():
    assert choose("adamw", "plain").function is adamw_plain.move
