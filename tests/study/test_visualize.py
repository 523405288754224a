"""Claims about looking inside: what is shown is what the model computes, and the model stays as it was."""

import re

import numpy as np
import pytest
import torch

from scratchlm.checkpoint import save_checkpoint
from scratchlm.data.packing import evaluation_rows
from scratchlm.loss import cross_entropy
from scratchlm.model.config import ModelSettings
from scratchlm.model.transformer import TransformerLM
from scratchlm.study.drawing import light_colours, standalone
from scratchlm.study.visualize import embeddings, figures, split
from scratchlm.study.visualize.lens import logit_lens
from scratchlm.study.visualize.passes import looks_back, loss_of, pass_text, token_text, watching
from scratchlm.tokenizer.bpe_train import train_bpe

TEXT = "Tim saw the dog. The dog saw Tim."


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT, "Grüße"], vocab_size=280, special_tokens=["<|endoftext|>"])


def make_model(tokenizer, **settings):
    small = {"context_length": 32, "d_model": 16, "num_layers": 2, "num_heads": 4, **settings}
    torch.manual_seed(3)
    return TransformerLM(ModelSettings(**small).with_vocabulary(tokenizer.vocab_size)).eval()


class Rows:
    """A split in memory, as far as packing reads it."""

    def __init__(self, tokenizer, documents):
        end = tokenizer.end_of_text_id
        self.parts = [np.array([*tokenizer.encode_ordinary(text), end]) for text in documents]
        self.all = np.concatenate(self.parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.end_of_text_id, self.num_documents, self.num_tokens = end, len(documents), len(self.all)

    def document_bounds(self, index):
        return int(self.ends[index] - len(self.parts[index])), int(self.ends[index])

    def read(self, start, length):
        return self.all[start : start + length]


VARIANTS = [
    {},
    {"position": "alibi", "num_kv_heads": 2},
    {"qk_norm": True, "window": 5, "softcap": 20.0},
    {"position": "learned", "placement": "post"},
    {"placement": "none", "tied": True, "bias": True},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_attention_weights_times_values_are_what_attention_adds(tokenizer, settings):
    model = make_model(tokenizer, **settings)
    found = pass_text(model, tokenizer, TEXT)
    assert found.attention.shape == (2, 4, len(found.ids), len(found.ids))
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(2, 4, len(found.ids)))
    assert (found.attention.triu(1) == 0).all()
    with torch.no_grad(), watching(model) as streams:
        model(torch.tensor([found.ids]))
    for layer, (x, position) in enumerate(streams.attention_input):
        part = model.layers[layer].attn
        values = part.project(x, position, 0).v.repeat_interleave(4 // part.num_kv_heads, dim=1)
        mixed = (found.attention[layer] @ values[0]).permute(1, 0, 2).flatten(1)
        torch.testing.assert_close(part.output_proj(mixed), streams.branches[layer][0][0])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_last_layer_of_the_lens_says_what_the_model_says(tokenizer, settings):
    model = make_model(tokenizer, **settings)
    found = pass_text(model, tokenizer, TEXT)
    depths = logit_lens(model, tokenizer, found, max_tokens=100)
    assert [depth.name for depth in depths] == ["embeddings", "block 1", "block 2"]
    ids = torch.tensor(found.ids)
    with torch.no_grad():
        logits = model(ids[None])[0]
    assert depths[-1].loss == pytest.approx(float(cross_entropy(logits[:-1], ids[1:])), rel=1e-5)
    assert float(loss_of(found).mean()) == pytest.approx(depths[-1].loss, rel=1e-5)
    best = [token_text(tokenizer, int(id)) for id in logits[:-1].argmax(dim=-1)]
    assert [guess.text for guess in depths[-1].guesses] == best


def test_gradients_are_those_of_backward_and_the_model_is_as_before(tokenizer):
    model, rows = make_model(tokenizer), Rows(tokenizer, [TEXT] * 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = split.watch_batch(model, rows, documents=False)
    split.loss_by_place(model, rows, max_rows=9, documents=True, autocast=lambda: torch.no_grad())
    pass_text(model, tokenizer, TEXT)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    found = list(evaluation_rows(rows, 32, split.GRADIENT_ROWS))
    inputs, targets = (torch.cat([getattr(row, name) for row in found]) for name in ("inputs", "targets"))
    cross_entropy(model(inputs), targets).backward()
    for layer, block in zip(batch.layers, model.layers, strict=True):
        norm = torch.cat([weight.grad.flatten() for weight in block.attn.parameters()]).norm()
        assert layer.attention_gradient == pytest.approx(float(norm), rel=1e-4)
        assert layer.stream_gradient > 0
    assert dict(batch.ends)["lm_head.weight"] == pytest.approx(
        float(model.lm_head.weight.grad.norm()), rel=1e-4
    )


def test_a_hook_is_taken_away_even_after_an_error(tokenizer):
    model = make_model(tokenizer)
    with pytest.raises(RuntimeError, match="on purpose"), watching(model):
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_loss_by_place_averages_each_place():
    found = split.by_place(np.array([0, 0, 1, 5, 5, 6]), np.array([2.0, 4.0, 5.0, 1.0, 3.0, 2.0]))
    np.testing.assert_allclose(found.losses[:2], [3.0, 5.0])
    assert found.counts.sum() == 6
    assert float(found.losses @ found.counts) == pytest.approx(17.0)
    np.testing.assert_allclose(found.errors[0], 1.0)


def test_places_begin_again_in_each_document(tokenizer):
    end = tokenizer.end_of_text_id
    ids = torch.tensor([[end, 5, 6, end, 7, 8]])
    assert split._place_in_document(ids, end).tolist() == [[0, 1, 2, 0, 1, 2]]


def test_the_loss_by_place_has_the_split_s_own_mean(tokenizer):
    model, rows = make_model(tokenizer), Rows(tokenizer, [TEXT, "Tim", "the dog. " * 9] * 3)
    in_row, in_document = split.loss_by_place(
        model, rows, max_rows=99, documents=False, autocast=lambda: torch.no_grad()
    )
    for found in (in_row, in_document):
        assert found.counts.sum() == rows.num_tokens
    assert in_row.losses @ in_row.counts == pytest.approx(in_document.losses @ in_document.counts)


def test_the_plane_is_the_one_of_largest_spread():
    generator = torch.Generator().manual_seed(1)
    cloud = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 2.0])
    turned, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator))
    plane, shares = embeddings.principal_plane(cloud @ turned[:2] + 3.0)
    centred = (cloud - cloud.mean(0)).double()
    torch.testing.assert_close(torch.cdist(plane, plane), torch.cdist(centred, centred), atol=1e-3, rtol=1e-4)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] > shares[1]


