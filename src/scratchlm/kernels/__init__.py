"""Operations with several implementations: a name comes in, the function and the reason go out.

attention: "reference" (written out), "blocks" (the same arithmetic without the future; the default) and
"sdpa" (torch's own). All implementations of one operation have the same signature; "auto" takes one of ours.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from scratchlm.kernels import attention_blocks, attention_reference, attention_sdpa
from scratchlm.registry import unknown

KERNELS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "attention": {
        "reference": attention_reference.attention,
        "blocks": attention_blocks.attention,
        "sdpa": attention_sdpa.attention,
    },
}
"""Operation -> name -> function."""


class Choice(NamedTuple):
    """An implementation, its name, and why it was taken."""

    function: Callable[..., Tensor]
    reason: str
    name: str


def choose(op: str, name: str = "auto") -> Choice:
    """Return the implementation of `op` called `name`; "auto" takes the best of ours for every machine.

    Raises:
        ValueError: There is no such operation or implementation.
    """
    if op not in KERNELS:
        raise ValueError(unknown("operation", op, KERNELS))
    if name == "auto":
        return Choice(KERNELS[op]["blocks"], "plain tensor operations that skip the future", "blocks")
    if name not in KERNELS[op]:
        raise ValueError(f"{op}={name}: {unknown('implementation', name, [*KERNELS[op], 'auto'])}")
    return Choice(KERNELS[op][name], "as configured", name)
