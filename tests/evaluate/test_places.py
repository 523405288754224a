"""Claims about the loss by place: the same tokens at every place, so that only what stands before differs."""

import numpy as np
import pytest
import torch

from scratchlm.data.shard_writer import ShardWriter
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate import places
from scratchlm.evaluate.places import bands, place_losses

VOCABULARY, END = 11, 0
CPU = torch.device("cpu")


class Pairs(torch.nn.Module):
    """The logits depend on the last token only, plus what a row's place costs."""

    def __init__(self, cost_from: int | None = None) -> None:
        super().__init__()
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
        self.cost_from = cost_from

    def forward(self, token_ids, *, documents=None):
        logits = self.table[token_ids]
        if self.cost_from is not None:
            logits = logits * (torch.arange(token_ids.shape[1]) < self.cost_from)[:, None]
        return logits if documents is None else logits * documents[..., None]


@pytest.fixture
def split(tmp_path):
    writer = ShardWriter(tmp_path, vocab_size=VOCABULARY, tokenizer_fingerprint="f" * 64, tokens_per_shard=50)
    random = np.random.default_rng(1)
    for size in (30, 3, 17, 22, 9):
        ids = [*random.integers(1, VOCABULARY, size=size).tolist(), END]
        writer.add(np.array(ids, dtype=np.uint16), ends_document=True, num_bytes=4)
    writer.close({"end_of_text_id": END})
    return TokenDataset.open(tmp_path)


def test_all_bands_hold_the_same_tokens(split):
    losses = place_losses(Pairs(), split, stride=8, context_length=32, device=CPU)
    found = bands(losses, 8)
    assert list(found) == ["1x", "2x", "4x"]
    assert found["2x"] == pytest.approx(found["1x"], abs=1e-9)
    assert found["4x"] == pytest.approx(found["1x"], abs=1e-9)
    assert losses[:8] == pytest.approx(losses[24:], abs=1e-6)
    assert losses[:8].std() > 0.01
    ids = torch.from_numpy(split.read(0, 80).astype(np.int64))
    pairs = -torch.log_softmax(Pairs().table, dim=-1)[ids, ids.roll(-1)]
    assert found["1x"] == pytest.approx(float(pairs.mean()), rel=1e-5)


def test_a_model_that_fails_at_far_places_is_seen_there_alone(split):
    losses = place_losses(Pairs(cost_from=16), split, stride=8, context_length=32, device=CPU)
    fair = place_losses(Pairs(), split, stride=8, context_length=32, device=CPU)
    assert losses[:16] == pytest.approx(fair[:16])
    assert losses[16:] == pytest.approx(np.log(VOCABULARY))


def test_documents_are_told_apart_where_the_model_takes_them(split):
    how = {"stride": 8, "context_length": 32, "device": CPU}
    assert not np.allclose(
        place_losses(Pairs(), split, documents=True, **how), place_losses(Pairs(), split, **how)
    )


def test_of_a_long_split_the_first_tokens_are_measured(split, monkeypatch):
    monkeypatch.setattr(places, "MOST_TOKENS", 40)
    losses = place_losses(Pairs(), split, stride=8, context_length=32, device=CPU)
    ids = torch.from_numpy(split.read(0, 40).astype(np.int64))
    pairs = -torch.log_softmax(Pairs().table, dim=-1)[ids, ids.roll(-1)]
    assert losses.mean() == pytest.approx(float(pairs.mean()), rel=1e-5)


def test_bands_end_where_the_places_do():
    assert bands(np.array([1.0, 1.0, 5.0, 7.0]), 2) == {"1x": 1.0, "2x": 6.0}
    assert bands(np.array([1.0, 3.0]), 2) == {"1x": 2.0}


def test_a_split_shorter_than_a_row_is_refused(split):
    with pytest.raises(ValueError, match="holds 86 tokens, less than one row of 128"):
        place_losses(Pairs(), split, stride=32, context_length=128, device=CPU)