def test_neighbours_are_found_by_angle_and_a_token_is_not_its_own():
    table = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    assert [id for id, _ in embeddings.nearest(table, 0, 3)] == [1, 2, 3]
    assert embeddings.nearest(table, 0, 3)[2][1] == pytest.approx(-1.0)


def test_a_head_s_look_back_is_the_mean_distance():
    assert looks_back(torch.tensor([[1.0, 0.0], [0.5, 0.5]])) == (0.5, 0.5)
    assert looks_back(torch.tensor([[1.0]])) == (0.0, 1.0)


@pytest.mark.parametrize("text", ["", "Grüße \x00\udcff"[:7], "dog " * 100])
def test_texts_are_cut_to_the_context_and_empty_ones_refused(tokenizer, text):
    model = make_model(tokenizer)
    if not text:
        with pytest.raises(ValueError, match="the text is empty"):
            pass_text(model, tokenizer, text)
        return
    found = pass_text(model, tokenizer, text)
    assert 2 <= len(found.ids) <= 32
    assert found.ids[0] == tokenizer.end_of_text_id


def test_words_that_are_no_token_are_refused_with_their_parts(tokenizer):
    counts = np.ones(tokenizer.vocab_size, dtype=int)
    with pytest.raises(ValueError, match=r"--word 'xyz': is no single token .*'x', 'y', 'z'"):
        embeddings.choose_tokens(counts, tokenizer, ["xyz"])
    counts[tokenizer.encode_ordinary(" saw")] = 7
    (chosen,) = embeddings.choose_tokens(counts, tokenizer, ["saw"])
    assert token_text(tokenizer, chosen) == " saw"


def test_a_damaged_checkpoint_costs_its_column_only(tokenizer, tmp_path, caplog):
    model = make_model(tokenizer)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"model": model.state_dict()}, {})
    (tmp_path / "step-0000002" / "model.safetensors").write_bytes(b"cut off")
    tables = embeddings.read_tables(tmp_path)
    assert [step for step, _ in tables] == [1, 3]
    assert torch.equal(tables[0][1], model.token_embeddings.weight)
    assert "step-0000002" in caplog.text
    assert "left out" in caplog.text


def test_a_diverged_model_s_weights_are_counted_and_drawn(tokenizer):
    model = make_model(tokenizer)
    with torch.no_grad():
        model.layers[0].ffn.w1.weight[:2] = torch.nan
    found = split.weight_histograms(model)
    assert found["ffn w1"][0].num_not_finite == 2 * 16
    assert found["ffn w1"][1].num_not_finite == 0
    assert "<path" in figures.histogram_figure(found, "weights", "Weights", "narrow")
    nowhere = np.full(3, np.nan)
    places = split.ByPlace(np.arange(3.0), nowhere, nowhere, np.ones(3, dtype=int))
    assert "<svg" in figures.place_figure(places, None, "wide")


def test_names_on_the_map_do_not_overlap_and_are_escaped():
    random = np.random.default_rng(2)
    places = [
        embeddings.Place(f"<b>&{index}", 5, float(x), float(y))
        for index, (x, y) in enumerate(random.random((90, 2)))
    ]
    labels = figures.map_labels(embeddings.Map(places, (0.5, 0.2)))
    named = [label for label in labels if label.named]
    assert 5 < len(named) < len(labels)
    assert all(
        abs(a.y - b.y) >= figures.LINE_HEIGHT or abs(a.x - b.x) >= figures.LETTER_WIDTH
        for index, a in enumerate(named)
        for b in named[:index]
    )
    svg = figures.map_svg(embeddings.Map(places, (0.5, 0.2)))
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;0" in svg


def test_a_drawing_that_stands_alone_has_real_colours_and_is_an_svg_file():
    svg = standalone(figures.depth_figure(["embeddings", "block 1"], [3.0, 2.0], "wide"))
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert not re.search(r"var\(|#0a0[ab]0", svg)
    assert light_colours()["--paper"] in svg
