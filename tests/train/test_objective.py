"""What is minimised: the same loss whether logits are one table or computed in chunks."""

import pytest
import torch

from scratchlm.kernels import Choice
from scratchlm.kernels.cross_entropy import chunked_cross_entropy
from scratchlm.model import MODELS, ModelSettings
from scratchlm.train import objective as objectives
from scratchlm.train.config import TrainConfig
from scratchlm.train.objective import Objective, logit_rows

CPU = torch.device("cpu")
ROWS, TIME, VOCABULARY = 4, 32, 97


def loss_and_gradients(*, compiled: bool, name: str = "transformer", **settings):
    torch.manual_seed(0)
    config = ModelSettings(
        name=name, context_length=TIME, d_model=16, num_layers=1, num_heads=2, logit_softcap=20.0
    ).with_vocabulary(VOCABULARY)
    model = MODELS.get(name)(config)
    objective = Objective(
        model,
        TrainConfig(steps=1, batch_tokens=ROWS * TIME, **settings),
        device=CPU,
        precision="float32",
        micro_tokens=ROWS * TIME,
        compiled=compiled,
        end_of_text_id=0,
    )
    ids = torch.randint(VOCABULARY, (ROWS, TIME + 1), generator=torch.Generator().manual_seed(1))
    ids[:, TIME // 2] = 0  # a second document begins in every row
    loss = objective(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    "settings", [{}, {"z_loss": 1e-2, "label_smoothing": 0.1}, {"document_mask": True}], ids=str
)
def test_chunks_change_nothing_but_rounding(monkeypatch, settings):
    table = loss_and_gradients(compiled=True, **settings)
    monkeypatch.setattr(objectives, "CACHE_BYTES", 0)
    monkeypatch.setattr(objectives, "CACHE_ROWS", 24)
    chunks = loss_and_gradients(compiled=False, **settings)
    torch.testing.assert_close(chunks[0], table[0])
    for one, other in zip(chunks[1], table[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "setting", [{"z_loss": 1e-2}, {"label_smoothing": 0.1}, {"document_mask": True}], ids=str
)
def test_each_setting_changes_the_loss(setting):
    assert not torch.equal(
        loss_and_gradients(compiled=False, **setting)[0], loss_and_gradients(compiled=False)[0]
    )


def test_kernels_for_gpus_take_head_and_loss_together_and_cut_as_they_need(monkeypatch):
    asked = []

    def recording(*tensors, **settings):
        asked.append(settings["chunk_rows"])
        return chunked_cross_entropy(*tensors, **settings)

    table = loss_and_gradients(compiled=True)
    monkeypatch.setattr(objectives, "choose", lambda op, device: Choice(recording, "a test", "triton"))
    torch.testing.assert_close(loss_and_gradients(compiled=True), table, rtol=1e-4, atol=1e-6)
    assert asked == [None]
    loss_and_gradients(compiled=True, name="bigram")
    assert asked == [None]


def test_a_bigram_has_no_head_to_cut(monkeypatch):
    monkeypatch.setattr(objectives, "CACHE_BYTES", 0)
    assert torch.isfinite(loss_and_gradients(compiled=False, name="bigram")[0])


def test_logits_are_cut_where_the_table_is_too_large():
    config = ModelSettings(context_length=256).with_vocabulary(4096)
    assert logit_rows(config, 4096, device=CPU, compiled=False) == 256
    assert logit_rows(config, 4096, device=CPU, compiled=True) == 1024
    assert logit_rows(config, 2**20, device=CPU, compiled=True) == 2**17
    assert logit_rows(config, 4096, device=torch.device("cuda"), compiled=True) == 4096
    assert logit_rows(config, 2**20, device=torch.device("cuda"), compiled=False) == 2**17
    small = ModelSettings(context_length=64).with_vocabulary(65)
    assert logit_rows(small, 768, device=CPU, compiled=False) == 768
