r"""A model and validation rows come in; loss by place, sizes of activations and gradients come out.

    loss[i]     mean of -log p(token) over all rows, i tokens of the row (of the document) seen before it
    rms         sqrt(mean(x^2)) of what each branch adds, and of the stream it is added to
    gradients   |d loss / d weights|_2 of each part of each layer, |d loss / d x_l|_2 of the stream

The loss of a model that uses its context falls with the place; one that does not is flat. Gradients are
asked for with `torch.autograd.grad`, which returns them and leaves the model's own `.grad` alone.

Source: loss by place as in Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 4.1 and figure 20.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.data.packing import documents_of, evaluation_rows
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate.likelihood import rows_together
from scratchlm.generate.engine import evaluating
from scratchlm.loss import IGNORE, cross_entropy, token_losses
from scratchlm.study.visualize.passes import Streams, watching

GRADIENT_ROWS = 4
"""Rows of the batch whose gradients and activations are shown: a thousand tokens give two digits."""
BINS = 60
"""Bars of a histogram."""


class ByPlace(NamedTuple):
    """Mean loss over stretches of places; a stretch is as long as a third of its start, at least 1."""

    places: Float[np.ndarray, " stretches"]
    """Mean number of tokens seen before."""
    losses: Float[np.ndarray, " stretches"]
    errors: Float[np.ndarray, " stretches"]
    """Standard error of each mean."""
    counts: Int[np.ndarray, " stretches"]


class Histogram(NamedTuple):
    """How often numbers of each size come."""

    name: str
    edges: Float[np.ndarray, " edges"]
    density: Float[np.ndarray, " bins"]
    rms: float
    num_not_finite: int


class LayerSizes(NamedTuple):
    """One block: root mean squares, and norms of gradients."""

    number: int
    attention: float
    feedforward: float
    stream: float
    """After the block."""
    attention_gradient: float
    feedforward_gradient: float
    stream_gradient: float
    """With respect to the block's input."""


class Batch(NamedTuple):
    """What one batch showed."""

    loss: float
    layers: list[LayerSizes]
    ends: list[tuple[str, float]]
    """Gradient norms of the parts outside the blocks: embeddings, final norm, head."""
    activations: dict[str, list[Histogram]]
    """Kind -> one histogram for each block."""


@torch.no_grad()
def loss_by_place(
    model: Module,
    dataset: TokenDataset,
    *,
    max_rows: int,
    documents: bool,
    autocast: Callable[[], AbstractContextManager[None]],
) -> tuple[ByPlace, ByPlace]:
    """The loss by place in the row, and by place in the document.

    Args:
        model: Ids -> logits.
        dataset: The validation split.
        max_rows: Rows of the context length to read, at most.
        documents: Whether the model was trained to see its own document only.
        autocast: Called around each forward pass.

    Raises:
        ValueError: The split is empty.
    """
    length, device = model.config.context_length, next(model.parameters()).device
    rows = evaluation_rows(dataset, length, max_rows)
    losses, in_row, in_document = [], [], []
    together = rows_together(length, model.config.vocab_size)
    while several := list(islice(rows, together)):
        inputs = torch.cat([row.inputs for row in several])
        targets = torch.cat([row.targets for row in several])
        groups = documents_of(inputs, dataset.end_of_text_id)
        with evaluating(model), autocast():
            extra = {"documents": groups.to(device)} if documents else {}
            logits = model(inputs.to(device), **extra)
        kept = targets != IGNORE
        losses.append(token_losses(logits.float(), targets.to(device)).cpu()[kept].numpy())
        in_row.append(torch.arange(length).expand_as(inputs)[kept].numpy())
        in_document.append(_place_in_document(inputs, dataset.end_of_text_id)[kept].numpy())
    if not losses:
        raise ValueError("visualize: the validation split has no tokens; prepare it from a longer text.")
    joined = np.concatenate(losses).astype(np.float64)
    return by_place(np.concatenate(in_row), joined), by_place(np.concatenate(in_document), joined)


