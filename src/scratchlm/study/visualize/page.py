"""A loaded run and a text come in; `inside.html` and its drawings as files come out.

    run folder -> passes, lens, split, embeddings (numbers) -> figures (SVG, PNG) -> templates/ -> page

The page holds its styles, drawings and one script of its own, needs no network, and follows the reader's
light or dark mode. The text and the tokenizer's entries are untrusted: jinja2 escapes them, in the script's
data too, and the script writes them as text and never as markup.
"""

import base64
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from scratchlm.data.shards import TokenDataset
from scratchlm.runtime import write_text_atomically
from scratchlm.study import pages, units
from scratchlm.study.drawing import standalone
from scratchlm.study.sample_chapter import LEVELS
from scratchlm.study.visualize import embeddings, figures, split
from scratchlm.study.visualize.lens import Depth, logit_lens
from scratchlm.study.visualize.passes import TextPass, likeliest, looks_back, loss_of, pass_text, token_text
from scratchlm.train.folder import LoadedRun

FILE_NAME = "inside.html"
LENS_TOKENS = 40
"""Columns of the logit lens."""
ATTENTION_TOKENS = 64
"""Rows of an attention map: more than two pixels each on a page."""
ATTENTION_BYTES = 1_500_000
"""Of all maps together, one byte a pair; deep models show fewer tokens so that the page stays light."""


class Chapters(NamedTuple):
    """What a page says of the inside of a model."""

    name: str
    step: int
    lead: str
    parts: list[tuple[str, str]]
    """Id and title of each chapter."""
    chapters: str
    """All of them as markup, with the script of the attention maps."""


class ShownToken(NamedTuple):
    """One token of the text."""

    text: str
    level: int
    """Index into LEVELS."""
    probability: str
    others: list[tuple[str, float]]


class Head(NamedTuple):
    """One attention map of the page."""

    map: int
    """Its number among all."""
    name: str
    back: float
    first: float


@dataclass(frozen=True)
class Inside:
    """Everything that was found; the page and the files are drawn from it."""

    run: LoadedRun
    text: TextPass
    cut: bool
    depths: list[Depth]
    map: embeddings.Map
    steps: list[int]
    near: list[embeddings.Neighbours]
    in_row: split.ByPlace
    in_document: split.ByPlace
    batch: split.Batch
    weights: dict[str, list[split.Histogram]]

    @property
    def one_document_each(self) -> bool:
        """Whether place in the row and in the document are the same everywhere."""
        return np.array_equal(self.in_row.losses, self.in_document.losses)


def look_inside(
    run: LoadedRun,
    text: str | None,
    *,
    words: Sequence[str],
    max_rows: int,
    autocast: Callable[[], AbstractContextManager[None]],
) -> Inside:
    """Compute everything the page shows; the model is as before afterwards.

    Args:
        run: A trained model with its folder.
        text: What to read; the first validation document where None.
        words: Tokens whose neighbours are wanted; frequent ones where empty.
        max_rows: Validation rows for the loss by place.
        autocast: Called around the forward passes over the split, or nothing.

    Raises:
        ValueError: The text is empty, a word is no token, or the run's shards are missing.
    """
    dataset = TokenDataset.open(run.folder.shards("valid"), tokenizer_fingerprint=run.tokenizer.fingerprint)
    model, tokenizer = run.model, run.tokenizer
    counts = embeddings.token_counts(dataset, model.config.vocab_size)
    chosen = embeddings.choose_tokens(counts, tokenizer, words)
    if text is None:
        text = tokenizer.decode([int(id) for id in dataset.document(0) if id != tokenizer.end_of_text_id])
    found = pass_text(model, tokenizer, text)
    tables = embeddings.read_tables(run.folder.checkpoints)
    in_row, in_document = split.loss_by_place(
        model, dataset, max_rows=max_rows, documents=run.config.train.document_mask, autocast=autocast
    )
    return Inside(
        run,
        found,
        len(tokenizer.encode_ordinary(text)) + 1 > len(found.ids),
        logit_lens(model, tokenizer, found, max_tokens=LENS_TOKENS),
        embeddings.embedding_map(model.token_embeddings.weight.detach().cpu(), counts, tokenizer),
        [step for step, _ in tables],
        embeddings.neighbours([table for _, table in tables], tokenizer, chosen),
        in_row,
        in_document,
        split.watch_batch(model, dataset, documents=run.config.train.document_mask),
        split.weight_histograms(model),
    )


def write_inside(inside: Inside, folder: Path) -> Path:
    """Write the page and the drawings into a folder and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _drawings(inside)
    for name, drawings in drawn.items():
        write_text_atomically(folder / f"{name}.svg", standalone(drawings[0]))
    maps = _shown_attention(inside.text)
    labels = _labels(inside)[: maps.shape[-1]]
    for number, weights_HTT in enumerate(maps, start=1):
        figures.attention_png(folder / f"attention-block-{number}.png", weights_HTT, labels)
    write_text_atomically(folder / FILE_NAME, render_inside(inside, drawn))
    return folder / FILE_NAME


def render_inside(inside: Inside, drawn: dict[str, list[str]] | None = None) -> str:
    """The page's HTML."""
    return pages.rendered("visualize.html.j2", chapters_of(inside, drawn)._asdict())


def chapters_of(inside: Inside, drawn: dict[str, list[str]] | None = None) -> Chapters:
    """The page's chapters, for its own page or a run's report."""
    from markupsafe import Markup

    values = _values(inside, drawn or _drawings(inside))
    parts = [
        (id, title)
        for id, title, shown in (
            ("text", "A text", True),
            ("lens", "Layer by layer", values["depths"]),
            ("attention", "Attention", values["heads"]),
            ("tokens", "Tokens", True),
            ("place", "Loss by place", True),
            ("flow", "Gradients", values["layers"]),
            ("activations", "Activations", values["activations"]),
            ("weights", "Weights", True),
        )
        if shown
    ]
    name = inside.run.config.name or inside.run.folder.path.name
    return Chapters(
        name, inside.run.step, _lead(inside), parts, Markup(pages.rendered("inside.html.j2", values))
    )


