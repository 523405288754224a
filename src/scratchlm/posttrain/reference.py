r"""A base model and pairs come in; the log-probability of each answer goes out, computed once and kept.

    RUN/reference.json    {"fingerprint": ..., "train": [[-41.7, -44.0], null, ...], "valid": [...]}

The reference never changes, so its numbers are computed before the first step and read afterwards: training
then needs one model in memory, and half the forward passes. A number belongs to the base's weights, the ids,
the number format and the kind of device; the fingerprint is made of all four, and where it differs the file
is written anew. A run that does not reach all pairs computes those that it will read; what a rolled-back or
prolonged run reads beyond them is computed when it is asked for. Rounding depends on what is computed
together: that is always the same group of pairs, in the order of the first epoch, whatever is asked for.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import runtime
from scratchlm.loss import IGNORE, token_losses

if TYPE_CHECKING:
    from scratchlm.posttrain.pairs import PairBatch, PairSet

PAIRS_AT_ONCE = 8
"""Pairs that go through the reference together: 16 answers, as many rows as a validation takes."""

OnProgress = Callable[[int, int], None]
"""Told how many of how many pairs are computed."""


class Reference:
    """What the reference says of one split's pairs."""

    def __init__(
        self,
        pairs: "PairSet",
        model: Callable[[], Module],
        *,
        device: torch.device,
        precision: str,
        how: Mapping[str, Any],
        order: Sequence[int],
    ) -> None:
        """Know nothing yet.

        Args:
            pairs: Whose answers are asked about.
            model: Gives the reference model, on the device and in evaluation mode.
            device: Where it computes.
            precision: Number format of matrix products.
            how: As `PairSet.rows` takes it.
            order: All pairs; those that follow each other are computed together.
        """
        self.pairs, self.model, self.device, self.precision = pairs, model, device, precision
        self.how = dict(how)
        self.order = list(order)
        self.places = {number: place for place, number in enumerate(self.order)}
        self.known = np.full((len(pairs), 2), np.nan, np.float32)

    def log_probs(self, numbers: Sequence[int]) -> Float[Tensor, " answers"]:
        """Return the log-probability of the chosen answers of these pairs, then of the rejected ones."""
        self.compute(numbers)
        return torch.from_numpy(self.known[list(numbers)].T.reshape(-1).copy())

    def compute(self, numbers: Sequence[int], on_progress: OnProgress = lambda done, total: None) -> int:
        """Compute what is missing of these pairs, by whole groups; return how many pairs were computed."""
        missing = [number for number in numbers if np.isnan(self.known[number]).any()]
        groups = sorted({self.places[number] // PAIRS_AT_ONCE for number in missing})
        wanted = [self.order[group * PAIRS_AT_ONCE : (group + 1) * PAIRS_AT_ONCE] for group in groups]
        done, total = 0, sum(map(len, wanted))
        for group in wanted:
            batch = to_device(self.pairs.rows(group, **self.how), self.device)
            with torch.no_grad():
                found = answer_log_probs(self.model(), batch, device=self.device, precision=self.precision)
            self.known[group] = found.reshape(2, len(group)).T.cpu().numpy()
            done += len(group)
            on_progress(done, total)
        return total


def answer_log_probs(
    model: Module, batch: "PairBatch", *, device: torch.device, precision: str
) -> Float[Tensor, " answers"]:
    """Return each answer's log-probability given its prompt, summed over its tokens, in float32.

    Args:
        model: Ids -> logits; its head is computed where there is something to predict only.
        batch: Pairs, on the device.
        device: Where the model is.
        precision: Number format of matrix products.
    """
    where = batch.targets != IGNORE
    # answers that stand one a row see nothing but themselves and padding behind them
    alone = len(batch.inputs) == len(batch.reference)
    with runtime.autocast(device, precision):
        hidden = model.hidden(batch.inputs, **({} if alone else {"documents": batch.documents}))
        logits = model.head(hidden[where])
    log_probs = -token_losses(logits, batch.targets[where])
    return by_answer(log_probs, batch.answers[where], len(batch.reference))


def by_answer(
    values: Float[Tensor, " tokens"], answers: Int[Tensor, " tokens"], number: int
) -> Float[Tensor, " answers"]:
    """Return the sum of the values of each answer, in the same order of additions at every call.

    Example: values 1 2 3 of answers 0 2 0, of 3 -> 4 0 2.
    """
    own = torch.arange(number, device=values.device).unsqueeze(1) == answers.unsqueeze(0)
    return torch.where(own, values.unsqueeze(0), 0.0).sum(dim=1)


def to_device(batch: "PairBatch", device: torch.device) -> "PairBatch":
    """Return the batch on a device."""
    return type(batch)(*(tensor.to(device) for tensor in batch))


def fingerprint(weights: Mapping[str, Tensor], *others: str) -> str:
    """Identify weights, and whatever else a number depends on."""
    digest = hashlib.sha256(json.dumps(others).encode("utf-8"))
    for name in sorted(weights):
        digest.update(name.encode("utf-8"))
        digest.update(weights[name].detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save(path: Path, mark: str, splits: Mapping[str, Reference]) -> None:
    """Write what is known; a float32 comes back from JSON as it was."""
    tree: dict[str, Any] = {"fingerprint": mark}
    for name, split in splits.items():
        tree[name] = [None if np.isnan(row).any() else row.tolist() for row in split.known]
    runtime.write_text_atomically(path, json.dumps(tree) + "\n")


def load(path: Path, mark: str, splits: Mapping[str, Reference]) -> bool:
    """Take over what a file knows; return whether it is of the same fingerprint, and whole."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["fingerprint"] != mark:
            return False
        rows = {name: list(_rows(tree[name])) for name in splits}
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        runtime.log.warning("%s: cannot be read (%s); it is computed again.", path, error)
        return False
    if any(len(rows[name]) != len(split.known) for name, split in splits.items()):
        return False
    for name, split in splits.items():
        split.known[:] = np.array(rows[name], np.float32).reshape(-1, 2)
    return True


def _rows(column: Sequence[Any]) -> Iterator[tuple[float, float]]:
    for row in column:
        chosen, rejected = (np.nan, np.nan) if row is None else row
        yield float(chosen), float(rejected)
