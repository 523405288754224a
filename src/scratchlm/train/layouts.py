r"""A layout and a model's sizes come in; the bytes each GPU holds and the messages of a step go out.

    bytes on a GPU      weights        gradients    optimizer    beside them
    ddp                 4 P            4 P          s P          casts to bfloat16: 2 P
    zero1               4 P            4 P          s M          the same, and 2 buckets of parameters
    zero2               4 P            4 M          s M          the same, and N buckets of gradients
    fsdp2               4 P / S        4 P / S      s P / S      whole: 2 blocks and the root (see `held`)

    a step sends        in forward            in backward                        after the update
    ddp                                       all-reduce 4 P, once
    zero1                                     all-reduce 4 P, once               broadcast 4 P
    zero2                                     reduce 4 P, each micro-batch       broadcast 4 P
    fsdp2               all-gather, each:     all-gather w B, each;
                        w B + 4 R             reduce-scatter 4 P, each
    fsdp2, S < N        the same within S     ... and all-reduce 4 P / S among the N / S copies

P parameters, B of them in blocks and R in the root (embeddings, head, last norm), N GPUs, S GPUs that share
one copy, w bytes of a block's whole weight: 2 in bfloat16, else 4; s bytes of optimizer state for each
parameter, 8 for AdamW; M parameters of the owner that has most: at least P / N, and never less than the
largest matrix, since matrices are dealt out whole. Parameters, gradients and their sums are float32. "Each"
is each micro-batch. Several micro-batches a step add up rows of gradients in fsdp2; with its setting
`whole_gradients` they would travel once and take 4 P.

Source: Rajbhandari et al. 2020 (ZeRO), https://arxiv.org/abs/1910.02054, sections 3, 5 and 7; Zhao et al.
2023 (FSDP), https://arxiv.org/abs/2304.11277, section 3.2, which calls S < N hybrid sharding. As our engines
do it (distributed/); tests compare both tables with what processes over gloo really hold and send.
"""

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch.nn import Parameter

from scratchlm.distributed.zero import deal
from scratchlm.model import MODELS, ModelConfig, accounting
from scratchlm.train.memory import MemoryPart
from scratchlm.train.messages import Group, Message

BUCKET_BYTES = 25e6
"""Gradients or parameters that travel together (distributed/ddp.py)."""
BUCKETS_IN_FLIGHT = 2
"""As distributed/zero.py."""
GATHERED_BLOCKS = 2
"""Whole blocks at once: the one that computes and the one that is fetched ahead."""

Name = Literal["ddp", "zero1", "zero2", "fsdp2"]
"""zero2 is a class to read (distributed/zero.py); the others are engines of the trainer."""


class Sizes(NamedTuple):
    """What a layout must know of a model and its optimizer."""

    parameters: int
    block: int
    """Parameters of one block."""
    num_blocks: int
    state_bytes: float = 8.0
    """Optimizer state for each parameter."""
    whole_bytes: int = 2
    """Of a block's weight while fsdp2 computes with it; the root's has 4."""
    averages: bool = False
    """Whether an average of the weights is kept."""
    matrices: tuple[int, ...] = ()
    """Numbers of each parameter tensor, in the model's order."""

    @property
    def root(self) -> int:
        """Parameters outside the blocks."""
        return self.parameters - self.num_blocks * self.block

    def largest_share(self, owners: int) -> float:
        """Share of all parameters that the busiest of so many owners has, at least 1 / owners."""
        return _most(self.matrices, owners) / self.parameters if self.matrices else 1 / owners


