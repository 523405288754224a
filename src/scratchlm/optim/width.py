r"""Groups of parameters and a ratio of widths come in, groups with the rates of that width go out.

    r = d_model / base width           a model r times as wide as the one whose rates are known

                             the blocks' matrices    everything else
    adamw, lion              lr / r                  lr
    muon, scale="adamw"      lr / sqrt(r)            lr        its steps grow as sqrt(max(rows, columns))
    muon, scale="spectral"   lr                      lr        its steps have one length at any width
    muon, scale="none"       lr                      lr

A matrix of a block adds up d_model numbers that all move in step, so the same move of each of its weights
changes its result r times as much in a model r times as wide. Tables of tokens are looked up, not added up;
vectors act coordinate by coordinate. What is right for Muon follows from one condition: a matrix and its
update shall have the length sqrt(rows / columns) in their longest direction, at any width.

lr * weight_decay, the share that is taken from a weight in a step, stays the same for all. SGD has other
rules (embeddings and vectors need more, too), which are not built in. The model's half: model/width.py.

Source: Yang et al. 2022, "Tensor Programs V", https://arxiv.org/abs/2203.03466, table 8 (adamw; lion moves
coordinates by its sign, as Adam does); Yang, Simon and Bernstein 2023, "A Spectral Condition for Feature
Learning", https://arxiv.org/abs/2310.17813, condition 1 (muon). Decay as in the authors' library mup.
"""

from collections.abc import Mapping
from typing import Any


def with_rates_of_width(
    groups: list[dict[str, Any]], ratio: float, optimizer: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return groups in which the blocks' matrices have rates of their own.

    Args:
        groups: As `groups.parameter_groups` gives them.
        ratio: Width of the model over the width at which the rates were tuned. At 1 nothing changes.
        optimizer: Its name.
        settings: All of its settings.

    Raises:
        ValueError: For this optimizer no rule is known.

    Example: ratio 4, "adamw", lr 0.01, weight_decay 0.1 -> {"kind": "matrix", "lr": 0.0025, "weight_decay":
    0.4}; other groups as they were.
    """
    factor = matrix_factor(ratio, optimizer, settings)
    if factor == 1.0:
        return groups
    return [_scaled(group, factor, settings) if group.get("kind") == "matrix" else group for group in groups]


def matrix_factor(ratio: float, optimizer: str, settings: Mapping[str, Any]) -> float:
    """Return what the rate of the blocks' matrices is multiplied by.

    Raises:
        ValueError: For this optimizer no rule is known.
    """
    name = optimizer.removesuffix("_reference")
    if name in ("adamw", "lion"):
        return 1 / ratio
    if name == "muon":
        return ratio**-0.5 if settings.get("scale", "adamw") == "adamw" else 1.0
    raise ValueError(
        f"model.mup_width: how the rates of optimizer={optimizer} go with the width is not known here; use "
        "adamw, lion or muon, or leave mup_width out."
    )


def _scaled(group: Mapping[str, Any], factor: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A group with its own rate, and as much decay a step as before."""
    own = {**group, "lr": settings["lr"] * factor}
    if "weight_decay" not in group and "weight_decay" in settings:
        own["weight_decay"] = settings["weight_decay"] / factor
    return own
