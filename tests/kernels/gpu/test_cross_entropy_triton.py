"""The loss's kernels, interpreted: as exact as plain tensor code, for every shape, term and layout."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.cross_entropy import IGNORE, token_losses, token_losses_reference

pytestmark = pytest.mark.interpret

TERMS = [{}, {"z_loss": 0.01, "label_smoothing": 0.2}]
VOCABULARIES = [1, 2, 65, 300, 4096, 8192, 8203]
"""One and two columns, odd tails, exactly one block, and one with three more."""


def kernel(name="token_losses"):
    return choose(name, "triton", "cpu").function


def random_case(vocabulary, shape=(2, 3), dtype=torch.float32, scale=3.0):
    logits = (scale * torch.randn(*shape, vocabulary)).to(dtype)
    targets = torch.randint(vocabulary, shape)
    targets.view(-1)[1::4] = IGNORE
    return logits, targets


def truth(logits, targets, *, z_loss=0.0, label_smoothing=0.0):
    """The losses in the logits' dtype, by torch's own operations."""
    log_sum = torch.logsumexp(logits, -1)
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    losses = log_sum - (1 - label_smoothing) * chosen - label_smoothing * logits.mean(-1)
    return torch.where(targets == IGNORE, 0.0, losses + z_loss * log_sum**2)


def gradients(function, logits, targets, upstream, **terms):
    z = logits.detach().requires_grad_()
    losses = function(z, targets, **terms)
    return losses.detach(), torch.autograd.grad(losses, z, upstream)[0]


def assert_as_exact(mine, plain, exact, factor):
    """The error is at most `factor` times that of plain code, or four roundings: plain code may be lucky."""
    rounding = 4 * torch.finfo(mine.dtype).eps * exact.abs().max()
    allowed = max(factor * (plain.double() - exact).abs().max(), rounding)
    assert (mine.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_losses_and_gradients_are_as_exact_as_plain_code(vocabulary, terms, dtype):
    logits, targets = random_case(vocabulary, dtype=dtype)
    upstream = torch.randn(2, 3)
    exact = gradients(truth, logits.double(), targets, upstream.double(), **terms)
    plain = gradients(token_losses_reference, logits, targets, upstream, **terms)
    mine = gradients(kernel(), logits, targets, upstream, **terms)
    assert mine[1].dtype == dtype
    assert_as_exact(mine[0], plain[0], exact[0], 2)
    assert_as_exact(mine[1], plain[1], exact[1], 3)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_logits_of_any_size_are_safe(scale):
    logits, targets = random_case(100, scale=scale)
    torch.testing.assert_close(kernel()(logits, targets), token_losses(logits, targets))


def test_some_logits_may_be_minus_infinity_and_a_row_of_them_is_nan():
    logits, targets = random_case(9000)
    logits[..., :8200] = -torch.inf  # a whole block
    targets = torch.where(targets == IGNORE, IGNORE, 8500)
    upstream = torch.ones(2, 3)
    expected = gradients(token_losses, logits, targets, upstream)
    mine = gradients(kernel(), logits, targets, upstream)
    torch.testing.assert_close(mine, expected)
    assert torch.isfinite(mine[1]).all()
    assert kernel()(torch.full((1, 50), -torch.inf), torch.tensor([3])).isnan().all()


def test_nan_stays_in_its_row():
    logits, targets = random_case(300, shape=(4,))
    targets[:] = torch.tensor([5, 7, IGNORE, 2])
    logits[0, 299] = logits[2, 0] = torch.nan
    losses, gradient = gradients(kernel(), logits, targets, torch.ones(4))
    assert losses.isnan().tolist() == [True, False, False, False]
    assert gradient.isnan().all(-1).tolist() == [True, False, False, False]
    assert not gradient[1:].isnan().any()
    assert (gradient[2] == 0).all()


@pytest.mark.parametrize("target", [-2, 70, 2**40])
def test_a_target_outside_the_vocabulary_is_nan_never_a_number_from_elsewhere(target):
    losses, gradient = gradients(kernel(), torch.randn(2, 70), torch.tensor([target, 1]), torch.ones(2))
    assert losses.isnan().tolist() == [True, False]
    assert gradient.isnan().all(-1).tolist() == [True, False]


def layouts():
    base = torch.randn(3, 5, 80)
    return {
        "shifted": base[:, :-1],
        "every second column": torch.randn(3, 5, 160)[..., ::2],
        "transposed": base.transpose(0, 1),
        "columns first": torch.randn(80, 3, 5).permute(1, 2, 0),
        "misaligned": torch.randn(3 * 5 * 80 + 1)[1:].view(3, 5, 80),
        "one row for all": torch.randn(1, 1, 80).expand(3, 5, 80),
        "four dimensions": torch.randn(2, 3, 2, 80),
        "four dimensions, transposed": torch.randn(2, 3, 2, 80).transpose(0, 2),
        "one row": torch.randn(80),
        "no rows": torch.randn(0, 5, 80),
    }


@pytest.mark.parametrize("name", layouts())
def test_any_layout_of_logits_and_targets_is_read_right(name):
    logits = layouts()[name]
    targets = torch.randint(80, (*logits.shape[:-1], 2))[..., 0].int()
    upstream = torch.ones(()).expand(targets.shape)  # as a sum gives it
    mine = gradients(kernel(), logits, targets, upstream)
    torch.testing.assert_close(mine, gradients(token_losses, logits, targets.long(), upstream))
    assert mine[0].shape == targets.shape


@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_overwrite_puts_the_gradient_where_the_logits_were_unless_nobody_made_them(leaf, shifted):
    weight = torch.randn(4, 5, 80, requires_grad=True)
    logits = weight if leaf else weight * 1
    view = logits[:, :-1] if shifted else logits
    before, targets = view.detach().clone(), torch.randint(80, view.shape[:-1])
    loss = kernel()(view, targets, overwrite=True).sum()
    loss.backward(retain_graph=True)
    expected = torch.autograd.grad(token_losses(before.requires_grad_(), targets).sum(), before)[0]
    torch.testing.assert_close(weight.grad[:, : view.shape[1]], expected)
    assert torch.equal(view, before) == leaf
    if leaf:
        loss.backward()
    else:
        torch.testing.assert_close(view.detach(), expected)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_without_overwrite_the_logits_stay_and_a_second_backward_is_the_same():
    logits, targets = random_case(80)
    made = logits.requires_grad_() * 1
    before = made.detach().clone()
    loss = kernel()(made, targets).sum()
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(made, before)


def test_overwriting_what_another_operation_saved_is_an_error_not_garbage():
    weight = torch.randn(4, 80, requires_grad=True)
    logits = weight.exp()  # exp keeps its output for its gradient
    loss = kernel()(logits, torch.randint(80, (4,)), overwrite=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_with_one_memory_are_not_overwritten():
    weight = torch.randn(1, 80, requires_grad=True)
    logits, targets = (weight * 1).expand(6, 80), torch.randint(80, (6,))
    expected = torch.autograd.grad(token_losses(logits, targets).sum(), weight, retain_graph=True)[0]
    mine = torch.autograd.grad(kernel()(logits, targets, overwrite=True).sum(), weight)[0]
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("vocabulary", [65, 9000])
def test_losses_and_gradient_in_one_pass(vocabulary, terms, softcap):
    from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

    def bounded(function):
        def capped(z, ids, **settings):
            return function(z if softcap is None else softcap * torch.tanh(z / softcap), ids, **settings)

        return capped

    logits, targets = random_case(vocabulary, shape=(5,))
    ones = torch.ones(5)
    exact = gradients(bounded(truth), logits.double(), targets, ones.double(), **terms)
    plain = gradients(bounded(token_losses_reference), logits, targets, ones, **terms)
    table = torch.full((5, vocabulary + 7), 123.0)
    table[:, :vocabulary] = logits
    losses = losses_and_gradient_(table[:, :vocabulary], targets, softcap=softcap, **terms)
    assert_as_exact(losses, plain[0], exact[0], 2)
    assert_as_exact(table[:, :vocabulary], plain[1], exact[1], 3)
    assert (table[:, vocabulary:] == 123).all()


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"logits \(2, 3\) and targets \(3,\)"),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.long), "the vocabulary, which is not empty"),
        (torch.zeros(()), torch.zeros((), dtype=torch.long), "one more dimension"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long), "give floats and integers"),
        (torch.zeros(2, 3), torch.zeros(2), "give floats and integers"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long, device="meta"), "on several devices"),
    ],
)
def test_bad_input_is_refused(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        kernel()(logits, targets)


def test_columns_that_do_not_lie_side_by_side_are_not_overwritten():
    from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

    with pytest.raises(ValueError, match="stride 2 between columns"):
        losses_and_gradient_(torch.zeros(2, 6)[:, ::2], torch.zeros(2, dtype=torch.long))


def test_float64_is_left_to_plain_code_and_never_overwritten():
    from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

    logits, targets = random_case(70, dtype=torch.float64)
    upstream = torch.randn(2, 3)
    mine = gradients(lambda z, y: kernel()(z * 1, y, overwrite=True), logits, targets, upstream)
    expected = gradients(token_losses, logits, targets, upstream)
    torch.testing.assert_close(mine, expected, rtol=0, atol=0)
    assert mine[1].dtype == torch.float64
    with pytest.raises(ValueError, match=r"logits torch.float64: the kernel computes in float32"):
        losses_and_gradient_(logits[0], targets[0])


def test_the_operations_are_registered_right():
    logits, targets = random_case(70)
    terms = (targets, torch.randn(2, 3), torch.rand(2, 3), torch.randn(2, 3), 0.01, 0.1)
    ops = torch.ops.scratchlm
    kernel()
    torch.library.opcheck(ops.token_losses.default, (logits.requires_grad_(), targets, 0.01, 0.1, False))
    torch.library.opcheck(ops.token_losses_gradient.default, (logits.detach(), *terms))
    torch.library.opcheck(ops.token_losses_gradient_.default, (logits.detach().clone(), *terms))


@pytest.mark.parametrize("overwrite", [False, True])
def test_compiled_whole_the_loss_and_its_gradient_are_the_same(overwrite):
    head, targets = torch.randn(70, 8), random_case(70)[1]
    hidden = torch.randn(2, 3, 8, requires_grad=True)

    def loss(hidden):
        return kernel_function(hidden @ head.T, targets, z_loss=0.01, overwrite=overwrite).mean()

    kernel_function = kernel()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    mine, expected = compiled(hidden), loss(hidden)
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, hidden)[0] for value in (mine, expected)))


@pytest.mark.slow
def test_tables_with_more_numbers_than_an_int32_counts_are_read_and_written_right():
    """65,536 rows of 50,304 logits pass 2^31; so do 130 rows that begin 2^24 + 16 numbers apart (4 GB)."""
    from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

    distance, last = 2**24 + 16, slice(128, 130)
    table = torch.empty(130 * distance, dtype=torch.float16).as_strided((130, 70), (distance, 1))
    logits, targets = random_case(70, shape=(130,), dtype=torch.float16)
    targets[:], targets[last] = IGNORE, torch.tensor([3, 5])
    table.copy_(logits)
    expected = gradients(token_losses, logits, targets, torch.ones(130))
    torch.testing.assert_close(gradients(kernel(), table, targets, torch.ones(130)), expected)
    torch.testing.assert_close(losses_and_gradient_(table, targets), expected[0])
    torch.testing.assert_close(table, expected[1])