class Layout(NamedTuple):
    """How N GPUs share a model."""

    name: Name
    gpus: int
    shard: int
    """GPUs that share one copy of the parameters; 1 where each has all."""
    per_machine: int = 8

    @property
    def title(self) -> str:
        """For people: fsdp2 over fewer than all GPUs says over how many."""
        return f"{self.name} x{self.shard}" if self.shard not in (1, self.gpus) else self.name

    @property
    def everyone(self) -> Group:
        """All GPUs."""
        return Group(self.gpus, min(self.gpus, self.per_machine))

    @property
    def sharers(self) -> Group:
        """Those that share a copy: neighbours."""
        return Group(self.shard, min(self.shard, self.per_machine))

    @property
    def copies(self) -> Group:
        """Those that hold the same rows: one of each set of sharers."""
        return Group(self.gpus // self.shard, max(1, min(self.gpus, self.per_machine) // self.shard))


class Messages(NamedTuple):
    """What travels in a step, by when it does."""

    forward: tuple[Message, ...] = ()
    """In each micro-batch."""
    backward: tuple[Message, ...] = ()
    """In each micro-batch."""
    last_backward: tuple[Message, ...] = ()
    """In the last one, or the only one, besides."""
    update: tuple[Message, ...] = ()
    """After the optimizer's step, when there is nothing to hide behind."""

    def sent_bytes(self, accumulation: int) -> float:
        """What each GPU sends in a step of so many micro-batches."""
        each = math.fsum(message.sent_bytes for message in self.forward + self.backward)
        once = math.fsum(message.sent_bytes for message in self.last_backward + self.update)
        return accumulation * each + once


def sizes_of(
    settings: ModelConfig, *, state_bytes: float = 8.0, whole_bytes: int = 2, averages: bool = False
) -> Sizes:
    """Return the sizes of a model; arguments as the fields of `Sizes`."""
    counts = accounting.count_parameters(settings)
    total = sum(counts.values())
    inside = [counts.get(part, 0) for part in ("attention", "qk_norm", "feedforward", "norms")]
    blocks = max(1, settings.num_layers) if sum(inside) else 1
    with torch.device("meta"):
        model = MODELS.get(settings.name)(settings)
    matrices = tuple(parameter.numel() for parameter in model.parameters())
    # the last norm of the pre-norm placement is too small to matter
    return Sizes(total, sum(inside) // blocks, blocks, state_bytes, whole_bytes, averages, matrices)


def held(layout: Layout, sizes: Sizes) -> tuple[MemoryPart, ...]:
    """Return what each GPU holds but activations: the largest share, where shares differ.

    Args:
        layout: How it is shared.
        sizes: What is shared.
    """
    shares = _shares(layout, sizes)
    parts = [
        _part("weights", 4.0, sizes, shares["weights"]),
        _part("gradients", 4.0, sizes, shares["gradients"]),
        _part("optimizer", sizes.state_bytes, sizes, shares["optimizer"]),
    ]
    if sizes.averages:
        parts.append(_part("average", 4.0, sizes, shares["weights"]))
    return (*parts, _beside(layout, sizes))


def messages_of(layout: Layout, sizes: Sizes) -> Messages:
    """Return what travels in a step."""
    whole = 4.0 * sizes.parameters
    if layout.gpus == 1:
        return Messages()
    if layout.name == "fsdp2":
        return _sharded_messages(layout, sizes)
    buckets, last = math.ceil(whole / BUCKET_BYTES), min(whole, BUCKET_BYTES)
    turns = layout.gpus * math.ceil(whole / layout.gpus / BUCKET_BYTES)
    update = (Message("broadcast", whole, turns, layout.everyone, 0.0),)
    if layout.name == "zero2":
        reduce = Message("reduce", whole, turns, layout.everyone, min(last, whole / layout.gpus))
        return Messages(backward=(reduce,), update=update)
    average = (Message("all-reduce", whole, buckets, layout.everyone, last),)
    return Messages(last_backward=average, update=update if layout.name == "zero1" else ())


def _sharded_messages(layout: Layout, sizes: Sizes) -> Messages:
    units, group = sizes.num_blocks + 1, layout.sharers
    blocks, root = float(sizes.whole_bytes * sizes.num_blocks * sizes.block), 4.0 * sizes.root
    sums = 4.0 * sizes.parameters
    last: tuple[Message, ...] = ()
    if layout.shard < layout.gpus:
        rows = 1 / layout.shard
        last = (Message("all-reduce", rows * sums, units, layout.copies, rows * root),)
    return Messages(
        forward=(Message("all-gather", blocks + root, units, group, root),),
        # the root stays whole between the two passes; the last block is whole already
        backward=(
            Message("all-gather", blocks, sizes.num_blocks, group, 0.0),
            Message("reduce-scatter", sums, units, group, root),
        ),
        last_backward=last,
    )


def _shares(layout: Layout, sizes: Sizes) -> dict[str, tuple[float, str]]:
    """Of each thing the share that a GPU holds, and how the formula says so."""
    whole, part = (1.0, ""), (1 / layout.shard, f" / {layout.shard}")
    most = sizes.largest_share(layout.gpus)
    of_all = (most, f" x {most:.3g}, the largest share of {layout.gpus}")
    if layout.name == "fsdp2":
        return {"weights": part, "gradients": part, "optimizer": part}
    return {
        "weights": whole,
        "gradients": of_all if layout.name == "zero2" else whole,
        "optimizer": whole if layout.name == "ddp" else of_all,
    }


def _part(name: str, bytes_each: float, sizes: Sizes, share: tuple[float, str]) -> MemoryPart:
    fraction, words = share
    return MemoryPart(
        name, math.ceil(bytes_each * sizes.parameters * fraction), f"{bytes_each:.3g} bytes each{words}"
    )


@cache
def _most(matrices: tuple[int, ...], owners: int) -> int:
    """Parameters of the busiest owner, as distributed/zero.py deals them out."""
    loads = [0] * owners
    deal([Parameter(torch.empty(numbers, device="meta")) for numbers in matrices], {}, loads)
    return max(loads)


def _beside(layout: Layout, sizes: Sizes) -> MemoryPart:
    if layout.name == "fsdp2":
        # gathered; a block's gradients as they come, and in float32 on their way; the root and its gradients
        blocks = (sizes.whole_bytes * (GATHERED_BLOCKS + 1) + 4) * sizes.block
        words = f"{GATHERED_BLOCKS} blocks and the root, and gradients"
        return MemoryPart("whole units", blocks + 8 * sizes.root, words)
    casts = 2 * sizes.parameters if sizes.whole_bytes == 2 else 0
    whole, count = 4.0 * sizes.parameters, {"ddp": 0, "zero1": BUCKETS_IN_FLIGHT, "zero2": layout.gpus}
    buckets = count[layout.name] if layout.gpus > 1 else 0
    travelling = min(whole, buckets * min(BUCKET_BYTES, whole / layout.gpus))
    words = ["2 bytes each for products in bfloat16"] if casts else []
    words += [f"{buckets} buckets on their way"] if buckets else []
    return MemoryPart("copies", math.ceil(casts + travelling), ", ".join(words) or "none")
