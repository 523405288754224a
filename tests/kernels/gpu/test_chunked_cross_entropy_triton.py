"""Head and loss in chunks, their kernels interpreted: as exact as one table of all logits."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.cross_entropy import IGNORE, chunked_cross_entropy, chunked_cross_entropy_reference

pytestmark = pytest.mark.interpret

SETTINGS = [{}, {"z_loss": 0.01, "label_smoothing": 0.2, "softcap": 3.0}]
VOCABULARY, WIDTH = 70, 8


def kernel():
    return choose("chunked_cross_entropy", "triton", "cpu").function


def random_case(dtype=torch.float32):
    hidden = torch.randn(3, 7, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (3, 7))
    targets[0, 2] = targets[2, 6] = IGNORE
    return hidden, weight, targets


def results(function, hidden, weight, targets, **settings):
    loss = function(hidden, weight, targets, **settings)
    return loss.detach(), *torch.autograd.grad(3 * loss, (hidden, weight))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 4, 21, 1000, None])
def test_chunks_change_neither_loss_nor_gradients(chunk_rows, settings):
    hidden, weight, targets = random_case()
    expected = results(chunked_cross_entropy_reference, hidden, weight, targets, **settings)
    mine = results(kernel(), hidden, weight, targets, chunk_rows=chunk_rows, **settings)
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_half_precision_is_as_exact_as_one_table_in_half_precision(settings):
    hidden, weight, targets = random_case(torch.float16)
    doubles = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    exact = results(chunked_cross_entropy_reference, *doubles, targets, **settings)
    plain = results(chunked_cross_entropy_reference, hidden, weight, targets, **settings)
    mine = results(kernel(), hidden, weight, targets, chunk_rows=5, **settings)
    for factor, ours, theirs, truth in zip((2, 3, 3), mine, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        rounding = torch.finfo(ours.dtype).eps * truth.abs().max()
        assert (ours - truth).norm() <= max(factor * (theirs - truth).norm(), rounding)


def test_the_heads_gradient_is_summed_in_float32():
    """Half of 4,096 equal terms would be lost if each chunk were added in float16."""
    hidden, weight = torch.ones(64, 1, dtype=torch.float16), torch.zeros(2, 1, dtype=torch.float16)
    hidden[1:] = 2**-12
    targets = torch.zeros(64, dtype=torch.long)
    weight.requires_grad_()
    loss = kernel()(hidden, weight, targets, num_targets=torch.tensor(1), chunk_rows=1)
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient[1].item() == pytest.approx(0.5 * (1 + 63 * 2**-12), rel=2**-11)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_only_what_wants_a_gradient_gets_one(frozen):
    hidden, weight, targets = random_case()
    hidden.requires_grad_(frozen not in ("hidden", "both"))
    weight.requires_grad_(frozen not in ("weight", "both"))
    loss = kernel()(hidden, weight, targets, chunk_rows=4)
    torch.testing.assert_close(loss, chunked_cross_entropy(hidden, weight, targets))
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    assert [x.grad is not None for x in (hidden, weight)] == [hidden.requires_grad, weight.requires_grad]


def test_without_gradients_none_is_computed():
    hidden, weight, targets = random_case()
    with torch.no_grad():
        loss = kernel()(hidden, weight, targets, chunk_rows=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, chunked_cross_entropy(hidden, weight, targets).detach())


def test_autocast_decides_the_products_dtype_and_gradients_keep_theirs():
    hidden, weight, targets = random_case()
    with torch.autocast("cpu", torch.float16):
        mine = results(kernel(), hidden, weight, targets, chunk_rows=7)
    exact = results(kernel(), hidden, weight, targets)
    assert [tensor.dtype for tensor in mine] == [torch.float32] * 3
    assert not torch.equal(mine[0], exact[0])
    torch.testing.assert_close(mine, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_float64_is_left_to_plain_code(settings):
    hidden, weight, targets = random_case(torch.float64)
    mine = results(kernel(), hidden, weight, targets, chunk_rows=5, **settings)
    expected = results(chunked_cross_entropy, hidden, weight, targets, chunk_rows=5, **settings)
    torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_a_second_backward_pass_gives_the_same_again():
    hidden, weight, targets = random_case()
    loss = kernel()(hidden, weight, targets, chunk_rows=4)
    first, second = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_rows_and_no_targets_are_as_in_plain_code():
    hidden, weight, _ = random_case()
    ids = torch.full((3, 7), IGNORE)
    assert kernel()(hidden, weight, ids).isnan()
    assert kernel()(hidden, weight, ids, num_targets=torch.tensor(5)) == 0
    empty = kernel()(hidden[:, :0], weight, ids[:, :0], num_targets=torch.tensor(5))
    assert empty == 0
    assert (torch.autograd.grad(empty, weight)[0] == 0).all()


def test_nan_in_comes_out():
    hidden, weight, targets = random_case()
    with torch.no_grad():
        hidden[0, 0, 0] = torch.nan
    loss, grad_hidden, grad_weight = results(kernel(), hidden, weight, targets, chunk_rows=4)
    assert loss.isnan()
    assert grad_hidden[0, 0].isnan().all()
    assert not grad_hidden[0, 1:].isnan().any()
    assert grad_weight.isnan().all()


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "settings", "message"),
    [
        ((2, 3), (5, 4), (2,), {}, r"hidden \(2, 3\), head_weight \(5, 4\), targets \(2,\)"),
        ((2, 3), (5, 3), (3,), {}, r"need \(\.\.\., d_model\), \(vocabulary, d_model\)"),
        ((2, 3), (0, 3), (2,), {}, r"head_weight \(0, 3\)"),
        ((2, 3), (5, 3), (2,), {"chunk_rows": 0}, "chunk_rows=0: must be at least 1"),
        ((2, 3), (5, 3), (2,), {"softcap": 0.0}, r"softcap=0\.0: must be above 0"),
        ((2, 3), (5, 3), (2,), {"z_loss": -1.0}, r"z_loss=-1\.0: must be at least 0"),
    ],
)
def test_bad_input_is_refused(hidden, weight, targets, settings, message):
    ids = torch.zeros(targets, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        kernel()(torch.zeros(hidden), torch.zeros(weight), ids, **settings)


def test_targets_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match=r"targets torch\.float32: give integers"):
        kernel()(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2))


def test_the_operation_is_registered_right():
    kernel()
    hidden, weight = torch.randn(3, WIDTH, requires_grad=True), torch.randn(9, WIDTH, requires_grad=True)
    settings = (0.01, 0.1, 3.0, 2, torch.float32, True, True)
    operation = torch.ops.scratchlm.chunked_cross_entropy.default
    torch.library.opcheck(operation, (hidden, weight, torch.tensor([3, IGNORE, 8]), *settings))


def test_compiled_whole_under_autocast_it_computes_the_same():
    hidden, weight, targets = random_case()
    function = kernel()

    def loss(hidden, weight):
        with torch.autocast("cpu", torch.float16):
            return function(hidden * 1, weight, targets, chunk_rows=4, softcap=3.0)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = compiled(hidden, weight), loss(hidden, weight)
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, (hidden, weight)) for value in values))


@pytest.mark.parametrize(
    ("rows", "vocabulary", "memory", "expected"),
    [
        (65_536, 50_304, 141 * 10**9, 16_384),
        (65_536, 50_257, None, 16_384),
        (65_536, 50_304, 8 * 10**9, 4_736),
        (4096, 4096, None, 4096),
        (100, 65, None, 100),
        (5, 2**31, None, 1),
        (0, 65, None, 1),
    ],
)
def test_chunks_are_equally_long_and_fit_the_memory(rows, vocabulary, memory, expected):
    from scratchlm.kernels.gpu.chunked_cross_entropy import rows_of_a_chunk

    assert rows_of_a_chunk(rows, vocabulary, torch.bfloat16, memory) == expected