def _drawings(inside: Inside) -> dict[str, list[str]]:
    """Name -> the drawing for a wide page and for a narrow one, or one for both."""
    shapes: tuple[figures.Shape, ...] = ("wide", "narrow")
    names, losses = [depth.name for depth in inside.depths], [depth.loss for depth in inside.depths]
    other = None if inside.one_document_each else inside.in_document
    draw: dict[str, Callable[[figures.Shape], str]] = {
        "loss-by-place": lambda shape: figures.place_figure(inside.in_row, other, shape),
        "weights": lambda shape: figures.histogram_figure(
            inside.weights, "weights", "Sizes of weights", shape
        ),
    }
    if inside.depths:
        draw["loss-by-layer"] = lambda shape: figures.depth_figure(names, losses, shape)
    if inside.batch.layers:
        draw["gradients"] = lambda shape: figures.gradient_figure(inside.batch.layers, shape)
        draw["activations"] = lambda shape: figures.histogram_figure(
            inside.batch.activations, "activations", "Sizes of activations", shape
        )
    drawn = {name: [function(shape) for shape in shapes] for name, function in draw.items()}
    return drawn | ({"tokens": [figures.map_svg(inside.map)]} if inside.map.places else {})


def _values(inside: Inside, drawn: dict[str, list[str]]) -> dict[str, Any]:
    from markupsafe import Markup

    plots = {name: [Markup(one) for one in drawings] for name, drawings in drawn.items()}
    maps = _shown_attention(inside.text)
    weights = [one for several in inside.weights.values() for one in several]
    config = inside.run.model.config
    return {
        "tokens": _tokens(inside),
        "cut": inside.cut,
        "text_loss": float(loss_of(inside.text).mean()),
        "levels": [name for _, name in LEVELS],
        "depths": inside.depths,
        "lens_tokens": _labels(inside)[:-1][:LENS_TOKENS],
        "depth_plots": plots.get("loss-by-layer", []),
        "heads": _heads(maps),
        "attention_size": maps.shape[-1],
        "attention_data": _attention_data(inside, maps),
        "map": plots["tokens"][0] if "tokens" in plots else None,
        "num_places": len(inside.map.places),
        "shares": inside.map.shares,
        "near": inside.near,
        "steps": inside.steps,
        "tied": getattr(config, "tied", False),
        "documents_differ": not inside.one_document_each,
        "num_scored": f"{int(inside.in_row.counts.sum()):,}",
        "context_length": config.context_length,
        "place_plots": plots["loss-by-place"],
        "layers": inside.batch.layers,
        "batch_loss": inside.batch.loss,
        "flow_plots": plots.get("gradients", []),
        "ends": inside.batch.ends,
        "activations": plots.get("activations", []),
        "weights": plots["weights"],
        "not_finite": sum(one.num_not_finite for one in weights),
        "block_names": _block_names(inside),
    }


def _lead(inside: Inside) -> str:
    parameters = sum(weight.numel() for weight in inside.run.model.parameters())
    blocks = len(inside.batch.layers)
    words = f"A model of {units.count(parameters)} parameters after {inside.run.step:,} steps"
    return words + (f": {blocks} block{'s' if blocks != 1 else ''}, layer by layer." if blocks else ".")


def _tokens(inside: Inside) -> list[ShownToken]:
    tokenizer, found = inside.run.tokenizer, inside.text
    shown = []
    for place, id in enumerate(found.ids[1:]):
        chance = float(found.probabilities[place, id])
        level = next((index for index, (edge, _) in enumerate(LEVELS) if chance >= edge), len(LEVELS) - 1)
        others = likeliest(found.probabilities[place], tokenizer)
        shown.append(ShownToken(token_text(tokenizer, id), level, units.percent(chance), others))
    return shown


def _labels(inside: Inside) -> list[str]:
    return [token_text(inside.run.tokenizer, id) for id in inside.text.ids]


def _shown_attention(found: TextPass) -> Float[Tensor, "layers heads shown shown"]:
    """The maps of the first tokens, no more than the page carries; rows are whole, the future is 0."""
    layers, heads, length, _ = found.attention.shape
    room = math.isqrt(ATTENTION_BYTES // max(1, layers * heads))
    size = max(1, min(length, ATTENTION_TOKENS, room))
    return found.attention[:, :, :size, :size]


def _heads(maps: Float[Tensor, "layers heads time time"]) -> list[list[Head]]:
    return [
        [
            Head(layer * maps.shape[1] + head, f"block {layer + 1}, head {head + 1}", *looks_back(weights_TT))
            for head, weights_TT in enumerate(weights_HTT)
        ]
        for layer, weights_HTT in enumerate(maps)
    ]


def _attention_data(inside: Inside, maps: Float[Tensor, "layers heads time time"]) -> dict[str, Any]:
    as_bytes = (maps.nan_to_num().clamp(0, 1) * 255).round().byte().contiguous().numpy().tobytes()
    labels = [pages.show_spaces(text) for text in _labels(inside)[: maps.shape[-1]]]
    return {"weights": base64.b64encode(as_bytes).decode("ascii"), "tokens": labels}


def _block_names(inside: Inside) -> list[tuple[int, str]]:
    longest = max((several for several in inside.weights.values()), key=len, default=[])
    if len(longest) < 2:
        return []
    return [(index, one.name) for index, one in figures.evenly(longest, len(figures.SERIES))]
