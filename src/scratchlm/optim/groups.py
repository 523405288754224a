"""Named parameters come in, an optimizer's groups go out: by kind, with and without weight decay.

    kind "matrix"      the weights of the blocks' products     weight decay as the optimizer is set
    kind "embedding"   token and position tables, output head  weight decay as the optimizer is set
    kind "vector"      gains and biases (one dimension)        weight_decay = 0

Decay keeps the weights of a matrix product from growing without need. A norm's gain has its natural value at
1 and a bias has no scale to keep small, so pulling them to 0 only disturbs. Embeddings are matrices in memory
only: a row is looked up, not multiplied, which is why Muon leaves them to AdamW, and with them the head,
whose rows belong to tokens too. They decay by default; name them in `without` to leave them out: rows of rare
tokens shrink with no gradient to restore them.

Source: decay as in nanoGPT and Hugging Face; Brown et al. 2020 (GPT-3), https://arxiv.org/abs/2005.14165,
appendix B. The kinds from Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args

from torch.nn import Parameter

Kind = Literal["matrix", "embedding", "vector"]
"""What a parameter is to an optimizer."""

TOKEN_TABLES = frozenset({"token_embeddings", "position_embeddings", "lm_head"})
"""Parts of dotted names: parameters whose rows belong to tokens or positions, as our models call them."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, Parameter]],
    *,
    without: Collection[str] = (),
    tables: Collection[str] = TOKEN_TABLES,
) -> list[dict[str, Any]]:
    """Sort parameters by kind for an optimizer; parameters with requires_grad=False are left out.

    Args:
        named_parameters: As `model.named_parameters()` gives them: a shared parameter once.
        without: Parts of dotted names, such as "token_embeddings"; a parameter with one does not decay.
        tables: Parts of dotted names; a parameter of two dimensions with one is of the kind "embedding".

    Returns:
        Groups {"params", "kind"} in the order matrix, embedding, vector, those without decay after those
        with; an empty one is left out, so the names alone decide which parameter has which place.

    Example: {"w": [3, 3], "lm_head.weight": [9, 3], "gain": [3]} -> [{"params": [w], "kind": "matrix"},
    {"params": [head], "kind": "embedding"}, {"params": [gain], "kind": "vector", "weight_decay": 0.0}].
    """
    found: dict[tuple[Kind, bool], list[Parameter]] = {
        (kind, decays): [] for kind in get_args(Kind) for decays in (True, False)
    }
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            parts = set(name.split("."))
            kind: Kind = "vector" if parameter.ndim < 2 else "embedding" if parts & set(tables) else "matrix"
            found[kind, kind != "vector" and not parts & set(without)].append(parameter)
    return [
        {"params": params, "kind": kind} | ({} if decays else {"weight_decay": 0.0})
        for (kind, decays), params in found.items()
        if params
    ]


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], *, without: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Split parameters in two: those that decay and those that do not, with no kinds.

    Args:
        named_parameters: As `parameter_groups`.
        without: As `parameter_groups`: parts of dotted names that do not decay.

    Example: {"w": [3, 3], "gain": [3]} -> [{"params": [w]}, {"params": [gain], "weight_decay": 0.0}].
    """
    decayed, kept = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            plain = parameter.ndim >= 2 and not set(without) & set(name.split("."))
            (decayed if plain else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