def by_place(places: Int[np.ndarray, " tokens"], losses: Float[np.ndarray, " tokens"]) -> ByPlace:
    """Average losses over stretches of neighbouring places.

    Example: places [0, 0, 1], losses [2, 4, 5] -> places [0, 1], losses [3, 5].
    """
    edges = [0]
    while edges[-1] <= places.max():
        edges.append(edges[-1] + max(1, edges[-1] // 3))
    which = np.searchsorted(edges, places, side="right") - 1
    counts = np.bincount(which, minlength=len(edges) - 1)
    many = np.maximum(counts, 1)
    means = np.bincount(which, losses, len(counts)) / many
    squares = np.bincount(which, losses**2, len(counts)) / many
    errors = np.sqrt(np.maximum(squares - means**2, 0) / np.maximum(counts - 1, 1))
    centres = np.bincount(which, places, len(counts)) / many
    kept = counts > 0
    return ByPlace(centres[kept], means[kept], errors[kept], counts[kept])


def watch_batch(model: Module, dataset: TokenDataset, *, documents: bool) -> Batch:
    """Activations and gradients of one batch of validation rows; in float32, so that nothing underflows."""
    rows = list(evaluation_rows(dataset, model.config.context_length, GRADIENT_ROWS))
    device = next(model.parameters()).device
    inputs = torch.cat([row.inputs for row in rows]).to(device)
    targets = torch.cat([row.targets for row in rows]).to(device)
    extra = {"documents": documents_of(inputs, dataset.end_of_text_id)} if documents else {}
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with evaluating(model), watching(model) as streams, torch.enable_grad():
        loss = cross_entropy(model(inputs, **extra).float(), targets)
    wanted = [*named.values(), *streams.residual]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = dict(zip(named, found, strict=False))
    layers = _layers(streams, gradients, found[len(named) :])
    ends = [
        (name, _norm([gradient]))
        for name, gradient in gradients.items()
        if not name.startswith("layers.") and gradient is not None
    ]
    return Batch(float(loss.detach()), layers, ends, _activations(streams))


def histogram(name: str, numbers: Tensor) -> Histogram:
    """The numbers' density without the outermost 1 % on either side; what is not finite is counted apart."""
    values = numbers.detach().float().flatten().cpu().numpy()
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99]) if len(finite) else (-1.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(finite, BINS, (low, high))
    density = counts / max(1, len(finite)) / np.diff(edges)
    rms = float(np.sqrt(np.mean(finite.astype(np.float64) ** 2))) if len(finite) else float("nan")
    return Histogram(name, edges, density, rms, len(values) - len(finite))


def weight_histograms(model: Module) -> dict[str, list[Histogram]]:
    """Histograms of all matrices: kind -> one for each block, or one for parts outside the blocks."""
    found: dict[str, list[Histogram]] = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        words = name.removesuffix(".weight").split(".")
        inside = words[0] == "layers"
        kind = " ".join(words[2:] if inside else words)
        found.setdefault(kind, []).append(histogram(f"block {int(words[1]) + 1}" if inside else kind, weight))
    return found


def _layers(
    streams: Streams, gradients: dict[str, Tensor | None], of_stream: tuple[Tensor | None, ...]
) -> list[LayerSizes]:
    return [
        LayerSizes(
            number + 1,
            _rms(attended),
            _rms(fed),
            _rms(streams.residual[number + 1]),
            _norm([g for name, g in gradients.items() if name.startswith(f"layers.{number}.attn.")]),
            _norm([g for name, g in gradients.items() if name.startswith(f"layers.{number}.ffn.")]),
            _norm([of_stream[number]]),
        )
        for number, (attended, fed) in enumerate(streams.branches)
    ]


def _activations(streams: Streams) -> dict[str, list[Histogram]]:
    if not streams.branches:
        return {}
    kinds = {
        "attention adds": [attended for attended, _ in streams.branches],
        "feed-forward adds": [fed for _, fed in streams.branches],
        "residual stream after": streams.residual[1:],
    }
    return {
        kind: [histogram(f"block {number}", x) for number, x in enumerate(several, start=1)]
        for kind, several in kinds.items()
    }


def _place_in_document(ids: Int[Tensor, "rows time"], end_id: int) -> Int[Tensor, "rows time"]:
    """How many tokens of its document stand before each target: . a b . c -> 0 1 2 0 1."""
    places = torch.arange(ids.shape[1]).expand_as(ids)
    return places - torch.where(ids == end_id, places, 0).cummax(dim=-1).values


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def _norm(tensors: list[Tensor | None]) -> float:
    squares = [float(one.double().square().sum()) for one in tensors if one is not None]
    return float(np.sqrt(sum(squares)))
