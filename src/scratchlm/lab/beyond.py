"""A finished run comes in, its loss beyond the training context goes out: a file, columns, words.

    beyond.json   in the run folder: the loss over the places of rows four times as long as in training
    rows.csv      loss_1x, loss_2x, loss_4x: means over the places up to 1, from 1 to 2, from 2 to 4 contexts

A study asks for it with `beyond_context = true`. Positions that end (learned ones) have loss_1x alone. How
the loss is measured place by place, with the same tokens at all places: evaluate/places.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.lab.cells import BEYOND, read_note
from scratchlm.lab.rows import Result
from scratchlm.runtime import write_text_atomically

STRETCHES = 4
"""Points of the curve per training context; each is a mean over the same tokens."""


class Reach(NamedTuple):
    """The loss of one label over the places of a long row."""

    label: str
    number: int
    """Among the study's labels: the colour of its line."""
    context_length: int
    """Of its training."""
    places: Float[np.ndarray, " stretches"]
    losses: Float[np.ndarray, "seeds stretches"]


def measure_beyond(config: Any, folder: Path) -> None:
    """Measure a finished run at up to four times its training context and write beyond.json.

    Args:
        config: The run's settings (RunConfig).
        folder: Its folder.
    """
    from scratchlm.data.shards import TokenDataset
    from scratchlm.evaluate.places import BANDS, bands, place_losses
    from scratchlm.model.config import is_endless
    from scratchlm.train.folder import RunFolder, load_run

    trained, shards = config.model.context_length, RunFolder(folder).shards("valid")
    stride = max(1, trained // STRETCHES)
    num_tokens = TokenDataset.open(shards).num_tokens
    reached = [band * trained for band in BANDS if band * trained <= num_tokens]
    length = max(reached if is_endless(config.model) else reached[:1], default=0)
    if not length:
        write_text_atomically(folder / BEYOND, json.dumps({"context_length": trained}) + "\n")
        return
    run = load_run(folder, device=config.train.device, context_length=length)
    dataset = TokenDataset.open(shards, tokenizer_fingerprint=run.tokenizer.fingerprint)
    losses = place_losses(
        run.model,
        dataset,
        stride=stride,
        context_length=length,
        device=run.device,
        autocast=run.autocast,
        documents=config.train.document_mask,
    )
    pieces = np.array_split(np.arange(length), length // stride)
    found: dict[str, Any] = {f"loss_{name}": value for name, value in bands(losses, trained).items()}
    found |= {"context_length": trained, "places": [float(piece.mean()) for piece in pieces]}
    found["losses"] = [float(losses[piece].mean()) for piece in pieces]
    write_text_atomically(folder / BEYOND, json.dumps(found) + "\n")


def read_beyond(folder: Path, results: Sequence[Result]) -> list[Reach]:
    """The curves of a study's runs that were measured, label by label."""
    found = []
    for place, label in enumerate(dict.fromkeys(result.label for result in results)):
        own = [result for result in results if result.label == label and result.state == "finished"]
        notes = [read_note(folder / "cells" / result.cell / BEYOND) for result in own]
        notes = [note for note in notes if note.get("places")]
        if notes:
            losses = np.array([note["losses"] for note in notes], dtype=np.float64)
            places = np.array(notes[0]["places"], dtype=np.float64)
            found.append(Reach(label, place, notes[0]["context_length"], places, losses))
    return found


def beyond_words(results: Sequence[Result]) -> str:
    """A sentence: how much each label's loss rises beyond its context; empty where nobody measured it.

    Example: "At 2 to 4 times the training context the loss changes: ALiBi -0.010, RoPE +1.903; learned ends
    there."
    """
    known = {label: rises(results, label) for label in dict.fromkeys(result.label for result in results)}
    risen = {label: rise for label, rise in known.items() if rise is not None}
    measured = {result.label for result in results if result.loss_1x is not None}
    ends = [label for label in known if label in measured and label not in risen]
    if not measured:
        return ""
    order = sorted(risen, key=lambda label: risen[label])
    said = [f"{label} {risen[label]:+.3f}" for label in order]
    parts = [f"the loss changes: {', '.join(said)}"] if said else []
    parts += [f"{', '.join(ends)} {'end' if len(ends) > 1 else 'ends'} there"] if ends else []
    return f"At 2 to 4 times the training context {'; '.join(parts)}."


def rises(results: Sequence[Result], label: str) -> float | None:
    """By how much the loss from 2 to 4 contexts lies above that within one, mean of the seeds."""
    own = [result for result in results if result.label == label]
    known = [r.loss_4x - r.loss_1x for r in own if r.loss_4x is not None and r.loss_1x is not None]
    return sum(known) / len(known) if known else None
