"""Each kernel is launched on the device of its tensors, whichever is the current one: no GPU is needed.

Triton launches on the current device. Here launches are only noted, with whether they stand inside
`torch.cuda.device_of` or `tables.on`; nothing is compiled and nothing runs.
"""

import contextlib

import pytest
import torch

pytestmark = pytest.mark.compile

pytest.importorskip("triton")

from scratchlm.kernels.gpu import (  # noqa: E402
    adamw,
    attention,
    attention_backward,
    attention_backward_keys,
    attention_backward_queries,
    attention_decode,
    attention_forward,
    attention_scores,
    chunked_cross_entropy,
    cross_entropy,
    lion,
    newton_schulz,
    project_heads,
    rms_norm,
    rotate,
    scale,
    support,
)
from scratchlm.kernels.project_heads import Angles, Gains  # noqa: E402

BY_TABLE = (adamw, lion, newton_schulz, scale)
WITH_KERNELS = (
    *BY_TABLE,
    attention_backward,
    attention_backward_keys,
    attention_backward_queries,
    attention_decode,
    attention_forward,
    cross_entropy,
    project_heads,
    rms_norm,
    rotate,
)


def full_name(kernel):
    """Of a kernel; two files have a forward_kernel."""
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


@pytest.fixture
def launches(monkeypatch):
    """The name of each kernel that is launched, and whether the device was chosen."""
    from triton.runtime.jit import JITFunction

    seen, entered = [], []

    @contextlib.contextmanager
    def guard(where):
        entered.append(where)
        yield
        entered.pop()

    def note(kernel, *_, **__):
        seen.append((full_name(kernel), bool(entered)))

    monkeypatch.setattr(JITFunction, "run", note)
    monkeypatch.setattr(torch.cuda, "device_of", guard)
    for module in BY_TABLE:
        monkeypatch.setattr(module, "on", guard)
    monkeypatch.setattr(support, "obstacle", lambda _: None)
    monkeypatch.setattr(attention_decode, "_slots", lambda _: 1000)
    return seen


def attend():
    q, k, v = (torch.zeros(1, 2, 70, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    documents = torch.zeros(1, 70, dtype=torch.int64)
    attention.attention(q, k, v, documents_BS=documents).sum().backward()
    attention.attention_one_pass(q, k, v).sum().backward()
    with torch.no_grad():
        longer = k.repeat(1, 1, 30, 1)
        attention.attention(q[:, :, :1], longer, longer)


def compute_losses():
    targets = torch.zeros(3, dtype=torch.int64)
    logits = torch.zeros(3, 50, requires_grad=True)
    cross_entropy.token_losses(logits, targets).sum().backward()
    cross_entropy.token_losses(logits * 1, targets, overwrite=True).sum().backward()
    hidden, weight = torch.zeros(3, 8, requires_grad=True), torch.zeros(50, 8, requires_grad=True)
    chunked_cross_entropy.chunked_cross_entropy(hidden, weight, targets).backward()


def normalise_and_turn():
    for width in (64, 16_400):
        x, gain = torch.zeros(3, width, requires_grad=True), torch.ones(width)
        rms_norm.rms_norm(x, gain).sum().backward()
        rms_norm.add_rms_norm(x, x, gain).normed.sum().backward()
    angles = Angles(torch.ones(5, 8), torch.zeros(5, 8))
    rotate.rotate(torch.zeros(1, 2, 5, 16, requires_grad=True), *angles).sum().backward()
    x, weight = torch.zeros(1, 5, 8, requires_grad=True), torch.zeros(64, 8)
    for gains in (None, Gains(torch.ones(16), torch.ones(16), 1e-5)):
        heads = project_heads.project_heads(
            x, weight, num_heads=2, num_kv_heads=1, gains=gains, angles=angles
        )
        sum(each.sum() for each in heads).backward()


def optimize():
    lists = [[torch.zeros(4)] for _ in range(4)]
    settings = {"decay": 0.01, "cautious": False, "step_size": 0.1}
    adamw.move(*lists, betas=(0.9, 0.95), eps=1e-8, **settings)
    lion.move(*lists[:3], betas=(0.9, 0.95), **settings)
    scale.scale_(lists[0], torch.tensor(0.5))
    newton_schulz.orthogonalize(torch.ones(1, 32, 64))


def test_every_kernel_is_launched_on_the_device_of_its_tensors(launches):
    for run in (attend, compute_losses, normalise_and_turn, optimize):
        run()
    assert [name for name, chosen in launches if not chosen] == []
    known = {full_name(one.kernel) for module in WITH_KERNELS for one in module.configurations()}
    known.add(full_name(attention_scores.document_ranges_kernel))
    assert {name for name, _ in launches} == known
