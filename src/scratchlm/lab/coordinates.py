r"""A short run comes in, how far it moved its model's activations goes out: the coordinate check of a width.

    moved_x = sqrt(mean((x after - x before)^2))       x: scores, stream, logits, on the same validation rows

    scores    q k^T / sqrt(d_head) of the last block's attention, over the tokens that it may see
    stream    the residual stream after the last block
    logits    what the head says

"Before" is the model with its initial values, "after" the run's. A parametrisation is right for all widths
when a few steps at one learning rate move each of them by as much, however wide the model is; what grows with
the width breaks a wide model at the rate that is best for a narrow one, what shrinks is not learned any more.
A study asks for it with `coordinates = true`, and has cells that differ in model.d_model.

Source: Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D.1 (coordinate checking).
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchlm.lab.cells import COORDINATES
from scratchlm.lab.rows import Result
from scratchlm.runtime import write_text_atomically

PARTS = ("scores", "stream", "logits")
WIDTH = "model.d_model"
ROWS = 8
"""Of the validation split; a thousand tokens give two digits of a mean square."""


class Series(NamedTuple):
    """How far runs of several widths moved, all else alike."""

    name: str
    """What tells them from others, "model.mup_width=64"; "usual" where nothing does."""
    widths: list[int]
    moved: dict[str, list[float]]
    """Part -> mean over the seeds, for each width."""

    def growth(self, part: str) -> float:
        """The widest over the narrowest."""
        numbers = self.moved[part]
        return numbers[-1] / numbers[0] if numbers[0] else float("nan")


def measure_coordinates(config: Any, folder: Path) -> None:
    """Compare a finished run's model with what it began as and write coordinates.json.

    Args:
        config: The run's settings (RunConfig).
        folder: Its folder.
    """
    import torch

    from scratchlm.data.packing import evaluation_rows
    from scratchlm.data.shards import TokenDataset
    from scratchlm.train.build import build_model
    from scratchlm.train.folder import load_run

    run = load_run(folder, device=config.train.device)
    rows = evaluation_rows(TokenDataset.open(run.folder.shards("valid")), config.model.context_length)
    ids = torch.cat([row.inputs for row in islice(rows, ROWS)]).to(run.device)
    before = _activations(build_model(config, run.tokenizer).to(run.device), ids)
    after = _activations(run.model, ids)
    moved = {
        f"moved_{part}": float((after[part] - before[part]).double().square().mean().sqrt()) for part in PARTS
    }
    write_text_atomically(folder / COORDINATES, json.dumps(moved) + "\n")


def series_of(results: Sequence[Result]) -> list[Series]:
    """Runs by what they share besides their width, those of the first cell first."""
    found: dict[str, dict[int, list[Result]]] = {}
    for result in results:
        settings = json.loads(result.overrides)
        width = settings.pop(WIDTH, None)
        if result.moved_logits is not None and isinstance(width, int):
            name = ", ".join(f"{key}={value}" for key, value in settings.items()) or "usual"
            found.setdefault(name, {}).setdefault(width, []).append(result)
    return [_series(name, by_width) for name, by_width in found.items()]


def coordinate_words(results: Sequence[Result]) -> str:
    """A sentence: how much farther wide models are moved; empty where nobody measured it.

    Example: "From width 32 to 512 the same steps move the scores 3.1, the stream 2.0 and the logits 4.2 times
    as far (usual)."
    """
    known = [one for one in series_of(results) if len(one.widths) > 1]
    if not known:
        return ""
    low, high = known[0].widths[0], known[0].widths[-1]
    said = []
    for one in known:
        growths = [f"{'the ' + part} {one.growth(part):.2g}" for part in PARTS]
        said.append(f"{', '.join(growths[:-1])} and {growths[-1]} times as far ({one.name})")
    return f"From width {low} to {high} the same steps move {'; '.join(said)}."


def _series(name: str, by_width: dict[int, list[Result]]) -> Series:
    widths = sorted(by_width)
    moved = {
        part: [float(np.mean([getattr(r, f"moved_{part}") for r in by_width[width]])) for width in widths]
        for part in PARTS
    }
    return Series(name, widths, moved)


def _activations(model: Any, ids: Any) -> dict[str, Any]:
    """Scores, stream and logits of a transformer on these rows."""
    import torch

    from scratchlm.generate.engine import evaluating
    from scratchlm.study.visualize.passes import watching

    with evaluating(model), torch.no_grad(), watching(model) as streams:
        logits = model(ids)
    if not streams.residual:
        raise ValueError("coordinates=true is for transformers; this model has no blocks.")
    (x, position), part = streams.attention_input[-1], model.layers[-1].attn
    with torch.no_grad():
        q_BHTK, k_BGTK, _ = part.project(x, position, 0)
    k_BHTK = k_BGTK.repeat_interleave(part.num_heads // part.num_kv_heads, dim=1)
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) * q_BHTK.shape[-1] ** -0.5
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    return {"scores": scores_BHTT[..., seen], "stream": streams.residual[-1], "logits": logits}
