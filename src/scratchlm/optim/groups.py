"""Named parameters come in, an optimizer's two groups go out: with and without weight decay.

    matrices (two dimensions or more)      weight decay as the optimizer is set
    gains and biases (one dimension)       weight_decay = 0

Decay keeps the weights of a matrix product from growing without need. A norm's gain has its natural value at
1 and a bias has no scale to keep small, so pulling them to 0 only disturbs. Embeddings are matrices and
decay by default; name them in `without` to leave them out, since rows of rare tokens shrink with no gradient
to restore them.

Source: as in nanoGPT and Hugging Face; Brown et al. 2020 (GPT-3), https://arxiv.org/abs/2005.14165,
appendix B.
"""

from collections.abc import Collection, Iterable
from typing import Any

from torch.nn import Parameter


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], *, without: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Split parameters for an optimizer; parameters with requires_grad=False are left out.

    Args:
        named_parameters: As `model.named_parameters()` gives them: a shared parameter once.
        without: Parts of dotted names, such as "token_embeddings"; a parameter with one does not decay.

    Returns:
        Up to two groups; an empty one is left out, so the order of `named_parameters` decides the rest.

    Example: {"w": [3, 3], "gain": [3]} -> [{"params": [w]}, {"params": [gain], "weight_decay": 0.0}].
    """
    decayed, kept = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            plain = parameter.ndim >= 2 and not set(without) & set(name.split("."))
            (decayed if plain else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
