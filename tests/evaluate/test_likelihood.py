"""Claims about the likelihood of a split, on tiny shards and models whose answer is known."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scratchlm.data.shard_writer import ShardWriter
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate import evaluate_split
from scratchlm.evaluate.likelihood import likelihood, rows_together

VOCABULARY = 11
END = 0
CPU = torch.device("cpu")


class Uniform(torch.nn.Module):
    """Gives every token the same probability, and remembers the shapes and the mode it was called in."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes, self.modes = [], []

    def forward(self, token_ids):
        self.shapes.append(tuple(token_ids.shape))
        self.modes.append(self.training)
        return torch.zeros(*token_ids.shape, VOCABULARY)


class Pairs(torch.nn.Module):
    """A fixed random table: the logits depend on the last token only, so no split into rows can matter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
        )

    def forward(self, token_ids):
        return self.table[token_ids]


def write_split(folder: Path, documents: list[list[int]], num_bytes: int = 4) -> TokenDataset:
    writer = ShardWriter(folder, vocab_size=VOCABULARY, tokenizer_fingerprint="f" * 64, tokens_per_shard=50)
    for document in documents:
        writer.add(np.array([*document, END], dtype=np.uint16), ends_document=True, num_bytes=num_bytes)
    writer.close({"end_of_text_id": END})
    return TokenDataset.open(folder)


@pytest.fixture
def documents() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(1, VOCABULARY, size=size).tolist() for size in random.integers(1, 30, size=40)]


@pytest.fixture
def split(tmp_path: Path, documents: list[list[int]]) -> TokenDataset:
    return write_split(tmp_path / "valid", documents)


def test_uniform_model_has_the_logarithm_of_the_vocabulary_as_loss(split, documents):
    found = evaluate_split(Uniform(), split, context_length=16, device=CPU)
    num_tokens = sum(len(document) + 1 for document in documents)
    assert (found.num_tokens, found.num_bytes) == (num_tokens, 4 * len(documents))
    assert found.loss == pytest.approx(math.log(VOCABULARY))
    assert found.perplexity == pytest.approx(VOCABULARY)
    assert found.bits_per_byte == pytest.approx(math.log2(VOCABULARY) * num_tokens / (4 * len(documents)))


@pytest.mark.parametrize("context_length", [1, 7, 16, 64])
@pytest.mark.parametrize("rows_per_batch", [1, 3, 100])
def test_every_token_counts_once_for_any_context_and_batch(split, documents, context_length, rows_per_batch):
    model = Pairs()
    log_table = torch.log_softmax(model.table.detach().double(), dim=-1)
    total = -sum(
        float(log_table[before, token])
        for document in documents
        for before, token in zip([END, *document], [*document, END], strict=True)
    )
    found = evaluate_split(
        model, split, context_length=context_length, rows_per_batch=rows_per_batch, device=CPU
    )
    assert found.num_tokens == split.num_tokens
    assert found.loss == pytest.approx(total / split.num_tokens, rel=1e-6)


class Averages(torch.nn.Module):
    """The logits depend on all tokens that the model sees: their mean vector, or that of their document."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(
            4 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
        )

    def forward(self, token_ids, *, documents=None):
        seen = torch.ones(token_ids.shape[1], token_ids.shape[1]).tril().expand(len(token_ids), -1, -1)
        if documents is not None:
            seen = seen * (documents[:, :, None] == documents[:, None, :])
        return seen @ self.table[token_ids] / seen.sum(dim=-1, keepdim=True)


def test_documents_apart_are_scored_as_if_each_stood_alone(split, documents):
    """With room for whole documents the rows' make-up matters to a model that sees all, not to one masked."""
    model = Averages()
    total = 0.0
    for document in documents:
        ids = torch.tensor([[END, *document, END]])
        log_probabilities = torch.log_softmax(model(ids[:, :-1]).detach(), dim=-1)
        total -= float(log_probabilities[0].gather(1, ids[0, 1:, None]).sum())
    apart = evaluate_split(model, split, context_length=64, device=CPU, documents=True)
    assert apart.num_tokens == split.num_tokens
    assert apart.loss == pytest.approx(total / split.num_tokens, rel=1e-5)
    together = evaluate_split(model, split, context_length=64, device=CPU)
    assert abs(together.loss - apart.loss) > 0.01


def test_two_evaluations_agree_in_every_bit(split):
    model = Pairs()
    first, second = (evaluate_split(model, split, context_length=16, device=CPU) for _ in range(2))
    assert first == second


def test_compiled_models_see_one_shape_only(split):
    model = Uniform()
    evaluate_split(model, split, context_length=16, rows_per_batch=5, device=CPU)
    assert set(model.shapes) == {(5, 16)}


def test_model_is_evaluated_without_dropout_and_returns_to_its_mode(split):
    model = Uniform()
    evaluate_split(model, split, context_length=16, device=CPU)
    assert model.training
    assert not any(model.modes)
    model.eval()
    evaluate_split(model, split, context_length=16, device=CPU)
    assert not model.training


def test_quick_look_stops_at_the_first_row_that_reaches_its_tokens(split):
    found = [
        evaluate_split(Pairs(), split, context_length=16, rows_per_batch=rows, device=CPU, max_tokens=60)
        for rows in (1, 4, 64)
    ]
    assert 60 <= found[0].num_tokens < 60 + 16
    assert {(look.num_tokens, look.num_bytes) for look in found} == {
        (found[0].num_tokens, found[0].num_bytes)
    }
    assert found[0].loss == pytest.approx(found[2].loss, rel=1e-6)
    assert found[0].num_bytes == round(split.num_bytes * found[0].num_tokens / split.num_tokens)


def test_forward_passes_run_inside_autocast(split):
    entered = []

    @contextlib.contextmanager
    def watch():
        entered.append(True)
        yield

    model = Uniform()
    evaluate_split(model, split, context_length=16, rows_per_batch=4, device=CPU, autocast=watch)
    assert len(entered) == len(model.shapes)


def test_diverged_model_gives_infinity_or_nan_and_no_error():
    assert likelihood(1e6, 10, 40).perplexity == math.inf
    assert math.isnan(likelihood(math.nan, 10, 40).perplexity)
    assert math.isnan(likelihood(10.0, 10, 0).bits_per_byte)


def test_worked_example():
    found = likelihood(1000 * math.log(4), 1000, 4000)
    assert found.loss == pytest.approx(1.3863, abs=1e-4)
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte == pytest.approx(0.5)


@pytest.mark.parametrize("setting", ["context_length", "rows_per_batch", "max_tokens"])
def test_numbers_below_one_are_refused(split, setting):
    settings = {"context_length": 16, setting: 0}
    with pytest.raises(ValueError, match=rf"{setting}=0: must be at least 1\."):
        evaluate_split(Uniform(), split, device=CPU, **settings)


def test_split_without_tokens_is_refused(split):
    nothing = split.manifest.model_copy(update={"num_tokens": 0, "num_documents": 0, "shards": ()})
    empty = TokenDataset(split.folder, nothing, [], np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="the split has no tokens; prepare it again"):
        evaluate_split(Uniform(), empty, context_length=8, device=CPU)


def test_rows_go_together_as_far_as_their_logits_fit():
    assert rows_together(256, 1536) == 16
    assert rows_together(1024, 50257) == 2
    assert rows_together(8192, 128256) == 1
