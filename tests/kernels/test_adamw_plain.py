import os

import pytest
import torch

from scratchlm.kernels import KERNELS, adamw_plain, adamw_reference, choose

SETTINGS = {"betas": (0.9, 0.95), "decay": 0.01, "step_size": 1e-2, "eps": 1e-8}
OPERATIONS = ("adamw", "lion", "scale", "orthogonalize")


def make_lists(dtype):
    generator = torch.Generator().manual_seed(1)
    lists = [[torch.randn(s, generator=generator) for s in ((9, 5), (3,), ())] for _ in range(4)]
    lists[3] = [v.square() for v in lists[3]]
    return [[t.to(dtype) for t in tensors] for tensors in lists]


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plain_way_equals_the_formula(dtype, cautious):
    """float32 is moved by the compiled loop, float64 by tensor operations."""
    ours, exact = make_lists(dtype), make_lists(torch.float64)
    adamw_plain.move(*ours, **SETTINGS, cautious=cautious)
    adamw_reference.move(*exact, **SETTINGS, cautious=cautious)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, [t.to(dtype) for t in theirs])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_machine_without_a_gpu_takes_the_plain_way_and_says_why(operation):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels run on a CPU")
    choice = choose(operation, device="cpu")
    assert choice.name == "plain"
    assert "no Triton" in choice.reason
    assert {"reference", "plain", "triton"} <= KERNELS[operation].keys()
    with pytest.raises(ValueError, match=rf"{operation}=triton cannot run on cpu: .* Take {operation}=auto"):
        choose(operation, "triton", "cpu")


def test_our_gpu_kernels_refuse_tensors_of_a_cpu():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels run on a CPU")
    from scratchlm.kernels.gpu import adamw, lion, newton_schulz, scale

    lists = make_lists(torch.float32)
    without_eps = {key: value for key, value in SETTINGS.items() if key != "eps"}
    refused = {
        "adamw": lambda: adamw.move(*lists, **SETTINGS, cautious=False),
        "lion": lambda: lion.move(*lists[:3], **without_eps, cautious=False),
        "scale": lambda: scale.scale_(lists[0], torch.tensor(0.5)),
        "orthogonalize": lambda: newton_schulz.orthogonalize(torch.ones(1, 3, 3)),
    }
    for operation, call in refused.items():
        with pytest.raises(ValueError, match=rf"{operation}=triton cannot run on cpu: it is no GPU"):
            call()
    for tensors, before in zip(lists, make_lists(torch.float32), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
