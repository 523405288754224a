"""Few queries against a cache, interpreted: the reference's results however the keys are shared out."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from scratchlm.kernels import choose
from scratchlm.kernels.gpu import attention_decode
from scratchlm.kernels.gpu.attention_decode import Splits, decode, share

pytestmark = pytest.mark.interpret
REFERENCE = choose("attention", "reference").function


@pytest.fixture(autouse=True)
def several_splits(monkeypatch):
    """A device that asks for more splits than there are programs."""
    monkeypatch.setattr(attention_decode, "_slots", lambda device: 12)


def inputs(
    *, heads=4, kv_heads=2, queries=1, keys=300, d_head=32, d_value=None, dtype=torch.float32, batch=2
):
    shapes = (heads, queries, d_head), (kv_heads, keys, d_head), (kv_heads, keys, d_value or d_head)
    return [torch.randn(batch, *shape, dtype=dtype) for shape in shapes]


def assert_as_exact_as_the_reference(tensors, **settings):
    """Two errors of the plain way in the same dtype, and for results near 0 a few units of float32."""
    truth = REFERENCE(*(tensor.double() for tensor in tensors), **settings)
    allowed = 2 * (REFERENCE(*tensors, **settings) - truth).norm() + 1e-6 * truth.norm()
    assert (decode(*tensors, **settings) - truth).norm() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("queries", [1, 3])
def test_equals_the_reference_for_grouped_heads(dtype, heads, kv_heads, queries):
    assert_as_exact_as_the_reference(inputs(heads=heads, kv_heads=kv_heads, queries=queries, dtype=dtype))


@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 250])
def test_any_number_of_keys(keys):
    assert_as_exact_as_the_reference(inputs(keys=keys))


@pytest.mark.parametrize(
    ("d_head", "d_value"), [(8, 8), (24, 24), (64, 40), (100, 100), (128, 16), (256, 256)]
)
def test_any_width_of_a_head_up_to_256(d_head, d_value):
    assert_as_exact_as_the_reference(inputs(d_head=d_head, d_value=d_value, keys=70, batch=1))


@pytest.mark.parametrize(
    ("window", "softcap", "biased"),
    list(itertools.product([None, 1, 100], [None, 2.0], [False, True])),
)
@pytest.mark.parametrize("queries", [1, 4])
def test_equals_the_reference_under_every_mask(window, softcap, biased, queries):
    settings = {"window": window, "softcap": softcap, "slopes_H": torch.rand(4) if biased else None}
    tensors = inputs(queries=queries, keys=130, batch=1)
    torch.testing.assert_close(decode(*tensors, **settings), REFERENCE(*tensors, **settings))


def test_more_rows_than_one_program_takes():
    assert_as_exact_as_the_reference(inputs(heads=14, kv_heads=2, queries=5, keys=90, batch=1))


@pytest.mark.parametrize("number", [1, 2, 5, 16, 17, 40])
def test_the_result_does_not_depend_on_the_number_of_splits(number, monkeypatch):
    tensors = inputs(keys=40 * 32, batch=1, heads=1, kv_heads=1)
    blocks = -(-40 // number)
    monkeypatch.setattr(attention_decode, "share", lambda *_: Splits(-(-40 // blocks), blocks))
    torch.testing.assert_close(decode(*tensors), REFERENCE(*tensors))


def test_a_cache_is_read_where_it_lies_and_the_result_lies_as_the_projection_wants_it():
    cache = torch.randn(2, 2, 400, 32).transpose(1, 2).contiguous().transpose(1, 2)  # (B, T, H, K) in memory
    packed = torch.randn(2, 1, 8, 32).transpose(1, 2)
    q, k, v = packed[:, :4], cache[:, :, :333], cache[:, :, 20:353]
    out = decode(q, k, v)
    torch.testing.assert_close(out, REFERENCE(q, k, v))
    assert out.transpose(1, 2).is_contiguous()
    every_other = [tensor[..., ::2] for tensor in inputs(d_head=64)]
    torch.testing.assert_close(decode(*every_other), REFERENCE(*every_other))


def test_no_rows_no_result():
    q, k, v = inputs()
    assert decode(q[:0], k[:0], v[:0]).shape == (0, 4, 1, 32)
    assert decode(q[:, :, :0], k, v).shape == (2, 4, 0, 32)


def test_nan_comes_out_where_nan_is_seen():
    q, k, v = inputs(queries=2, keys=200)
    k[0, 0, 199], v[1, 1, 5] = torch.nan, torch.nan
    out = decode(q, k, v)
    assert out[0, :2, 1].isnan().all()  # the last query of the two heads that share key head 0
    assert out[0, :2, 0].isfinite().all()
    assert out[0, 2:].isfinite().all()
    assert out[1, 2:, :, :].isnan().all()


def test_large_scores_do_not_overflow():
    q, k, v = inputs()
    torch.testing.assert_close(decode(300 * q, 300 * k, v), REFERENCE(300 * q, 300 * k, v))


def test_wrong_inputs_are_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"inputs of torch.float16, torch.float32; all must be"):
        decode(q.half(), k, v)
    with pytest.raises(ValueError, match=r"inputs of torch.float64"):
        decode(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="heads of width 264; the kernels take up to 256"):
        decode(*inputs(d_head=264))
    with pytest.raises(ValueError, match="4 queries and 2 keys"):
        decode(*inputs(queries=4, keys=2))
    with pytest.raises(ValueError, match="several devices"):
        decode(q, k.to("meta"), v)
    with pytest.raises(ValueError, match="attention decode has no gradient"):
        decode(q.requires_grad_(), k, v)


def test_the_operation_keeps_torchs_rules():
    slopes = torch.rand(4)
    torch.library.opcheck(attention_decode.attention_decode, (*inputs(), 100, 3.0, slopes))


@pytest.mark.parametrize(
    ("blocks", "programs", "slots", "expected"),
    [
        (100, 8, 264, Splits(25, 4)),  # 33 splits would fill the slots; of 4 blocks each there are 25
        (512, 8, 264, Splits(32, 16)),
        (1, 8, 264, Splits(1, 1)),
        (512, 2000, 264, Splits(1, 512)),  # the programs fill the GPU without splits
        (512, 264, 264, Splits(1, 512)),
    ],
)
def test_the_keys_are_shared_so_that_the_slots_are_full(blocks, programs, slots, expected):
    assert share(blocks, programs, slots) == expected


def test_all_keys_are_in_some_split_and_no_split_is_empty():
    for blocks, programs, slots in itertools.product((1, 2, 3, 7, 50, 511), (1, 3, 100), (1, 8, 264)):
        number, each = share(blocks, programs, slots)
        assert number * each >= blocks > (number - 1) * each
